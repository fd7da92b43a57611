"""A bound must hold for whatever prices, and against solvers that share no code with ours."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import draw

from apportion.clearing.certificate import best_slope, bound
from apportion.clearing.clear import clear
from apportion.clearing.objectives import OBJECTIVES, Proportional
from apportion.clearing.sale import Sale

seeds = st.integers(0, 10**6)


def reference(sale: Sale, objective: Proportional) -> float:
    """Give the optimum by Clarabel, through cvxpy, from the market's own statement."""
    market, row = sale.market, sale.row
    z = cp.Variable(len(row), nonneg=True)
    rows = np.zeros((len(market.demand), len(row)))
    rows[row, np.arange(len(row))] = 1.0
    constraints = [rows @ z <= sale.upper, rows @ z >= sale.lower, z[~sale.usable] == 0]
    for j, r in np.argwhere(sale.left > 0):
        amount = np.where((market.indices == j) & sale.usable, market.demand[row, r] / sale.left[j, r], 0.0)
        if amount.any():
            constraints.append(amount @ z <= 1)
    active = np.flatnonzero(objective.weight > 0)
    worth = cp.sum(
        cp.multiply(
            objective.weight[active] / objective.weight.sum(),
            cp.log(objective.eta * (objective.memory[active] + (rows * market.value)[active] @ z)),
        )
    )
    problem = cp.Problem(cp.Maximize(worth), constraints)
    problem.solve(cp.CLARABEL)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return float(problem.value * objective.weight.sum())


@given(seeds)
def test_no_service_is_worth_more_than_its_conjugate_and_its_price(seed: int):
    """Fenchel and Young's inequality, with equality at the response, for every objective."""
    rng = np.random.default_rng(seed)
    sale = Sale(draw(seed))
    for make in OBJECTIVES.values():
        objective = make.of(sale)
        g = rng.lognormal(0, 2, len(sale.reach)) * max(objective.weight.max(), 1e-9)
        u = np.maximum(rng.random(len(sale.reach)), 1e-6) * sale.reach
        conjugate = objective.conjugate(g, sale.reach)
        assert objective.value(u) <= (conjugate + g * u).sum() + 1e-9 * (1 + np.abs(conjugate).sum())
        answer = objective.respond(g, sale.reach)
        if np.isfinite(objective.value(answer)):
            assert objective.value(answer) == pytest.approx((conjugate + g * answer).sum(), rel=1e-9, abs=1e-9)


@given(seeds, st.floats(-3, 3))
def test_any_prices_bound_an_independent_optimum(seed: int, log_scale: float):
    """With floors, caps, memory, free shares and random p, g and phi."""
    rng = np.random.default_rng(seed)
    sale = Sale(draw(seed))
    objective = Proportional.of(sale)
    if not sale.enters.any():
        return
    best = reference(sale, objective)
    slack = 1e-6 * objective.weight.sum()
    price = np.where(sale.left > 0, rng.random(sale.left.shape) / np.maximum(sale.left, 1e-300), 0.0)
    price *= objective.weight.sum() * 10**log_scale
    price[rng.random(price.shape) < 0.3] = 0
    slope, rent = (rng.lognormal(0, 2, len(sale.upper)) * objective.weight.max() for _ in range(2))
    assert bound(sale, objective, price, slope, rent) >= best - slack
    assert bound(sale, objective, price, slope) >= best - slack
    tightest = bound(sale, objective, price, best_slope(sale, objective, price))
    assert tightest >= best - slack
    assert tightest <= bound(sale, objective, price, slope) + 1e-9 * np.abs(tightest)


@given(seeds)
def test_clearing_reaches_an_independent_optimum(seed: int):
    market = draw(seed)
    sale = Sale(market)
    allocation = clear(market)
    objective = Proportional.of(sale)
    if not sale.enters.any():
        assert allocation.value == 0
        return
    best = reference(sale, objective)
    assert allocation.bound >= best - 1e-6 * objective.weight.sum()
    assert allocation.value == pytest.approx(best, abs=2e-5 * objective.weight.sum())
    assert allocation.gap <= 2e-5  # tiny shares lose more to whole parts


@given(seeds)
def test_the_best_slope_is_best(seed: int):
    """Nothing near it makes the bound smaller."""
    rng = np.random.default_rng(seed)
    market = draw(seed)
    sale = Sale(market)
    objective = Proportional.of(sale)
    price = clear(market).price * rng.uniform(0.3, 3, sale.left.shape)
    slope = best_slope(sale, objective, price)
    least = bound(sale, objective, price, slope)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert least <= bound(sale, objective, price, slope * factor) + 1e-12 * np.abs(least) + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(400))
def test_four_hundred_markets_agree_with_clarabel(seed: int):
    market = draw(10**7 + seed, most_tasks=14, most_pools=6)
    sale = Sale(market)
    allocation = clear(market)
    if sale.enters.any():
        objective = Proportional.of(sale)
        best = reference(sale, objective)
        assert allocation.bound >= best - 1e-6 * objective.weight.sum()
        assert allocation.gap <= 2e-5
