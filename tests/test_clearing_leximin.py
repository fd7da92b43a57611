"""Levels one after another: as many stages as pools fill up, however many tasks have all they can use; each level exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import draw
from references import levels
from test_clearing import fits

from apportion.clearing.clear import clear
from apportion.clearing.objectives import pose
from apportion.core.allocation import Allocation
from apportion.core.market import Market

each = pytest.mark.parametrize("name", ["leximin", "drf"])


def crowd(tasks: int, pools: int, seed: int, contention: float, choice: int = 2) -> Market:
    """Give a market whose tasks have all they can use at levels far apart, each in a few pools of its own choice."""
    rng = np.random.default_rng(seed)
    indices = np.sort(np.argsort(rng.random((tasks, pools)), axis=1)[:, :choice], axis=1).ravel()
    demand = rng.pareto(1.5, (tasks, 1)) * rng.lognormal(0, 0.5, (tasks, 2)) + 0.01
    capacity = rng.lognormal(0, 0.4, (pools, 2)) * demand.sum(axis=0) / pools / contention
    value = rng.uniform(0.2, 1, tasks * choice)
    indptr = np.arange(0, choice * tasks + 1, choice)
    return Market(demand, capacity, rng.choice([1.0, 2.0, 4.0], tasks), value, indptr=indptr, indices=indices)


def level(allocation: Allocation, name: str) -> np.ndarray:
    sale, objective = pose(allocation.market, name)
    return sale.bought(allocation.share) / objective.weight


@each
@pytest.mark.parametrize("contention", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_many_levels_are_what_a_sequence_of_linear_programs_finds(name: str, contention: float, seed: int):
    market = crowd(30, 4, seed, contention)
    allocation = clear(market, name)
    told = levels(market, pose(market, name)[1].weight, name == "drf")
    assert level(allocation, name) == pytest.approx(told, rel=1e-5)
    assert fits(allocation)


@pytest.mark.parametrize(
    ("name", "contention", "choice"),
    [("leximin", 0.6, 2), ("leximin", 1.5, 2), ("drf", 0.6, 2), ("drf", 1.5, 2), ("drf", 2.0, 6)],
)
def test_stages_count_pools_that_fill_up_not_tasks_that_have_enough(name: str, contention: float, choice: int):
    """Tasks stop at many levels, a solve for each would be thousands of steps; this is some ten solves."""
    allocation = clear(crowd(400, 8, 1, contention, choice), name)
    found = level(allocation, name)
    assert len(np.unique(np.round(found / found.max(), 5))) > 20
    assert allocation.steps <= 400


@each
@given(seed=st.integers(0, 10**6))
def test_markets_that_share_no_pool_are_cleared_as_if_alone(name: str, seed: int):
    """But for drf's weights, which are parts of all that there is: so both halves are the same market."""
    one = draw(seed, awkward=False)
    n, m = len(one.demand), len(one.capacity)
    both = Market(
        np.tile(one.demand, (2, 1)),
        np.tile(one.capacity, (2, 1)),
        np.tile(one.weight, 2),
        np.tile(one.value, 2),
        indptr=np.append(one.indptr, one.indptr[-1] + one.indptr[1:]),
        indices=np.append(one.indices, m + one.indices),
    )
    alone, together = level(clear(one, name), name), level(clear(both, name), name)
    scale = 2.0 if name == "drf" else 1.0  # each takes half as much of all there is
    assert scale * together[:n] == pytest.approx(alone, rel=1e-5)
    assert scale * together[n:] == pytest.approx(alone, rel=1e-5)
