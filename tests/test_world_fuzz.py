"""However a world file is broken, it is either a world that can be played or a mistake that names its line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import MACHINE

from apportion.core.errors import BadWorld
from apportion.intake.gate import Gate
from apportion.settlement.accounts import Accounts
from apportion.worlds.world import World, load

TEXT = (Path(__file__).parent.parent / "examples" / "launch-day.yaml").read_text()
LINES = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
PLAIN = r"""
    ~ null true yes no .nan nan .inf -.inf 0 -0 -1 1 1.5 1e308 1e-320 5e-324 1e999 9007199254740993 0x10 1_000 1:30 0o7 007
    9999999999999999999999999 99999999999 x6 x0 x1e6 x-1 ×2 40% 101% 1e-9% 4Gb 4GiB 1m 1e3m 1.2.3 machine 2020-01-01
    '' "" "1" '1' " ' [] {} [a] [[a]] {cpu:1} [arena] [arena,arena] *a &a !!int !x | > - -- --- ... : :: ? # % @ ` , [ ] é
    arena items studio chat market process game version tasks events accounts pools demand floor cap steady needs every load
"""
ODD = [
    "{cpu: 1}",
    "{cpu: 1e15}",
    "{cpu: 1e-9}",
    "{gpu: machine}",
    "{r: 5}",
    "{a: b}",
    "0% of machine",
    "4 Gb",
    "- {a: 1}",
]
ODD += ["\t", "\0", "\x01", "\x7f", "\x85", "\u2028", "\ud7ff", "\ufeff", "\uffff", "\U0001f600", " ", "", "\r", "\n"]
WORDS = PLAIN.split() + ODD


def broken(data: st.DataObject) -> str:
    """Break some lines of a good world."""
    lines = LINES.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        k = data.draw(st.integers(0, len(lines) - 1))
        word = data.draw(st.sampled_from(WORDS))
        line = lines[k]
        at = data.draw(st.integers(0, len(line)))
        lines[k : k + 1] = data.draw(
            st.sampled_from(
                [
                    [re.sub(r":.*", lambda _, w=word: f": {w}", line, count=1)],
                    [re.sub(r"[0-9.]+", lambda _, w=word: w, line, count=1)],
                    [re.sub(r"\w+:", lambda _, w=word: f"{w}:", line, count=1)],
                    [line[:at] + word + line[at:]],
                    [line[:at] + line[at + 1 :]],
                    [line[:at]],
                    [line, line],
                    [],
                    ["  " + line],
                    [line[2:]],
                    [line, " " * at + word],
                    [line, lines[data.draw(st.integers(0, len(lines) - 1))]],
                ]
            )
        )
        lines = lines or [""]
    return "\n".join(lines)


@settings(max_examples=200, derandomize=True, database=None)
@given(data=st.data())
def test_a_broken_world_is_a_world_or_a_mistake_with_its_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "broken.yaml"
    path.write_text(broken(data), newline="")
    try:
        world = load(path)
        world.check(MACHINE)
    except BadWorld as error:
        told = str(error)
    else:
        plays(world)
        return
    lines = told.split("\n")
    assert all(re.match(rf"{re.escape(str(path))}:[1-9][0-9]*: .", line) for line in lines[:5])
    assert len(lines) <= 6
    assert len(told) < 3000


def plays(world: World) -> None:
    names, entitlement = world.accounts
    accounts = Accounts(names, entitlement, world.balance, world.credits_per_round, world.kappa)
    for number, seed in ((0, None), (14, 1), (30, 1)):
        tasks = world.tasks(number, seed)
        market = Gate(entitlement, world.alpha).admit(tasks, world.pools(MACHINE), accounts.bids(tasks))
        assert (tasks.demand >= 0).all()
        assert (tasks.demand == np.rint(tasks.demand)).all()
        assert (market.floor <= market.cap).all()
