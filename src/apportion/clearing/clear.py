"""The door: a Market in, an Allocation out, whatever its size.

    solve     prices and a plan, in floats                   interior
    repair    whole shares that fit and keep every floor     repair
    certify   what any allocation can reach at most          certificate

The gap is between the repaired shares and a bound that holds for any prices, so it is true however the solver fared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from apportion.clearing import interior, leximin
from apportion.clearing.certificate import tightest
from apportion.clearing.objectives import Objective, pose
from apportion.clearing.repair import floor_plan, repair
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market
from apportion.core.units import SHARE


def clear(
    market: Market, objective: str | Callable[[Sale], Objective] = "proportional", gap: float = 1e-3
) -> Allocation:
    """Give shares and prices at which everything fits, with a certified gap.

    objective: proportional, welfare, maxmin, leximin, drf, or `experience(kind, curve)`.
    `gap` is what will do; the answer tells its own. Raises BadMarket if floors cannot be kept.
    """
    if not gap > 0:
        raise BadInput(f"gap is {gap}: it must be above 0; 0.001 asks for 0.1 %.")
    started = time.perf_counter()
    sale, goal = pose(market, objective)
    if (sale.lower > 0).any() and not _floors_fit_plainly(sale):
        floor_plan(sale)
    solve = leximin.solve if goal.name in ("leximin", "drf") else interior.solve
    point = solve(sale, goal, tolerance=min(1e-9, 1e-3 * gap))
    parts = repair(sale, point.share, goal.weight)
    cleared = certify(sale, goal, parts, point.price, slopes=(point.slope,), steps=point.steps)
    money, worth = sale.left * point.price, float(point.slope @ sale.bought(cleared.share))
    plain = np.where(money < 1e-8 * worth, 0.0, point.price)
    if (plain < point.price).any():  # what an interior point asks for an idle pool is next to nothing: make it nothing
        plainer = certify(sale, goal, parts, plain, slopes=(point.slope,), steps=point.steps)
        if plainer.bound - cleared.bound <= 1e-7 * worth:
            cleared = plainer
    return replace(cleared, seconds=time.perf_counter() - started)


def certify(
    sale: Sale,
    goal: Objective,
    parts: np.ndarray,
    price: np.ndarray,
    *,
    slopes: tuple[np.ndarray, ...] = (),
    steps: int = 0,
) -> Allocation:
    """Give the Allocation of these whole parts and prices with the best bound that the prices prove."""
    share = parts / SHARE
    value = goal.value(sale.bought(share))
    top = tightest(sale, goal, price, value, slopes)
    return Allocation(sale.market, share, price, goal.name, value, top, goal.gap(value, top), steps)


def _floors_fit_plainly(sale: Sale) -> bool:
    """Tell whether serving every floor in one pool each, the one it fills least, fits: then there is nothing to refuse."""
    market = sale.market
    with np.errstate(divide="ignore", invalid="ignore"):
        fill = np.where(market.demand[sale.row] > 0, market.demand[sale.row] / sale.left[market.indices], 0.0).max(
            axis=1
        )
    fill = np.where(sale.usable, fill, np.inf)
    rows = np.flatnonzero(sale.lower > 0)
    order = np.lexsort((fill, sale.row))
    begin = market.indptr[:-1][rows]
    if (np.diff(market.indptr)[rows] == 0).any():
        return False
    pairs = order[begin]
    plan = np.zeros(len(fill))
    plan[pairs] = sale.lower[rows]
    return bool(sale.usable[pairs].all() and (market.load(plan) <= sale.left * (1 + 1e-9)).all())
