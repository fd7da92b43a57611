"""Every policy of a world, from its file to the verdict: what each promises, and that it goes on after a stop as it would have."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_economy import make_tasks
from test_engine import entries, feasible

from apportion.audit import verify
from apportion.clearing.rules import fair, spread
from apportion.core.market import Market
from apportion.core.policies import POLICIES, priced
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, play
from apportion.settlement import karma as module
from apportion.settlement.karma import Karma, highest
from apportion.study import reference
from apportion.study.compare import compare
from apportion.worlds.world import World, load

seeds = st.integers(0, 2**32 - 1)
WORLD = """\
version: 1
name: bursts
alpha: 0.5
pools: {east: {capacity: {cpu: 9, memory: 18 GiB}}, west: {capacity: {cpu: 3, memory: 2 GiB}}}
accounts: {steady: {entitlement: 50%}, bursty: {entitlement: 30%}, idle: {entitlement: 20%}}
tasks:
  shop: {kind: commerce, account: steady, demand: {cpu: 8, memory: 6 GiB}, floor: 10%}
  raid: {kind: game, account: bursty, demand: {cpu: 2, memory: 1 GiB}, cap: 90%}
  chat: {kind: social, account: bursty, demand: {cpu: 1, memory: 2 GiB}, pools: [east]}
  items: {kind: assets, account: idle, demand: {cpu: 0.5, memory: 0.5 GiB}}
events: [{name: raid night, at: 4 s, for: 3 s, every: 6 s, task: [raid, chat], load: x8}]
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "bursts.yaml").write_text(WORLD)
    return load(tmp_path / "bursts.yaml")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_plays_verifies_and_is_taken_up_again(world: World, tmp_path: Path, policy: str):
    key, logs = Signer.generate("apportion.local/bursts"), []
    for name, counts in (("whole", (9,)), ("halves", (5, 4))):
        out = tmp_path / name
        out.mkdir()
        write_key(out / "operator.key", key)
        for n, count in enumerate(counts):
            with Running(world, Choice("sim", policy=policy, seed=4, resume=n > 0), out) as running:
                rounds = list(running.rounds(count))
        assert all(feasible(r) for r in rounds)
        assert all((r.allocation.served >= r.tasks.floor - 1e-8).all() for r in rounds)
        assert priced(policy) or (rounds[-1].balance == world.balance).all()
        verify(out / "ledger.db", out / "operator.pub")
        logs.append(entries(out))
    assert logs[0] == logs[1]


def test_a_comparison_takes_every_policy(world: World):
    results = compare([world], list(POLICIES), [1], 4, play)
    assert {policy for _, _, policy in results.rows} == set(POLICIES)
    assert all((rows["gap"] >= 0).all() for rows in results.rows.values())


# Levels.


def test_dominant_shares_are_equal_as_in_the_paper():
    """Ghodsi et al. 2011: 9 CPU and 18 GB; tasks of <1, 4> and <3, 1> start 3 and 2 times, each 2/3 of what it wants most."""
    market = Market([[9, 36], [27, 9]], [[9, 18]])
    allocation = fair(market, "drf", np.array([0.5, 0.5]))
    assert allocation.share * 9 == pytest.approx([3, 2], abs=1e-6)
    assert (allocation.objective, allocation.price.any()) == ("drf", False)


def test_dominant_shares_go_by_entitlement_and_not_by_what_is_asked_for():
    for asked in (1, 10):
        allocation = fair(Market([[9.0 * asked], [9]], [[9]]), "drf", np.array([0.25, 0.75]))
        assert allocation.load[0] == pytest.approx([9], abs=1e-6)
        assert allocation.share * [9 * asked, 9] == pytest.approx([2.25, 6.75], abs=1e-6)


def test_max_min_gives_equal_shares_and_then_what_is_left():
    """Both tasks of the full pool get half; the one that has room elsewhere gets all it can use."""
    market = Market([[10], [10], [10]], [[10], [7]], None, [[1, 0], [1, 0], [0, 1]], cap=[1, 1, 0.6])
    assert fair(market, "leximin", np.ones(3)).share == pytest.approx([0.5, 0.5, 0.6], abs=1e-6)


def test_a_surge_in_one_account_moves_no_dominant_share_of_others(world: World):
    """What is wanted more changes nothing for those who have what they are entitled to."""
    for r in play(world, "drf", seed=4, rounds=8):
        share = (r.market.per_task(r.allocation.granted) / r.pools.capacity.sum(axis=0)).max(axis=1)
        assert r.allocation.served[3] == pytest.approx(1, abs=1e-6)
        assert share[0] >= min(0.5, 0.999 * (r.tasks.demand[0] / r.pools.capacity.sum(axis=0)).max()) - 1e-6


# Karma.


@given(seeds)
def test_units_are_taken_from_the_highest_as_one_by_one(seed: int):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    height, room = rng.integers(-9, 9, n), rng.integers(0, 6, n)
    total, weight = int(rng.integers(0, room.sum() + 1)), rng.choice([1, 2, 3], n)
    want = np.zeros(n, int)
    for _ in range(total):
        left = [
            Fraction(int(h - w), int(x)) if w < r else -100
            for h, w, r, x in zip(height, want, room, weight, strict=True)
        ]
        want[left.index(max(left))] += 1
    assert highest(total, height, room, weight).tolist() == want.tolist()


@given(seeds)
@settings(max_examples=60)
def test_karma_is_what_the_paper_does_slice_by_slice(seed: int):
    rng = np.random.default_rng(seed)
    users, fair_share = int(rng.integers(1, 6)), 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICES", users * fair_share)
        patch.setattr(module, "BEGIN", int(rng.integers(0, 3)))
        ours = Karma(np.full(users, 1 / users), float(rng.choice([0.0, 0.3, 0.5, 1.0])))
        credits, guaranteed = ours.credits, ours.guaranteed
        for _ in range(12):
            wanted = rng.integers(0, 2 * fair_share, users)
            shared = users * fair_share - int(guaranteed.sum())
            got, credits = reference.karma(wanted, credits, guaranteed, shared, fair_share - int(guaranteed[0]))
            part = ours.play(make_tasks(range(users), wanted[:, None].astype(float)), np.array([[users * 10.0]]))
            assert part * wanted == pytest.approx(got)
            assert ours.credits.tolist() == credits.tolist()


def test_who_left_its_part_to_others_gets_it_back_in_a_burst():
    """Two alike, half guaranteed: one takes all of what the other leaves, until the other wants all too."""
    karma, capacity = Karma(np.array([0.5, 0.5]), 0.5), np.array([[100.0]])
    calm, burst = make_tasks([0, 1], [[100.0], [0.0]]), make_tasks([0, 1], [[100.0], [100.0]])
    for _ in range(10):
        assert karma.play(calm, capacity).tolist() == [1, 0]
    assert karma.credits[0] < karma.credits[1]
    assert karma.play(burst, capacity) == pytest.approx([0.25, 0.75])


def test_who_is_entitled_to_more_is_not_always_first():
    """Nine tenths against one: both asked for all of it always, so each has its part."""
    karma = Karma(np.array([0.9, 0.1]), 0.0)
    both = make_tasks([0, 1], [[100.0], [100.0]])
    got = [karma.play(both, np.array([[100.0]])) for _ in range(50)]
    assert np.mean(got, axis=0) == pytest.approx([0.9, 0.1], abs=0.01)


def test_a_share_is_spread_over_pools_by_what_they_have():
    market = Market([[4.0]], [[6.0], [2.0]])
    assert spread(market, "karma", np.array([0.5])).share == pytest.approx([0.375, 0.125])
