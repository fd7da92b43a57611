"""Laws of what a world wants, whatever its events and its chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import BadWorld
from apportion.core.units import SHARE, part
from apportion.worlds.world import World, load

TEXT = """\
version: 1
rounds: 60
pools: {{here: {{capacity: {{cpu: 8 cores, memory: 8 GiB, storage: 50 MB/s}}}}}}
accounts: {{studio: {{entitlement: 100%}}}}
tasks:
  arena: {{kind: game, account: studio, demand: {{cpu: {cpu} m, memory: {memory} KiB, storage: 0.1}}, steady: {steady},
          floor: {{cpu: {floor_cpu} m, memory: {floor_memory} KiB}}, cap: {cap}}}
  items: {{kind: assets, account: studio, demand: {{cpu: 0.2}}}}
events: {events}
"""
PLAIN = {"cpu": 100, "memory": 100, "floor_cpu": 0, "floor_memory": 0, "cap": 1, "steady": "[]"}


def world_of(folder: Path, events: list[str], **numbers: object) -> World:
    path = folder / "events.yaml"
    path.write_text(TEXT.format(**PLAIN | numbers, events=f"[{', '.join(f'{{{e}}}' for e in events)}]"))
    return load(path)


@st.composite
def spells(draw: st.DrawFn) -> str:
    """An event: it may overlap others, lie between two rounds, begin after the end, or come again."""
    lasts = draw(st.floats(0.01, 30))
    every = draw(st.none() | st.floats(lasts, 40))
    about = draw(st.sampled_from(["arena", "items", "[arena, items]"]))
    return (
        f"name: e, at: {draw(st.floats(0, 90)):.17g}, for: {lasts:.17g}, task: {about}, load: {draw(st.floats(0.001, 50)):.17g}"
        + (f", every: {every:.17g}" if every else "")
    )


@st.composite
def promises(draw: st.DrawFn) -> dict[str, object]:
    """Demands of some base units, floors within them and within the cap."""
    cap = draw(st.sampled_from([1.0, 0.9, 0.37, 1 / 3]))
    cpu, memory = draw(st.integers(1, 5000)), draw(st.integers(1, 2**21))
    return {
        "cpu": cpu, "memory": memory, "cap": repr(cap), "steady": draw(st.sampled_from(["[]", "[memory]", "[cpu, memory]"])),
        "floor_cpu": draw(st.integers(0, int(cpu * cap))), "floor_memory": draw(st.integers(0, int(memory * cap))),
    }  # fmt: skip


@given(
    events=st.lists(spells(), max_size=5),
    numbers=promises(),
    seed=st.none() | st.integers(0, 2**53 - 1),
    first=st.integers(0, 60),
)
def test_demands_are_whole_and_promises_stay_what_they_are_in_every_round(
    tmp_path_factory, events, numbers, seed, first
):
    """In base units, as far as the task still wants so much and its cap lets it use it."""
    world = world_of(tmp_path_factory.getbasetemp(), events, **numbers)
    again = load(world.path)
    promise = np.array([numbers["floor_cpu"], numbers["floor_memory"], 0])
    for number in range(first, first + 5):
        tasks, same = world.tasks(number, seed), again.tasks(number, seed)
        assert (tasks.demand >= 0).all()
        assert (tasks.demand == np.rint(tasks.demand)).all()
        assert (tasks.demand[tasks.base > 0] >= 1).all()
        assert (tasks.floor <= tasks.cap).all()
        assert (tasks.floor >= 0).all()
        assert np.array_equal(tasks.demand, same.demand)
        assert np.array_equal(tasks.floor, same.floor)
        wanted, share = tasks.demand[0], np.rint(tasks.floor[0] * SHARE)
        kept = part(wanted, np.full(3, share))
        most = np.floor(wanted * tasks.cap[0] * (1 - 1e-8) - 1e-6)  # a cap is counted in parts too
        assert (kept >= np.minimum(promise, most)).all()
        needed = np.divide(promise, wanted, out=np.zeros(3), where=wanted > 0).max()
        assert tasks.floor[0] <= needed + 1 / SHARE  # and no more than the promise that asks most


def test_an_event_without_length_is_refused_and_one_between_rounds_is_never_seen(tmp_path: Path):
    with pytest.raises(BadWorld, match=r"events\[0\].for is '0': it must be above 0"):
        world_of(tmp_path, ["name: e, at: 1, for: 0, task: arena, load: 2"])
    world = world_of(tmp_path, ["name: e, at: 3.2, for: 0.5, task: arena, load: 2"])
    assert all(world.tasks(n).surge[0] == 1 for n in range(10))
    world = world_of(tmp_path, ["name: e, at: 3.0, for: 0.001, task: arena, load: 2"])
    assert [world.tasks(n).surge[0] for n in (2, 3, 4)] == [1, 2, 1]


def test_an_event_beyond_the_end_changes_nothing(tmp_path: Path):
    calm = world_of(tmp_path, [])
    world = world_of(tmp_path, ["name: e, at: 70, for: 20, task: arena, load: 6"])  # two early at most: still beyond
    for seed in (None, 1, 2):
        assert all(
            np.array_equal(world.tasks(n, seed).demand, calm.tasks(n, seed).demand) for n in range(world.rounds or 0)
        )


def test_an_event_that_is_over_does_not_come_back(tmp_path: Path):
    world = world_of(tmp_path, ["name: e, at: 5, for: 10, task: arena, load: 6"])
    for seed in range(20):
        on = [n for n in range(60) if world.tasks(n, seed).surge[0] > 1]
        assert on == list(range(on[0], on[-1] + 1))
        assert 9 <= len(on) <= 11


def test_an_event_that_returns_at_once_is_always_on(tmp_path: Path):
    world = world_of(tmp_path, ["name: e, at: 5, for: 10, every: 10, task: arena, load: 6"])
    assert [world.tasks(n).surge[0] for n in range(60)] == [1] * 5 + [6] * 55
