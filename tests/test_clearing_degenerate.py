"""Markets as they should not be: scales apart by many orders, lost pools, nobody, nothing; answered right or refused, never NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markets import GOALS, draw, goal, like, rounding, wild
from references import best, levels
from test_clearing import fits

from apportion.clearing.clear import clear
from apportion.clearing.objectives import pose
from apportion.core.errors import BadMarket
from apportion.core.market import Market
from apportion.core.units import SHARE

seeds = st.integers(0, 10**6)
each_goal = pytest.mark.parametrize("name", GOALS)


def check(market: Market, name: str, seed: int, gap: float) -> None:
    """Held against another solver, and against what every answer promises."""
    allocation = clear(market, goal(name, len(market.demand), seed), gap=gap)
    sale, objective = pose(market, goal(name, len(market.demand), seed))
    assert np.isfinite([allocation.value, allocation.bound, allocation.gap]).all()
    assert np.isfinite(allocation.price).all()
    assert (allocation.price >= 0).all()
    assert fits(allocation)
    assert (allocation.parts >= market.free_parts).all()
    served = market.per_task(allocation.parts)
    assert (served <= np.floor(market.cap * SHARE * (1 + 1e-15)) + 1).all()
    assert (served >= np.floor(market.floor * SHARE) - len(market.capacity)).all()
    if not sale.enters.any():
        assert allocation.value == 0
        assert allocation.gap <= 1e-9
        return
    assert allocation.gap <= gap + rounding(sale, allocation.share)
    optimum = best(market, objective)
    slack = 1e-5 * (objective.weight.sum() if name == "proportional" else abs(optimum))
    slack += 1e-7 * objective.weight.sum() * (name in ("saturating", "experience"))  # Clarabel's, beside tiny answers
    assert allocation.bound >= optimum - slack
    assert allocation.value <= optimum + slack


@each_goal
@given(seed=seeds)
@example(seed=5416)
def test_wild_markets_are_answered_right(name: str, seed: int):
    check(wild(seed), name, seed, 1e-3)


@pytest.mark.slow
@each_goal
@pytest.mark.parametrize("hundred", range(4))
def test_hundreds_of_wild_markets_are_answered_right(name: str, hundred: int):
    for seed in range(100 * hundred, 100 * hundred + 100):
        check(wild(10**7 + seed, most_tasks=14, most_pools=6), name, seed, 1e-3)


@pytest.mark.parametrize("name", ["leximin", "drf"])
@given(seed=seeds)
@example(seed=438)
def test_every_level_is_what_a_sequence_of_linear_programs_finds(name: str, seed: int):
    market = draw(seed)
    sale, objective = pose(market, name)
    if not sale.enters.any():
        return
    allocation, told = clear(market, name), levels(market, objective.weight, name == "drf")
    level = sale.bought(allocation.share)[sale.enters] / objective.weight[sale.enters]
    few = 1e-3 + rounding(sale, allocation.share)
    assert level == pytest.approx(told[sale.enters], rel=few)


@each_goal
@pytest.mark.parametrize("exponent", [-6, -3, 3, 9])
def test_the_size_of_weights_does_not_matter(name: str, exponent: int):
    market, scale = draw(3, awkward=False), 10.0**exponent
    mine = goal(name, len(market.demand), 3)
    one, other = clear(market, mine, gap=1e-8), clear(like(market, weight=market.weight * scale), mine, gap=1e-8)
    assert max(one.gap, other.gap) <= 1e-6
    assert other.share == pytest.approx(one.share, abs=1e-3)


DEGENERATE = {
    "no task": Market(np.zeros((0, 2)), [[1, 1]]),
    "no pool": Market([[1, 1]], np.zeros((0, 2))),
    "no resource": Market(np.zeros((2, 0)), np.zeros((1, 0))),
    "no pair": Market([[1, 1]], [[1, 1]], value=[[0]]),
    "one task without a pair": Market([[1], [1]], [[1]], value=[[0], [1]]),
    "no capacity": Market([[1, 1], [1, 0]], [[0, 5]]),
    "no capacity at all": Market([[1, 1], [1, 2]], np.zeros((3, 2))),
    "no demand": Market([[0, 0], [1, 1]], [[2, 2]]),
    "no demand at all": Market(np.zeros((3, 2)), [[2, 2]]),
    "no weight": Market([[1], [2]], [[1]], [0, 0]),
    "no cap": Market([[1], [2]], [[1]], cap=[0, 1]),
    "all alike": Market(np.ones((40, 2)), np.ones((3, 2))),
    "all alike with floors": Market(np.ones((8, 2)), np.ones((2, 2)), floor=np.full(8, 1 / 4)),
    "tiny and huge": Market([[1e-6, 1e9], [1e-6, 1e9]], [[1e-6, 1e9]], [1e-6, 1e9]),
    "tiny weights": Market([[1], [2]], [[1]], [1e-6, 1e-6]),
    "floors fill the pool": Market([[4], [4]], [[4]], floor=[0.5, 0.5]),
    "a hundred parts fit": Market([[1], [1e7]], [[1]]),
    "less than a part fits": Market([[1e10]], [[1]]),
    "all is free": Market([[1], [1]], [[1]], free=[0.5, 0.5]),
}


@each_goal
@pytest.mark.parametrize("which", DEGENERATE)
def test_degenerate_markets_are_answered(name: str, which: str):
    market = DEGENERATE[which]
    allocation = clear(market, goal(name, len(market.demand), 0))
    assert fits(allocation)
    assert np.isfinite([allocation.value, allocation.bound, allocation.gap]).all()
    assert np.isfinite(allocation.price).all()
    assert 0 <= allocation.gap <= 1e-5 + rounding(pose(market, goal(name, len(market.demand), 0))[0], allocation.share)
    served = market.per_task(allocation.share)
    assert (served >= market.floor - 1e-9).all()
    assert (served <= market.cap).all()


def test_floors_that_fill_their_pools_to_the_last_part_are_served():
    """Three times a third is one: rounding them up to whole parts is no reason to refuse them."""
    allocation = clear(Market(np.ones((9, 2)), np.ones((3, 2)), floor=np.full(9, 1 / 3)))
    assert fits(allocation)
    assert allocation.served == pytest.approx(1 / 3, abs=3e-9)


@each_goal
def test_floors_that_cannot_fit_are_refused_under_every_objective(name: str):
    with pytest.raises(BadMarket, match="floors cannot all be kept"):
        clear(Market([[4, 1], [4, 1]], [[4, 9]], floor=[0.6, 0.6]), goal(name, 2, 0))
