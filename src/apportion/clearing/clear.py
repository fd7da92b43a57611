"""The door: a Market in, an Allocation out, whatever its size.

    solve     prices and a plan, in floats                   interior
    repair    whole shares that fit and keep every floor     repair
    certify   what any allocation can reach at most          certificate

The gap is between the repaired shares and a bound that holds for any prices, so it is true however the solver fared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from apportion.clearing import interior, leximin
from apportion.clearing.certificate import certify
from apportion.clearing.maxmin import Maxmin
from apportion.clearing.objectives import Objective, pose
from apportion.clearing.repair import floor_plan, overfull, promised, repair
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market
from apportion.core.units import SHARE

LARGE = 3000  # pairs times resources: from here on compiled passes are worth their import
EXACT = 1e-5  # a gap below it, as a part of what this round weighs (eta), is the interior point's
MOST_PRICES = 1500  # beyond, an interior point costs more than anyone would wait for


def clear(
    market: Market,
    objective: str | Callable[[Sale], Objective] = "proportional",
    gap: float = 1e-3,
    warm: Allocation | Float[np.ndarray, "pool resource"] | None = None,
    threads: int = 1,
) -> Allocation:
    """Give shares and prices at which everything fits, with a certified gap.

    objective: proportional, welfare, maxmin, leximin, drf, or `experience(kind, curve)`.
    gap: what will do; the answer tells its own.
    warm: the last answer, or prices. While the last shares still fit and will do, nothing moves.
    threads: how many of ours pass over the tasks of a large market.
    Raises BadMarket if floors cannot be kept.
    """
    if not gap > 0:
        raise BadInput(f"gap is {gap}: it must be above 0; 0.001 asks for 0.1 %.")
    if threads < 1:
        raise BadInput(f"threads is {threads}: it takes at least 1.")
    started = time.perf_counter()
    sale, goal = pose(market, objective)
    prices = warm.price if isinstance(warm, Allocation) else warm
    if prices is not None and prices.shape != market.capacity.shape:
        raise BadInput(f"warm prices have shape {prices.shape}, not (pools, resources) = {market.capacity.shape}.")
    found = _kept(sale, goal, gap, warm) if isinstance(warm, Allocation) else None
    if found is None:
        found = _solved(sale, goal, gap, prices, threads)
    return replace(found, seconds=time.perf_counter() - started)


def _solved(sale: Sale, goal: Objective, gap: float, prices: np.ndarray | None, threads: int) -> Allocation:
    if (sale.lower > 0).any() and not _floors_fit_plainly(sale):
        floor_plan(sale)  # refuses by name
    found = None
    if gap >= EXACT * sale.market.eta and len(sale.value) * sale.left.shape[1] >= LARGE:
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            found = _quickly(sale, goal, gap, prices, threads, pool.map if pool else map)
    if found is None or (found.gap > gap and sale.left.size <= MOST_PRICES):
        exact = _exactly(sale, goal, gap)
        found = exact if found is None or not found.gap <= exact.gap else found
    return found


def _kept(sale: Sale, goal: Objective, gap: float, last: Allocation) -> Allocation | None:
    """Give the last shares again if they still fit, keep floors and caps, and prove to be within the gap."""
    market, before = sale.market, last.market
    same = last.objective == goal.name and np.array_equal(market.indptr, before.indptr)
    if not (same and np.array_equal(market.indices, before.indices)):
        return None
    parts, free = last.parts, market.free_parts
    bought, (lower, upper) = market.per_task(parts - free), promised(sale)
    if (parts < free).any() or (bought < lower).any() or (bought > upper).any() or overfull(sale, parts).any():
        return None
    found = _allocation(sale, goal, parts, interior.Point(last.share, last.price, None, 0))
    return found if found.gap <= gap else None


def _quickly(
    sale: Sale, goal: Objective, gap: float, prices: np.ndarray | None, threads: int, each: Callable
) -> Allocation | None:
    """Answer by Newton on smoothed prices; None where the objective has no such pass."""
    from apportion.clearing import newton, passes  # compiled: small markets never wait for it

    over = passes.passes(sale, goal, threads, each)
    if over is None:
        return None
    state, best = newton.Newton(over), None
    if prices is None or not prices.any():
        state.begin(over, gap)
    else:
        state.resume(over, prices, gap)
    for ask in (0.95, 0.6, 0.3):  # whole parts and filling up cost a little of what a plan promises
        point = newton.solve(sale, over, state, ask * gap)
        parts = repair(sale, point.share, goal.weight if goal.needy else None, refill=True, reuse=True)
        found = _allocation(sale, goal, parts, point)
        if best is None or found.gap < best.gap:
            best = found
        if best.gap <= gap:
            break
    return best


def _exactly(sale: Sale, goal: Objective, gap: float) -> Allocation:
    """Answer by the interior point."""
    if isinstance(goal, Maxmin) and goal.name != "maxmin":
        point = leximin.solve(sale, goal, tolerance=min(1e-9, 1e-3 * gap))
    else:
        point = interior.solve(sale, goal, tolerance=min(1e-9, 1e-3 * gap))
    parts = repair(sale, point.share, goal.weight if goal.needy else None)
    found = _allocation(sale, goal, parts, point)
    money, worth = sale.left * point.price, float(point.slope @ sale.bought(found.share))
    if (small := (money < 1e-8 * worth) & (money > 0)).any():  # next to nothing, for an idle pool: make it nothing
        plain = _allocation(sale, goal, parts, replace(point, price=np.where(small, 0.0, point.price)))
        if plain.bound - found.bound <= 1e-7 * worth:
            return plain
    return found


def _allocation(sale: Sale, goal: Objective, parts: np.ndarray, point: interior.Point) -> Allocation:
    """Give the Allocation of these whole parts and a point's prices, with the best bound that they prove."""
    share, slopes = parts / SHARE, () if point.slope is None else (point.slope,)
    proof = certify(sale, goal, share, point.price, slopes, point.bound)
    return Allocation(sale.market, share, point.price, goal.name, **proof, steps=point.steps)


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
