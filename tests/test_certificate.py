"""A bound must hold for whatever prices, and against solvers that share no code with ours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markets import GOALS, draw, goal
from references import best as reference

from apportion.clearing.certificate import best_slope, bound, certify, tightest
from apportion.clearing.clear import clear
from apportion.clearing.objectives import OBJECTIVES, Objective, pose
from apportion.clearing.sale import Sale
from apportion.core.market import Market

seeds = st.integers(0, 10**6)


each_goal = pytest.mark.parametrize("name", GOALS)


def _posed(market: Market, name: str, seed: int) -> tuple[Sale, Objective]:
    return pose(market, goal(name, len(market.demand), seed))


@each_goal
@given(seed=seeds, log_scale=st.floats(-3, 3))
def test_no_service_is_worth_more_than_its_conjugate_and_its_price(name: str, seed: int, log_scale: float):
    """Fenchel and Young's inequality, with equality at the response, for every objective."""
    rng = np.random.default_rng(seed)
    sale, objective = _posed(draw(seed), name, seed)
    if not sale.enters.any():
        return
    g = rng.lognormal(0, 1, len(sale.reach)) * objective.slope(sale.reach / 2) * 10**log_scale
    u = np.maximum(rng.random(len(sale.reach)), 1e-6) * sale.reach
    conjugate = objective.conjugate(g, sale.reach)
    slack = 1e-9 * (1e-9 + np.abs(conjugate).sum() + abs(objective.value(u)))
    assert objective.value(u) <= (conjugate + g * u).sum() + slack
    answer = objective.respond(g, sale.reach)
    if np.isfinite(objective.value(answer)):
        assert objective.value(answer) == pytest.approx((conjugate + g * answer).sum(), rel=1e-9, abs=slack)


@each_goal
@given(seed=seeds, log_scale=st.floats(-3, 3))
def test_any_prices_bound_an_independent_optimum(name: str, seed: int, log_scale: float):
    """With floors, caps, memory, free shares and random p, g and phi."""
    rng = np.random.default_rng(seed)
    sale, objective = _posed(draw(seed), name, seed)
    if not sale.enters.any():
        return
    best = reference(sale.market, objective)
    slack = precision(objective, best)
    price = np.where(sale.left > 0, rng.random(sale.left.shape) / np.maximum(sale.left, 1e-300), 0.0)
    price *= objective.weight.sum() * 10**log_scale
    price[rng.random(price.shape) < 0.3] = 0
    slope, rent = (rng.lognormal(0, 2, len(sale.upper)) * objective.weight.max() for _ in range(2))
    assert bound(sale, objective, price, slope, rent) >= best - slack
    assert bound(sale, objective, price, slope) >= best - slack
    least = tightest(sale, objective, price, best)
    assert least >= best - slack
    some = sale.market.free * rng.uniform(1, 1.5)  # no plan at all: what is bought does not touch the bound of a sum
    assert certify(sale, objective, some, price)["bound"] >= best - slack
    if name not in ("maxmin", "leximin", "drf"):
        assert least <= bound(sale, objective, price, slope) + 1e-9 * np.abs(least)


@each_goal
@given(seed=seeds)
@example(seed=9389)  # a floor's last part fills one resource of a pool: who does not want that one loses nothing
@example(seed=5932)
@example(seed=33)  # drf: who stands at a level earns nothing in the next, and must still get it
@example(seed=1967)  # max-min: from a poor start the interior point once got nowhere
def test_clearing_reaches_an_independent_optimum(name: str, seed: int):
    market = draw(seed)
    sale, objective = _posed(market, name, seed)
    allocation = clear(market, goal(name, len(market.demand), seed))
    if not sale.enters.any():
        assert allocation.value == 0
        return
    best = reference(sale.market, objective)
    slack = precision(objective, best)
    assert allocation.bound >= best - slack
    assert allocation.value <= best + slack
    fewest = sale.market.per_task(allocation.parts - allocation.market.free_parts)[sale.enters].min()
    assert allocation.gap <= 2e-5 + 2 / max(fewest, 1e4)  # tiny shares lose more to whole parts


def precision(objective: Objective, best: float) -> float:
    """Give how far off the independent solver may be."""
    return 2e-6 * (objective.weight.sum() if objective.name == "proportional" else abs(best)) + 1e-12


@given(seeds)
def test_the_best_slope_is_best(seed: int):
    """Nothing near it makes the bound smaller."""
    rng = np.random.default_rng(seed)
    market = draw(seed)
    sale = Sale(market)
    objective = OBJECTIVES["proportional"](sale)
    price = clear(market).price * rng.uniform(0.3, 3, sale.left.shape)
    slope = best_slope(sale, objective, price)
    least = bound(sale, objective, price, slope)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert least <= bound(sale, objective, price, slope * factor) + 1e-12 * np.abs(least) + 1e-12


@pytest.mark.slow
@each_goal
@pytest.mark.parametrize("seed", range(150))
def test_a_hundred_and_fifty_larger_markets_agree_with_clarabel(name: str, seed: int):
    market = draw(10**7 + seed, most_tasks=14, most_pools=6)
    sale, objective = _posed(market, name, seed)
    allocation = clear(market, goal(name, len(market.demand), seed))
    if sale.enters.any():
        best = reference(sale.market, objective)
        assert allocation.bound >= best - precision(objective, best)
        assert allocation.gap <= 2e-5
