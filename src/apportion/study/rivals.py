"""Two ways to share a market that one would write in a day, compiled: what clearing must beat before any solver.

Proportional response (Wu & Zhang 2007; Zhang 2011; for goods used together, Cheung, Cole & Tao 2018): every task spreads its
weight over its pools as bids, and next time in proportion to what each pool gave it; every price follows the load. A task that
would buy more than its cap pays a rent q beside the price. The bound is weak duality at these prices, task by task

    sum C p + sum_i [ cap q + w log(w / min_j ((c + q) / v)) - w ]      for any q >= 0, c what a whole share costs

so it stops as soon as it can prove the gap asked for. Greedy hands out twentieths of a demand, the best next twentieth first,
and has no prices.
"""

from __future__ import annotations

import heapq
from typing import no_type_check

import numpy as np
from jaxtyping import Float

from apportion.clearing.kernels import compiled
from apportion.core.market import Market

EVERY = 10  # sweeps between two looks at the gap
PIECES = 20  # greedy's, of a task's demand
WELFARE, PROPORTIONAL, MAXMIN = 0, 1, 2


def proportional_response(
    market: Market, gap: float, sweeps: int = 20_000
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, "pool resource"]]:
    """Give shares, not yet repaired, and prices, once they prove the gap for proportional fairness or sweeps are spent."""
    part = market.demand.sum(axis=0)
    price = np.where(part > 0, market.weight.sum() / np.maximum(market.capacity.sum(axis=0), 1e-300), 0.0)
    price = np.tile(price / len(part), (len(market.capacity), 1))
    bid = (market.weight / np.maximum(np.diff(market.indptr), 1))[market.row]
    x, load, total = np.zeros(len(bid)), np.zeros(price.shape), market.weight.sum()
    args = (market.indptr, market.indices, market.value, market.demand, market.weight, market.cap)
    for k in range(1, sweeps + 1):
        rent = _sweep(*args, price, bid, x, load)
        if k % EVERY == 0:
            over = np.maximum((load / market.capacity).max(axis=1), 1.0)
            worth = _worth(market.indptr, market.indices, market.value, market.weight, x, over)
            if np.expm1((float((price * market.capacity).sum()) + rent - worth) / total) <= gap:
                break
        price *= load / market.capacity
    return x, price


@compiled
@no_type_check
def _sweep(indptr, pool, value, demand, weight, cap, price, bid, x, load):
    """Let every task buy by its bids, and bid again; give what tasks add to the bound. Writes bid, x and load."""
    load[:] = 0.0
    bound, resources = 0.0, demand.shape[1]
    cost = np.empty((indptr[1:] - indptr[:-1]).max())
    for i in range(len(demand)):
        start, stop, q, w = indptr[i], indptr[i + 1], 0.0, weight[i]
        for e in range(start, stop):
            c = 0.0
            for r in range(resources):
                c += demand[i, r] * price[pool[e], r]
            cost[e - start] = c
        for _ in range(30):  # Newton from below: what would be bought is convex in the rent
            bought, slope = 0.0, 0.0
            for e in range(start, stop):
                a = 1.0 / (cost[e - start] + q)
                bought += bid[e] * a
                slope += bid[e] * a * a
            if bought <= cap[i] * (1.0 + 1e-12):
                break
            q += (bought - cap[i]) / slope
        least, served = np.inf, 0.0
        for e in range(start, stop):
            each = (cost[e - start] + q) / value[e]
            least = min(least, each)
            x[e] = bid[e] / (cost[e - start] + q)
            served += value[e] * x[e]
            for r in range(resources):
                load[pool[e], r] += demand[i, r] * x[e]
        again = 0.0
        for e in range(start, stop):
            bid[e] = value[e] * x[e]
            again += bid[e]
        for e in range(start, stop):
            bid[e] *= w / again
        best = cap[i] * q + w * np.log(w / least) - w
        other = 0.0  # the rent at which the cheapest pool alone is filled: often proves more
        for _ in range(3):
            least, at = np.inf, 0.0
            for e in range(start, stop):
                if (cost[e - start] + other) / value[e] < least:
                    least, at = (cost[e - start] + other) / value[e], cost[e - start]
            best = min(best, cap[i] * other + w * np.log(w / least) - w)
            other = max(w / cap[i] - at, 0.0) if cap[i] > 0.0 else 0.0
        bound += best
    return bound


@compiled
@no_type_check
def _worth(indptr, pool, value, weight, x, over):
    """Give sum w log u after each pool's shares are scaled down by its overload."""
    out = 0.0
    for i in range(len(weight)):
        u = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            u += value[e] * x[e] / over[pool[e]]
        out += weight[i] * np.log(u)
    return out


def greedy(market: Market, objective: str) -> Float[np.ndarray, " pair"]:
    """Give shares that fit: again and again the next twentieth that gains most for what it takes of the fullest resource."""
    kind = {"welfare": WELFARE, "proportional": PROPORTIONAL, "maxmin": MAXMIN}[objective]
    part = market.demand / market.capacity.sum(axis=0)
    return _greedy(
        market.indptr,
        market.indices,
        market.value,
        market.demand,
        market.weight,
        market.cap,
        part.max(axis=1),
        market.capacity.copy(),
        kind,
    )


@compiled
@no_type_check
def _greedy(indptr, pool, value, demand, weight, cap, size, left, kind):
    x, u, resources = np.zeros(len(pool)), np.zeros(len(weight)), demand.shape[1]
    queue = [(-np.inf, i) for i in range(len(weight))]  # everyone is looked at once, then by gain
    while len(queue) > 0:
        known, i = heapq.heappop(queue)
        piece, given = cap[i] / PIECES, 0.0
        best, most = -1, 0.0
        for e in range(indptr[i], indptr[i + 1]):
            given += x[e]
            fits = True
            for r in range(resources):
                fits = fits and demand[i, r] * piece <= left[pool[e], r]
            if fits and value[e] > most:
                best, most = e, value[e]
        if best < 0 or given + 0.5 * piece > cap[i]:
            continue
        if kind == WELFARE:
            gain = weight[i] * most / size[i]
        elif kind == PROPORTIONAL:
            gain = weight[i] * np.log1p(most * piece / (u[i] + 1e-9)) / (size[i] * piece)
        else:
            gain = -u[i] / weight[i]
        if -gain > known and len(queue) > 0 and -gain > queue[0][0]:
            heapq.heappush(queue, (-gain, i))  # others gain more by now
            continue
        x[best] += piece
        u[i] += most * piece
        for r in range(resources):
            left[pool[best], r] -= demand[i, r] * piece
        heapq.heappush(queue, (-gain if kind == WELFARE else known, i))
    return x
