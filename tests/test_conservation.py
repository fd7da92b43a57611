"""The economy's numbers: nothing made or lost, nobody below zero, nobody broke without its guarantee, no price for what is idle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settlements import Tally, settled
from small_world import EXAMPLES
from test_families import FAMILIES
from test_intake import drawn

from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.core.market import Market, Pools, Tasks
from apportion.core.units import SHARE
from apportion.intake.gate import Gate
from apportion.intake.guarantees import allowed
from apportion.serve.build import play
from apportion.settlement.tree import Tree
from apportion.worlds.world import World, load

seeds = st.integers(0, 2**32 - 1)


def test_no_credit_is_made_or_lost_and_nobody_falls_below_zero():
    tally = settled(2000, seed=3, scenes=100)
    assert (tally.drift, tally.lowest) == (0, 0)
    assert tally.moved > 1000 * 10**6


@pytest.mark.slow
def test_nor_in_a_million_settlements(root: Path):
    """Half a million on each of two cores, without the type checks: 10 minutes."""
    path = os.pathsep.join([str(root / "src"), str(root / "tests")])
    halves = [
        subprocess.Popen(
            [sys.executable, str(root / "tests" / "settlements.py"), "500000", str(seed)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        )
        for seed in (1, 2)
    ]  # fmt: skip
    for half in halves:
        out, _ = half.communicate()
        assert half.returncode == 0
        told = dict(re.findall(r"(\w+)=(-?\d+)", out))
        assert Tally(**{name: int(x) for name, x in told.items()}) == Tally(500_000, 0, 0, int(told["moved"]))


# Whoever is broke.


def spent(gate: Gate, tasks: Tasks, pools: Pools, market: Market) -> list[str]:
    """Accounts whose guarantee is not used up although their tasks could use more of it."""
    rooms = allowed(tasks, tasks.cap, pools.capacity, gate.entitlement, gate.alpha, gate.lend)
    left, out = np.rint((market.cap - market.per_task(market.free)) * SHARE), []
    for e, (i, j) in enumerate(zip(market.row.tolist(), market.indices.tolist(), strict=True)):
        a, mine = tasks.account[i], (tasks.account[market.row] == tasks.account[i]) & (market.indices == j)
        used = (market.demand[market.row] * market.free[:, None])[mine].sum(axis=0)
        wants = market.demand[i] > 0
        room = (rooms[a, j] - used)[wants]  # a hundredth of a base unit is what whole parts may leave
        if (
            left[i] > 2
            and wants.any()
            and room.min() > 1e-2
            and (room / market.demand[i, wants]).min() > 1e-8 * len(left)
        ):
            out.append(f"account {a} by pair {e}")
    return out


@given(seed=seeds, pools=st.integers(1, 3), nested=st.booleans())
@settings(max_examples=60)
def test_a_broke_account_with_demand_gets_its_guarantee_in_every_round(seed: int, pools: int, nested: bool):
    """Liveness 1: with no credit at all, all of the guarantee that its tasks can use is theirs, whatever others bid."""
    gate, tasks, there = drawn(seed, pools)
    if nested:
        tree = Tree(np.where(np.arange(len(gate.entitlement) + 1), 0, -1), np.append(1.0, gate.entitlement))
        gate = Gate(tree.entitlement, gate.alpha, tree.lend)
        tasks = replace(tasks, account=tasks.account + 1)
    tasks = replace(tasks, floor=np.zeros(len(tasks.name)))
    rng = np.random.default_rng(seed)
    broke = tasks.account == rng.choice(tasks.account)
    bid = np.where(broke, 0, rng.integers(0, 10**8, len(broke)))
    market = gate.admit(tasks, there, bid)
    assert spent(gate, tasks, there, market) == []
    allocation = fix(clear(market))
    assert (allocation.parts >= market.free_parts).all()


def test_a_world_serves_a_pauper_by_its_guarantee(tmp_path: Path):
    """Two fifths of the entitlement, half of it guaranteed: 3 of 15 cores in every round, though it begins with nothing."""
    text = FAMILIES.replace("studio: {entitlement: 40%}", "studio: {entitlement: 40%, balance: 0}")
    (tmp_path / "pauper.yaml").write_text(text)
    for r in play(load(tmp_path / "pauper.yaml"), seed=1, rounds=20):
        granted = r.market.per_task(r.allocation.granted)[3, 0]
        assert granted >= 3000 - 2
        assert r.number > 0 or r.market.weight[3] == 0


# Prices.


def worlds(folder: Path) -> list[World]:
    (folder / "families.yaml").write_text(FAMILIES)
    return [load(path) for path in EXAMPLES] + [load(folder / "families.yaml")]


def test_what_is_not_used_up_has_no_price(tmp_path: Path):
    """Complementary slackness over the rounds of shipped worlds: what prices say of idle capacity, of all they say."""
    for world in worlds(tmp_path):
        for r in play(world, "market", seed=3, rounds=25):
            price, left = r.allocation.price, r.pools.capacity - r.allocation.load
            assert (price * left).sum() <= 1e-6 * max((price * r.pools.capacity).sum(), 1e-12)
