"""Worlds that no log could hold are refused when their file is read; all others can be played in their worst round."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from apportion.core.allocation import Allocation
from apportion.core.errors import BadWorld
from apportion.core.round import Outcome
from apportion.execution.cgroup1 import Cgroup1
from apportion.execution.cgroup2 import Cgroup2
from apportion.execution.local import UNMEASURED
from apportion.intake.gate import Gate
from apportion.ledger import records
from apportion.ledger.canonical import LIMIT
from apportion.serve.build import Choice, Running
from apportion.settlement.accounts import Accounts
from apportion.worlds.file import Event
from apportion.worlds.limits import MOST_RESOURCES
from apportion.worlds.surge import LOUDEST, Surge, peaks
from apportion.worlds.world import World, load

SMALL = """\
version: 1
credits_per_round: {credits}
supply: {supply}
pools:
  here: {{capacity: {{cpu: 100 cores}}}}
accounts:
  studio: {{entitlement: 40%}}
  guild: {{entitlement: 60%}}
tasks:
  arena: {{kind: game, account: studio, demand: {{cpu: {demand}}}, floor: {{cpu: 1 core}}}}
  items: {{kind: assets, account: guild, demand: {{cpu: 2 cores}}}}
"""
EVENTS = "events:\n"


def world_of(folder: Path, *events: str, demand: str = "4 cores", credits: float = 100, supply: float = 2000) -> World:
    path = folder / "x.yaml"
    text = SMALL.format(credits=credits, supply=supply, demand=demand)
    path.write_text(text + (EVENTS + "".join(f"  - {{{e}}}\n" for e in events) if events else ""))
    return load(path)


def refused(folder: Path, *events: str, **numbers: object) -> str:
    with pytest.raises(BadWorld) as caught:
        world_of(folder, *events, **numbers)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{folder}/", "")


TWICE = ("name: a, at: 10, for: 5, task: arena, load: x1000000", "name: b, at: 12, for: 5, task: arena, load: x1000000")


def test_events_that_overlap_beyond_what_a_log_can_hold_are_refused(tmp_path: Path):
    world_of(tmp_path, *TWICE, demand="4 cores", credits=10)
    assert refused(tmp_path, *TWICE, demand="5 cores", credits=10) == (
        "x.yaml:13: events[0].load is 'x1000000': when the events that can overlap do, the load of 'arena' is multiplied by 1e12:"
        " with what chance adds it wants up to 9.45e12 cores of cpu, and the log holds 2^53 millicore, 9e12 cores. Bring the loads"
        " that can overlap to x9.52e11 together, or let fewer of them overlap."
    )


def test_two_hundred_events_are_refused_by_one_line(tmp_path: Path):
    events = [f"name: e{k}, at: {k}, for: 500, task: [arena, items], load: x2" for k in range(200)]
    told = refused(tmp_path, *events)
    assert told.startswith(
        "x.yaml:13: events[0].load is 'x2': when the events that can overlap do, the load of 'arena' is"
    )
    assert "multiplied by 1.6e60" in told
    assert told.count("\n") == 0


def test_events_that_never_meet_are_not_multiplied(tmp_path: Path):
    hourly = [f"name: e{k}, at: {k} h, for: 30 min, every: 24 h, task: arena, load: x1000" for k in range(24)]
    world = world_of(tmp_path, *hourly)
    assert peaks(world.events)["arena"] == pytest.approx(math.log2(1000))
    assert "multiplied by 1e72" in refused(tmp_path, *(e.replace("30 min", "24 h") for e in hourly))


def test_a_demand_that_only_chance_lifts_too_far_is_refused(tmp_path: Path):
    world_of(tmp_path, demand="4.7e12 cores")
    assert refused(tmp_path, demand="5e12 cores") == (
        "x.yaml:10: tasks.arena.demand.cpu is '5e12 cores': in its worst round, with what events and chance add, the task wants"
        " up to 9.45e12 cores of cpu, and the log holds 2^53 millicore, 9e12 cores. Lower it to 4.76e12 cores."
    )


def test_bids_beyond_what_a_log_can_hold_are_refused(tmp_path: Path):
    event = "name: a, at: 10, for: 5, task: arena, load: x1000000"
    world_of(tmp_path, event, credits=1e6)  # 4e11 credits of a task are bid by nobody who holds 2000
    assert refused(tmp_path, event, credits=1e6, supply=1e12) == (
        "x.yaml:13: events[0].load is 'x1000000': when the events that can overlap do, the load of 'arena' is multiplied by 1e6:"
        " it bids up to 4e11 credits, and a round holds 9e9. Lower their loads, or credits_per_round to 22500."
    )
    both = event.replace("arena", "[arena, items]")
    assert "the tasks together bid up to 1e13 credits, and a round holds 4.61e12" in refused(
        tmp_path, both, credits=1e7
    )


def test_a_load_beyond_what_a_log_can_hold_is_refused_where_all_is_steady(tmp_path: Path):
    path = tmp_path / "x.yaml"
    text = SMALL.format(credits=1, supply=20, demand=4).replace("entitlement: 40%", "entitlement: 0")
    text = text.replace("entitlement: 60%", "entitlement: 1").replace("floor:", "steady: [cpu], floor:")
    path.write_text(text + EVENTS + "".join(f"  - {{{e}}}\n" for e in [*TWICE, TWICE[0].replace("1000000", "100000")]))
    with pytest.raises(BadWorld, match=r"multiplied by 1e17, and the log holds a load of 2\^53"):
        load(path)


def test_balances_beyond_what_a_world_holds_are_refused(tmp_path: Path):
    path = tmp_path / "x.yaml"
    text = SMALL.format(credits=1, supply=20, demand=4).replace("supply: 20\n", "")
    path.write_text(text.replace("0%}", "0%, balance: 900000000000}"))
    with pytest.raises(
        BadWorld, match=r"accounts: the balances come to 1800000000000 credits, and a world holds 1e\+12"
    ):
        load(path)
    path.write_text(text.replace("0%}", "0%, balance: 1e20}"))
    with pytest.raises(BadWorld, match=r"accounts.studio.balance is '1e20': it must be at most 1e\+12"):
        load(path)


# The worst round


sizes = st.floats(-3, 13).map(lambda power: 10.0**power)
factors = st.floats(-6, 6).map(lambda power: 10.0**power)
spells = st.tuples(
    st.integers(0, 60),
    st.integers(1, 40),
    st.sampled_from([None, 50, 90]),
    st.sampled_from(["arena", "items"]),
    factors,
)


def event(k: int, at: int, lasts: int, every: int | None, task: str, factor: float) -> str:
    again = f", every: {every}" if every else ""
    return f"name: e{k}, at: {at}, for: {lasts}, task: {task}, load: {factor:.17g}{again}"


def drawn_events(drawn: list[tuple]) -> tuple[Event, ...]:
    return tuple(Event.model_validate(yaml.safe_load(f"{{{event(k, *one)}}}")) for k, one in enumerate(drawn))


@given(drawn=st.lists(spells, min_size=1, max_size=6), seed=st.integers(0, 2**53 - 1))
def test_no_round_is_worse_than_the_worst_that_was_foreseen(drawn, seed):
    events = drawn_events(drawn)
    surge = Surge(events, tuple((0,) if e.task == "arena" else (1,) for e in events), 2)
    foreseen = peaks(events)
    bound = np.array([foreseen.get(name, 0.0) for name in ("arena", "items")])
    for seconds in np.arange(0.0, 200.0, 2.5).tolist():
        for chance in (None, seed):
            assert (np.log2(surge.at(seconds, chance)) <= bound + 1e-9).all()
    assert (surge.noise(seed % 300, seed) <= LOUDEST).all()


@pytest.mark.parametrize(
    ("drawn", "worst"),
    [
        ([(0, 10, None, "arena", 2.0), (11, 10, None, "arena", 4.0)], 8),  # one late, the other early
        ([(0, 10, None, "arena", 2.0), (13, 10, None, "arena", 4.0)], 4),
        ([(0, 10, 50, "arena", 2.0), (61, 10, 50, "arena", 4.0)], 8),  # in every round of their period
        ([(0, 10, 50, "arena", 2.0), (13, 10, 50, "arena", 4.0)], 4),
        ([(0, 10, 50, "arena", 2.0), (48, 10, 50, "arena", 4.0)], 8),  # over its end
        ([(0, 10, 50, "arena", 2.0), (13, 10, 90, "arena", 4.0)], 8),  # their periods drift
        ([(0, 10, 50, "arena", 2.0), (13, 10, None, "arena", 4.0)], 8),
        ([(0, 10, 10, "arena", 2.0), (3, 5, 10, "arena", 4.0)], 8),  # one is always on
        ([(0, 10, None, "arena", 0.5), (0, 10, None, "arena", 4.0)], 4),  # what calms may not come
        ([(0, 10, None, "arena", 2.0), (0, 10, None, "items", 4.0)], 2),
    ],
)
def test_events_meet_as_far_as_chance_lets_them(drawn: list[tuple], worst: float):
    assert 2 ** peaks(drawn_events(drawn))["arena"] == pytest.approx(worst)


# What a log can hold


def many(folder: Path, resources: int) -> World:
    path = folder / "x.yaml"
    amounts = ", ".join(f"r{k}: 5" for k in range(resources - 1))
    path.write_text(SMALL.format(credits=1, supply=20, demand=4).replace("{cpu: 100 cores", f"{{cpu: 100, {amounts}"))
    return load(path)


def test_as_many_resources_as_are_allowed_fit_into_an_outcome(tmp_path: Path):
    """Wherever each is measured, and with notes; and one more is refused."""
    world = many(tmp_path, MOST_RESOURCES)
    spelt = max([*Cgroup1.sources.values(), *Cgroup2.sources.values(), "program", UNMEASURED], key=len)
    tasks, pools = world.tasks(0), world.pools({})
    market = Gate(world.accounts[1], 0.5).admit(tasks, pools, np.zeros(2, np.int64))
    granted = Allocation(market, market.free, np.zeros((1, MOST_RESOURCES)), "proportional", 0.0, 0.0, 0.0)
    nothing = np.full((2, MOST_RESOURCES), -1)
    outcome = Outcome(nothing, tasks.account, tasks.account, "governor", (spelt,) * MOST_RESOURCES, ("a note",))
    body, _ = records.outcome(2**53 - 1, "1760000000.000", outcome, granted).seal(b"")
    assert len(body) < LIMIT
    with pytest.raises(BadWorld) as caught:
        many(tmp_path, MOST_RESOURCES + 1)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "x.yaml:5: pools.here.capacity.r63 is '5': the log holds 64 resources, and this world has 65. Remove some from the pools,"
        " or make one of several that are always used together."
    )


@given(
    demand=sizes.filter(lambda x: 1 <= x < 2**53 / 1000),
    credits=st.floats(-6, 9).map(lambda power: 10.0**power),
    supply=st.floats(-6, 12).map(lambda power: 10.0**power),
    drawn=st.lists(spells, max_size=6),
    seed=st.integers(0, 2**53 - 1),
)
@example(demand=8.9e12, credits=1.0, supply=1.0, drawn=[(k, 1, None, "items", 1.0) for k in range(9)], seed=1)
@example(demand=1e7, credits=1.0, supply=1.0, drawn=[(10, 40, None, "arena", 1e3), (20, 40, 50, "arena", 1e3)], seed=1)
@example(demand=1.0, credits=1e9, supply=1e12, drawn=[(10, 40, None, "items", 15.0)], seed=1)
def test_whatever_is_loaded_can_be_written_down_in_every_round(tmp_path_factory, demand, credits, supply, drawn, seed):
    """At each beginning and end of each event, with chance and without, the demand entry takes what the world wants."""
    spelt = [event(k, *one) for k, one in enumerate(drawn)]
    try:
        world = world_of(
            tmp_path_factory.getbasetemp(), *spelt, demand=f"{demand:.17g}", credits=credits, supply=supply
        )
    except BadWorld:
        return
    names, entitlement = world.accounts
    accounts = Accounts(names, entitlement, world.balance, world.credits_per_round, world.kappa)
    gate, pools = Gate(entitlement, world.alpha), world.pools({})
    for number in {int(t + d) for at, lasts, *_ in drawn for t in (at, at + lasts) for d in (0, 1)} | {0}:
        for chance in (None, seed):
            tasks = world.tasks(number, chance)
            market = gate.admit(tasks, pools, accounts.bids(tasks))
            records.demand(number, "0.000", tasks, pools, market, accounts.balance).seal(b"")


def test_the_largest_world_is_played_and_logged(tmp_path: Path):
    world = world_of(tmp_path, TWICE[0].replace("at: 10", "at: 1"), demand="4.7e6 cores", credits=9e3)
    with Running(world, Choice(engine="sim"), tmp_path / "out") as running:
        played = list(running.rounds(3))
    assert played[2].tasks.demand[0, 0] > 2**52
    assert played[2].outcome.asked[0] == 2**52


def test_a_world_that_is_too_large_begins_nothing(tmp_path: Path):
    with pytest.raises(BadWorld):
        world_of(tmp_path, *TWICE)
    command = [sys.executable, "-c", "from apportion.serve.cli import main; main()", "up", "x.yaml", "--out", "out"]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (got.returncode, got.stdout) == (2, "")
    assert "x.yaml:13: events[0].load is 'x1000000': when the events that can overlap do" in got.stderr
    assert not (tmp_path / "out").exists()
