"""An answer as people read it: every task and price where they are few, a summary where they are many, names never code."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.core.allocation import Allocation
from apportion.core.market import Market


def half(count: int, rooms: int = 1, **names: tuple[str, ...]) -> Allocation:
    """Serve every task half in the first pool, at a price of 1 for the first resource there."""
    market = Market(np.ones((count, 2)), np.full((rooms, 2), float(count)), **names)
    price = np.zeros((rooms, 2))
    price[:1, 0] = 1.0
    share = np.where(market.indices == 0, 0.5, 0.0)
    return Allocation(market, share, price, "proportional", -1.5, -1.25, 0.001)


HEAD = "Allocation(proportional: value -1.5, bound -1.25, gap 0.001)"


@pytest.mark.parametrize(
    ("allocation", "shown"),
    [
        (half(0), ["  no task", "  pool 0           prices 1, 0"]),
        (half(1), ["  task 0           served  50.0%", "  pool 0           prices 1, 0"]),
        (half(1, 0), ["  task 0           served   0.0%"]),
        (
            half(3, tasks=("arena", "chat", "a name of twenty-one"), pools=("eu",), resources=("cpu", "memory")),
            [
                "  arena                served  50.0%",
                "  chat                 served  50.0%",
                "  a name of twenty-one served  50.0%",
                "  eu                   prices cpu 1, memory 0",
            ],
        ),
        (
            half(2, tasks=("a\nb", "c\x1b[31m")),
            ["  a\\nb             served  50.0%", "  c\\x1b[31m        served  50.0%"],
        ),
    ],
    ids=["no task", "one task", "no pool", "three tasks", "names that would break the line"],
)
def test_few_tasks_are_told_one_by_one(allocation: Allocation, shown: list[str]):
    lines = repr(allocation).split("\n")
    assert lines[0] == HEAD
    assert lines[1 : 1 + len(shown)] == shown


def test_many_tasks_are_summed_up_in_one_line():
    told = repr(half(100_000, 2))
    assert told == (
        f"{HEAD} of 100000 tasks in 2 pools: 50.0% of demand served on average, 50.0% at least; 1 of 4 prices are above 0"
    )
    assert half(100_000, 2)._repr_html_() == f"<p>{told}</p>"
    assert repr(half(0, 30)) == f"{HEAD} of 0 tasks in 30 pools; 1 of 60 prices are above 0"


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_a_notebook_shows_the_same_as_tables(tasks: int):
    shown = half(tasks)._repr_html_()
    assert HEAD in shown
    assert shown.count("<td>50.0%</td>") == tasks
    assert ("<p>no task</p>" in shown) == (tasks == 0)
    assert (
        "<th>price in</th><th>resource 0</th><th>resource 1</th></tr><tr><th>pool 0</th><td>1</td><td>0</td>" in shown
    )


def test_a_notebook_never_runs_a_name():
    shown = half(1, tasks=("<script>",), pools=("<p&q>",), resources=("<cpu>", '"b"'))._repr_html_()
    for name in ("&lt;script&gt;", "&lt;p&amp;q&gt;", "&lt;cpu&gt;", "&quot;b&quot;"):
        assert f"<th>{name}</th>" in shown
    assert "<script" not in shown
