"""Floors that are paid for in advance, from the world file to the verdict: kept, paid from escrow, given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_engine import entries, fail_at

from apportion.audit import verify
from apportion.core.errors import BadWorld, LogUnavailable
from apportion.core.units import MICRO
from apportion.ledger import reading
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, play
from apportion.serve.explain import explain
from apportion.serve.folder import Folder
from apportion.worlds.world import World, load

RAID = """\
version: 1
name: raid
supply: 4000
pools: {here: {capacity: {cpu: 10, memory: 10 GiB}}}
accounts:
  guild: {entitlement: 20%}
  raids: {parent: guild, share: 100%}
  studio: {entitlement: 80%}
tasks:
  arena: {kind: game, account: raids, demand: {cpu: 6, memory: 1 GiB}}
  shard: {kind: game, account: studio, demand: {cpu: 12, memory: 4 GiB}}
reservations:
  raid: {account: raids, task: arena, floor: {cpu: 5 cores}, at: 3 s, for: 2 s, pays: 700}
"""


def raid(folder: Path, text: str = RAID) -> World:
    (folder / "raid.yaml").write_text(text)
    return load(folder / "raid.yaml")


def test_a_reserved_floor_is_kept_and_paid_from_escrow(tmp_path: Path):
    """Without it the arena has a third of its wish; with it 5 cores, and what that costs beyond its bid the purse pays."""
    world = raid(tmp_path)
    assert world.accounts[0] == ("guild", "raids", "studio", "escrow/raid")
    assert world.balance.tolist() == [0, 100 * MICRO, 3200 * MICRO, 700 * MICRO]
    rounds = list(play(world, seed=2, rounds=8))
    for r in rounds:
        cores = r.allocation.served[0] * r.tasks.demand[0, 0] / 1000
        assert r.balance.sum() == 4000 * MICRO
        if r.number in (3, 4):
            assert cores >= 5 - 1e-6
            assert r.bills.sponsored[0] > 0
        else:
            assert cores < 3
            assert not r.bills.sponsored.any()
    spent = sum(int(r.bills.sponsored.sum()) for r in rounds)
    assert 0 < spent < 700 * MICRO
    assert rounds[4].balance[3] == 700 * MICRO - spent
    assert rounds[5].balance[3] == 0


def test_what_is_left_is_given_back_by_a_row_and_once(tmp_path: Path):
    key, logs = Signer.generate("apportion.local/raid"), []
    for name, counts in (("whole", (8,)), ("before", (5, 3)), ("after", (6, 2))):
        out = tmp_path / name
        out.mkdir()
        write_key(out / "operator.key", key)
        for n, count in enumerate(counts):
            with Running(raid(tmp_path), Choice("sim", seed=2, resume=n > 0), out) as running:
                list(running.rounds(count))
        logs.append(entries(out))
        verdict = verify(out / "ledger.db", out / "operator.pub")
        assert any(line.startswith("1 transfers") for line in verdict.checked)
    assert logs[0] == logs[1] == logs[2]
    (given,) = [entry for entry in logs[0] if entry["type"] == "transfer"]
    assert given["why"] == "reservation raid is over"


def test_nothing_is_given_back_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with Running(raid(tmp_path), Choice("sim"), out) as running:
        held = list(running.rounds(5))[-1].balance
        assert running.engine is not None
        running.first = 5
        monkeypatch.setattr(running.log, "append", fail_at(running.log, 0))
        with pytest.raises(LogUnavailable):
            list(running.rounds(1))
        assert running.engine.accounts.balance.tolist() == held.tolist()
    with Folder(out).read() as log:
        assert reading.state(log).balance.tolist() == held.tolist()


def test_a_purse_that_runs_dry_leaves_the_floor_and_waives_the_rest(tmp_path: Path):
    out = tmp_path / "out"
    with Running(raid(tmp_path, RAID.replace("pays: 700", "pays: 1")), Choice("sim", seed=2), out) as running:
        third = list(running.rounds(4))[3]
    assert third.bills.sponsored[0] == MICRO
    assert third.bills.waived[0] > 0
    assert third.market.floor[0] == third.tasks.floor[0] > 0.7
    with Folder(out).read() as log:
        told = explain(log, "arena", 3).text
    assert "escrow/raid paid 1.00 and" in told
    assert f"{third.bills.waived[0] / MICRO:.2f} were waived" in told


def test_who_pays_may_be_a_family_from_its_chest(tmp_path: Path):
    text = RAID.replace("guild: {entitlement: 20%}", "guild: {entitlement: 20%, balance: 800}").replace(
        "account: raids, task", "account: guild, task"
    )
    world = raid(tmp_path, text)
    assert world.balance[:1].tolist() == [100 * MICRO]
    *_, last = play(world, seed=2, rounds=8)
    assert 100 * MICRO < last.balance[0] < 800 * MICRO


def test_a_reserved_floor_of_a_surge_stays_absolute(tmp_path: Path):
    text = RAID + "events: [{name: rush, at: 0 s, for: 60 s, task: arena, load: x1.5}]\n"
    rounds = [r for r in play(raid(tmp_path, text), rounds=5) if r.number in (3, 4)]
    assert np.array([r.tasks.floor[0] * r.tasks.demand[0, 0] for r in rounds]) == pytest.approx([5000, 5000])


REFUSED = [
    ("account: raids, task", "account: raid, task", "reservations.raid.account is 'raid': there is no account 'raid'. Did you mean 'raids'?"),
    ("task: arena, floor", "task: area, floor", "reservations.raid.task is 'area': there is no task 'area'. Did you mean 'arena'?"),
    ("cpu: 5 cores", "cpu: 7 cores", "reservations.raid.floor.cpu is '7 cores': the floor is above the demand of 6 cores. Lower the floor or raise the demand."),
    ("for: 2 s", "for: 0.2 s", None),
    ("at: 3 s, for: 2 s", "at: 3.1 s, for: 0.2 s", "reservations.raid.for is '0.2 s': no round of 1 s begins meanwhile. Let it last longer."),
    ("pays: 700", "pays: 900", "reservations: 'raids' holds 800 credits at the start and pays 900. Let it pay less, or give it a balance."),
    (", pays: 700", "", "reservations.raid.pays: a reservation must say its 'pays'. Write for example 'pays: 12'."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_reservations_that_cannot_be_are_refused_by_their_line(tmp_path: Path, old: str, new: str, said: str | None):
    assert old in RAID
    if said is None:
        assert raid(tmp_path, RAID.replace(old, new, 1)).reservations[0].last == 3
        return
    with pytest.raises(BadWorld) as caught:
        raid(tmp_path, RAID.replace(old, new, 1))
    assert said in str(caught.value)


def test_reserved_floors_that_cannot_fit_are_refused_when_they_begin(tmp_path: Path):
    text = RAID.replace("memory: 4 GiB}", "memory: 4 GiB}, floor: {cpu: 5.5}")
    with pytest.raises(BadWorld, match=r"promise 10\.5 cores of cpu at 3 s, and pool 'here' has 9\.999 cores"):
        raid(tmp_path, text).check({})
    raid(tmp_path, text.replace("cpu: 5 cores", "cpu: 4 cores")).check({})
