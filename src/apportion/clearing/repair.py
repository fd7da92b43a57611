"""From a plan in floats to shares in whole 10^-9 parts that fit, exactly, and keep the floors.

A plan is split in two. The *base* is what floors promise: whole parts, rounded up, taken from the plan's own places
(or, if these do not fit, from a plan that only serves floors). What lies above it is scaled down, pool by pool, until
everything fits, and rounded down. So a floor is never what gives way, and what is lost is what the plan had overfilled.
Only floors that need the last 10^-9 of a pool can lose a part; floors that cannot fit at all are refused.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from apportion.clearing.loads import least_factor
from apportion.clearing.loads import total as load
from apportion.clearing.sale import Sale
from apportion.core.errors import BadMarket
from apportion.core.units import SHARE, part, whole_down

NEARLY = 1e-6  # of what a task can use
EXACT_PAIRS = 4096  # pools with more pairs than this keep a margin of rounding instead of being counted exactly


def repair(
    sale: Sale,
    plan: Float[np.ndarray, " pair"],
    wants: Float[np.ndarray, " task"] | None = None,
    *,
    refill: bool = False,
) -> Int[np.ndarray, " pair"]:
    """Give whole parts that fit, free parts included.

    wants: tasks (> 0) that should get at least one part; refill: who lost by scaling down may take what is spare elsewhere.
    """
    market = sale.market
    free = market.free_parts
    lower, upper = promised(sale)
    z = np.maximum(plan, 0.0)
    z *= SHARE
    if not (can := sale.usable & np.isfinite(z)).all():
        z[~can] = 0.0
    idle = ~(market.demand > 0).any(axis=1) & (upper > 0) & (np.diff(market.indptr) > 0)
    first = market.indptr[:-1][idle]  # who wants nothing is served anywhere, at no cost
    z[first] = np.where(sale.usable[first], upper[idle], 0.0)
    z = _within(sale, z, upper)
    total = market.per_task(z)
    if (nearly := (total > upper * (1 - NEARLY)) & (total < upper)).any():  # a solver stops just short of all there is
        z = np.where(nearly[sale.row], z * (upper / np.maximum(total, 1.0))[sale.row], z)
    least = lower
    if wants is not None:
        bare = (wants > 0) & (upper > 0) & (total < np.diff(market.indptr))  # else some pair holds a whole part
        if bare.any():
            least = np.maximum(lower, (bare & (market.per_task(np.floor(z)) < 1)).astype(np.int64))
    base, extra, room = free, z, upper
    if least.any():
        mine = _base(sale, z, least)
        if overfull(sale, free + mine).any():
            mine = _base(sale, z, lower)
            if (load(market, (free + mine) / SHARE) > market.capacity * (1 + 1e-7)).any():
                mine = _base(sale, floor_plan(sale) * SHARE, lower)
            mine = _shave(sale, free, mine, np.zeros_like(mine))  # by rounding alone: both plans fit
            _restore(sale, free, mine, lower)
        base, room = free + mine, upper - market.per_task(mine)
        extra = _within(sale, np.maximum(z - mine, 0.0), room)
    spare = market.capacity * SHARE - (load(market, base) if base.any() else 0.0)
    spare -= _margin(sale, market.capacity * SHARE)
    fit = _fit(np.maximum(spare, 0.0), load(market, extra))
    if (fit < 1.0).any():
        scaled = extra * least_factor(market, fit)
        extra = _refilled(sale, extra, scaled, room, spare) if refill else scaled
    return free + _shave(sale, free, base - free, np.floor(extra + 1e-3).astype(np.int64))


def _within(sale: Sale, z: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Scale down the tasks that get more than `most`."""
    total = sale.market.per_task(z)
    return z * _fit(most, total)[sale.row] if (total > most).any() else z


def promised(sale: Sale) -> tuple[Int[np.ndarray, " task"], Int[np.ndarray, " task"]]:
    """Give the fewest and the most whole parts that each task may buy.

    The fewest are enough for the floor's whole base units: a part more where rounding would lose one.
    """
    market = sale.market
    free = np.rint(market.per_task(market.free) * SHARE).astype(np.int64)
    upper = np.maximum(np.floor(market.cap * SHARE * (1 + 2.0**-50)).astype(np.int64) - free, 0)
    whole = np.ceil(market.floor * SHARE * (1 - 2.0**-50)).astype(np.int64)
    demand = np.where((market.demand == np.floor(market.demand)) & (market.demand < 2.0**53), market.demand, 0.0)
    floored = np.flatnonzero(market.floor > 0)
    promise = whole_down(demand[floored] * market.floor[floored, None])
    whole[floored] += (part(demand[floored].astype(np.int64), whole[floored, None]) < promise).any(axis=1)
    return np.clip(whole - free, 0, upper), upper


def floor_plan(sale: Sale) -> Float[np.ndarray, " pair"]:
    """Give a plan that serves every floor, leaving the fullest pool as empty as can be; refuse if there is none."""
    market = sale.market
    lower, _ = promised(sale)
    rows = np.flatnonzero(lower > 0)
    keep = np.flatnonzero(sale.usable & (lower > 0)[sale.row])
    stuck = np.setdiff1d(rows, sale.row[keep])
    if len(stuck):
        i = int(stuck[0])
        raise BadMarket(
            f"floor of {_task(sale, i)} is {market.floor[i]:.6g}, and none of its pools has anything left:"
            " lower the floor or free a pool."
        )
    plan = np.zeros(len(sale.row))
    if not len(rows):
        return plan
    row, pool = sale.row[keep], market.indices[keep]
    resources = market.demand.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        amount = np.where(market.demand[row] > 0, market.demand[row] / sale.left[pool], 0.0)
    e, r = np.nonzero(amount)
    lines = pool[e] * resources + r
    size = market.capacity.size
    loads = csr_matrix(
        (
            np.append(amount[e, r], -np.ones(size)),
            (np.append(lines, np.arange(size)), np.append(e, np.full(size, len(keep)))),
        ),
        shape=(size, len(keep) + 1),
    )
    serve = csr_matrix(
        (np.ones(len(keep)), (np.searchsorted(rows, row), np.arange(len(keep)))), (len(rows), len(keep) + 1)
    )
    cost = np.zeros(len(keep) + 1)
    cost[-1] = 1.0
    found = linprog(cost, loads, np.zeros(size), serve, lower[rows] / SHARE, method="highs")
    if found.status != 0 or found.x[-1] > 1 + 1e-9:
        full = np.argmin(found.ineqlin.marginals) if found.status == 0 else 0
        j, r = divmod(int(full), resources)
        pool_name = repr(market.pools[j]) if market.pools else j
        resource = market.resources[r] if market.resources else f"resource {r}"
        over = f"{100 * (found.x[-1] - 1):.3g} % over" if found.status == 0 else "over"
        raise BadMarket(
            f"floors cannot all be kept: {resource} of pool {pool_name} would be {over} its capacity. Lower floors there."
        )
    plan[keep] = np.maximum(found.x[:-1], 0.0)
    return plan


def overfull(sale: Sale, parts: Int[np.ndarray, " pair"]) -> np.ndarray:
    """Tell which (pool, resource) hold more than their capacity; exact, or on the safe side where pairs are many."""
    market = sale.market
    used, limit = load(market, parts.astype(float)), market.capacity * SHARE
    margin = _margin(sale, np.maximum(used, limit))
    over = used > limit + margin
    for j, r in np.argwhere((np.abs(used - limit) <= margin) & (used > 0)):
        pairs = np.flatnonzero((market.indices == j) & (parts > 0))
        amounts = market.demand[sale.row[pairs], r]
        over[j, r] = len(pairs) > EXACT_PAIRS or _exceeds(amounts, parts[pairs], float(market.capacity[j, r]))
    return over


def _margin(sale: Sale, size: np.ndarray) -> np.ndarray:
    """Give more than what adding up the pairs of each pool, to this size, can lose in float64."""
    count = np.bincount(sale.market.indices, minlength=len(size))
    return ((count + 8.0) * 2.0**-52)[:, None] * size


def _exceeds(amount: np.ndarray, parts: np.ndarray, capacity: float) -> bool:
    """Compare sum(amount * parts) with capacity * SHARE in whole numbers, whatever the floats."""
    mantissa, exponent = np.frexp(np.append(amount, capacity))
    whole = (mantissa * 2.0**53).astype(np.int64)
    shift = np.where(whole > 0, exponent - exponent[whole > 0].min(), 0)
    counts = [int(k) << int(s) for k, s in zip(whole, shift, strict=True)]
    return sum(k * int(x) for k, x in zip(counts[:-1], parts, strict=True)) > counts[-1] * SHARE


def _base(sale: Sale, z: np.ndarray, least: np.ndarray) -> Int[np.ndarray, " pair"]:
    """Give `least` whole parts to each task, where the plan puts it; without a plan, in its best pool."""
    market, row = sale.market, sale.row
    base = np.zeros(len(z), np.int64)
    if not least.any():
        return base
    keep = np.flatnonzero((least > 0)[row] & sale.usable)
    at = row[keep]
    plan = z[keep] + 1e-12 * market.value[keep]
    total = np.bincount(at, weights=plan, minlength=len(least))
    base[keep] = np.floor(plan * (least[at] / total[at]) * (1 - 1e-15)).astype(np.int64)
    missing = least - np.bincount(at, weights=base[keep], minlength=len(least)).astype(np.int64)
    order = keep[np.lexsort((-plan, at))]
    first = order[np.append(True, row[order][1:] != row[order][:-1])]
    base[first] += missing[row[first]]
    return base


def _fit(spare: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Give the factor, at most 1, at which a load fits what is spare."""
    with np.errstate(all="ignore"):
        return np.where(load > spare, spare / load, 1.0)


def _refilled(sale: Sale, extra: np.ndarray, scaled: np.ndarray, room: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """Let those who lost most by scaling down, for their size, take first what other pools can spare."""
    from apportion.clearing import kernels  # compiled: small plans come from a solver that leaves nothing to refill

    market = sale.market
    before, after = market.per_task(extra), market.per_task(scaled)
    lost = np.flatnonzero(after < before * (1 - 1e-9))
    lost = lost[np.argsort(after[lost] / before[lost], kind="stable")]
    spare = np.maximum(spare - load(market, scaled), 0.0)
    kernels.refill(
        lost, market.indptr, market.indices, sale.usable, sale.value, market.demand, room - after, spare, scaled
    )
    return scaled


def _shave(sale: Sale, free: np.ndarray, base: np.ndarray, extra: np.ndarray) -> Int[np.ndarray, " pair"]:
    """Take parts away, above the base first, until nothing is overfull."""
    for attempt in range(60):
        over = overfull(sale, free + base + extra)
        if not over.any():
            break
        demand = sale.market.demand[sale.row]
        fills = (over[sale.market.indices] & (demand > 0)).any(axis=1)
        spare = np.bincount(sale.market.indices[fills], weights=extra[fills], minlength=len(over)) > 0
        keep = 1.0 - 2.0 ** (attempt - 50)
        for parts, where in ((extra, fills & spare[sale.market.indices]), (base, fills & ~spare[sale.market.indices])):
            less = np.minimum(np.floor(parts[where] * keep), parts[where] - 1)
            parts[where] = np.maximum(less, 0).astype(np.int64)
    return base + extra


def _restore(sale: Sale, free: np.ndarray, base: np.ndarray, lower: np.ndarray) -> None:
    """Give back, in pools that have room, what rounding took from floors."""
    market = sale.market
    short = lower - market.per_task(base).astype(np.int64)
    if not (short > 0).any():
        return
    spare = market.capacity * SHARE * (1 - 1e-14) - load(market, (free + base).astype(float))
    for i in np.flatnonzero(short > 0):
        wants = market.demand[i] > 0
        for e in range(market.indptr[i], market.indptr[i + 1]):
            room = spare[market.indices[e], wants] / market.demand[i, wants] - 1
            more = min(int(short[i]), int(min(room.min(), SHARE)) if sale.usable[e] else 0)
            if more > 0:
                base[e] += more
                short[i] -= more
                spare[market.indices[e]] -= more * market.demand[i]


def _task(sale: Sale, i: int) -> str:
    return f"task {i} ({sale.market.tasks[i]!r})" if sale.market.tasks else f"task {i}"
