"""The engine: what is written before what happens, and what a failure at each step leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apportion.audit import verify
from apportion.core.allocation import Allocation
from apportion.core.clock import VirtualClock, WallClock
from apportion.core.errors import EnforcerRefused, LogUnavailable
from apportion.core.round import Outcome, Round
from apportion.ledger import reading
from apportion.ledger.log import Log
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, play
from apportion.serve.folder import Folder
from apportion.worlds.world import World, load

SMALL = """
version: 1
name: small
policy: market
credits_per_round: 100
pools: {here: {capacity: {cpu: 1.2, memory: 1 GiB}}}
accounts: {studio: {entitlement: 40%}, club: {entitlement: 30%}, vault: {entitlement: 30%}}
tasks:
  arena: {kind: game, account: studio, demand: {cpu: 0.15, memory: 64 MiB}, floor: {cpu: 0.1}, needs: [items], sponsor: club}
  chat: {kind: social, account: club, demand: {cpu: 0.25, memory: 64 MiB}, floor: 20%}
  items: {kind: assets, account: vault, demand: {cpu: 0.6, memory: 64 MiB}}
events: [{name: opening, at: 3 s, for: 4 s, task: arena, load: x6}]
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return load(path)


def entries(out: Path) -> list[dict]:
    from apportion.ledger.canonical import read_entry

    with Folder(out).read() as log:
        return [read_entry(data) for data in log.entries()]


def kinds(out: Path) -> list[str]:
    return [entry["type"] for entry in entries(out)]


def test_a_round_is_written_in_the_order_that_binds_the_operator(world: World, tmp_path: Path):
    with Running(world, Choice("sim"), tmp_path / "out") as running:
        assert len(list(running.rounds(2))) == 2

    assert kinds(tmp_path / "out") == ["genesis", *["demand", "decision", "outcome", "bills"] * 2]
    verify(tmp_path / "out" / "ledger.db", tmp_path / "out" / "operator.pub")


def test_same_seed_and_key_give_the_same_bytes(world: World, tmp_path: Path):
    key = Signer.generate("apportion.local/small")
    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        write_key(tmp_path / name / "operator.key", key)
        with Running(world, Choice("sim", seed=seed), tmp_path / name) as running:
            list(running.rounds(8))
            heads.append(str(running.log.head()))

    assert heads[0] == heads[1]
    assert heads[0] != heads[2]


def test_resuming_goes_on_as_if_nothing_had_happened(world: World, tmp_path: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for out in (whole, halves):
        out.mkdir()
    write_key(whole / "operator.key", key := Signer.generate("apportion.local/small"))
    write_key(halves / "operator.key", key)
    with Running(world, Choice("sim", seed=3), whole) as running:
        list(running.rounds(8))
    with Running(world, Choice("sim", seed=3), halves) as running:
        list(running.rounds(5))
    with Running(world, Choice("sim", seed=3, resume=True), halves) as running:
        list(running.rounds(3))

    assert entries(whole) == entries(halves)


class Breaking:
    """An executor that works until the given call."""

    def __init__(self, inner, verb: str, after: int):
        self.inner, self.verb, self.left, self.granted = inner, verb, after, 0

    def _maybe(self, verb: str) -> None:
        if verb == self.verb:
            if self.left == 0:
                raise EnforcerRefused("the machine said no")
            self.left -= 1

    def grant(self, allocation: Allocation) -> None:
        self._maybe("grant")
        self.granted += 1
        self.inner.grant(allocation)

    def observe(self) -> Outcome:
        self._maybe("observe")
        return self.inner.observe()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("verb", ["grant", "observe"])
def test_a_round_that_breaks_is_closed_and_charged_nothing(world: World, tmp_path: Path, verb: str):
    out = tmp_path / "out"
    with Running(world, Choice("sim"), out) as running:
        running.engine.executor = Breaking(running.engine.executor, verb, after=2)
        with pytest.raises(EnforcerRefused):
            list(running.rounds(5))

    assert kinds(out)[-3:] == ["demand", "decision", "aborted"]
    verify(out / "ledger.db", out / "operator.pub")
    with Running(world, Choice("sim", resume=True), out) as running:
        assert [r.number for r in running.rounds(2)] == [3, 4]  # an aborted round keeps its number


def test_the_log_rests_while_programs_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def watch(owner: object, name: str) -> None:
        then = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (calls.append(name), then(*given))[1])

    with Running(world, Choice("sim"), tmp_path / "out") as running:
        watch(running.engine.executor, "grant")
        watch(running.engine.clock, "sleep_until")
        watch(running.log, "append")
        watch(running.log, "tidy")
        list(running.rounds(1))

    assert calls == ["append", "append", "grant", "tidy", "sleep_until", "append"]


def fail_at(log: Log, call: int) -> Callable:
    """Let the log refuse the call-th append from now, as on a full disk."""
    calls, append = itertools.count(), log.append

    def refusing(batch):
        if next(calls) == call:
            raise LogUnavailable("no space left on the disk")
        return append(batch)

    return refusing


@pytest.mark.parametrize("call", range(3))
def test_nothing_runs_that_could_not_be_written(world: World, tmp_path: Path, monkeypatch, call: int):
    out = tmp_path / "out"
    with Running(world, Choice("sim"), out) as running:
        list(running.rounds(1))
        running.first = 1
        executor = running.engine.executor = Breaking(running.engine.executor, "never", 0)
        monkeypatch.setattr(running.log, "append", fail_at(running.log, call))
        with pytest.raises(LogUnavailable):
            list(running.rounds(1))

    assert executor.granted == (call == 2), "a grant without a written decision"
    verify(out / "ledger.db", out / "operator.pub")
    with Folder(out).read() as log:
        billed = next(reading.rounds(log)).balance
        assert (reading.state(log).balance == billed).all(), "an unwritten bill was charged"


def test_stopping_waits_for_the_wait():
    clock = WallClock()
    clock.stop()
    with pytest.raises(KeyboardInterrupt):
        clock.sleep_until(clock.now() + 10)


def test_virtual_time_only_goes_forward():
    clock = VirtualClock(5.0)
    clock.sleep_until(3.0)
    assert clock.now() == 5.0


@pytest.mark.parametrize("policy", ["market", "static", "drf", "maxmin", "karma", "equal", "softmax"])
def test_no_pool_is_overfilled_and_no_floor_broken_under_any_policy(world: World, policy: str):
    for round in play(world, policy, seed=4, rounds=10):
        assert feasible(round)
        assert (round.allocation.served >= round.tasks.floor - 1e-9).all()


def feasible(round: Round) -> bool:
    """In whole numbers: parts times demand, per pool and resource, against capacity."""
    market, parts = round.market, round.allocation.parts
    used = np.zeros(market.capacity.shape, object)
    for e, i in enumerate(market.row):
        for r in range(market.demand.shape[1]):
            used[market.indices[e], r] += int(parts[e]) * int(market.demand[i, r])
    return bool((used <= market.capacity.astype(object) * 10**9).all())


def test_the_opening_raises_the_grant_within_one_round(world: World):
    rounds = list(play(world, "market", seed=4, rounds=6))
    granted = [r.market.per_task(r.allocation.granted[:, 0])[0] for r in rounds]
    surges = [r.tasks.surge[0] for r in rounds]
    first = next(n for n, s in enumerate(surges) if s == 6)

    assert granted[first] > 3 * granted[first - 1]


def test_policies_without_prices_charge_nothing(world: World):
    for policy in ("static", "drf", "maxmin", "karma", "equal", "softmax"):
        last = list(play(world, policy, seed=1, rounds=6))[-1]
        assert (last.balance == world.balance).all()
        assert not last.bills.paid.any()
