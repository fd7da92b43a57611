"""From a plan in floats to shares in whole 10^-9 parts that fit, exactly, and keep the floors.

A plan is split in two. The *base* is what floors promise: whole parts, rounded up, taken from the plan's own places
(or, if these do not fit, from a plan that only serves floors). What lies above it is scaled down, pool by pool, until
everything fits, and rounded down. So a floor is never what gives way, and what is lost is what the plan had overfilled.
Only floors that need the last 10^-9 of a pool can lose a part; floors that cannot fit at all are refused.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from apportion.clearing.loads import least_factor, total
from apportion.clearing.sale import Sale
from apportion.core.errors import BadMarket
from apportion.core.units import SHARE, part, whole_down

NEARLY = 1e-6  # of what a task can use
EXACT_PAIRS = 4096  # pools with more pairs than this keep a margin of rounding instead of being counted exactly


class Held:
    """Some pairs of a sale, in their order: those that hold something, or may have to. A plan leaves most pairs empty."""

    def __init__(self, sale: Sale, among: Bool[np.ndarray, " pair"]):
        self.sale, self.market, self.at = sale, sale.market, np.flatnonzero(among)
        self.row = np.searchsorted(self.market.indptr, self.at, "right") - 1
        self.pool = self.market.indices[self.at]

    def per_task(self, x: np.ndarray) -> Float[np.ndarray, " task"]:
        """Sum over each task's pairs."""
        return np.bincount(self.row, weights=x, minlength=len(self.market.demand)).astype(float, copy=False)

    def load(self, x: np.ndarray) -> Float[np.ndarray, "pool resource"]:
        """Give what x of each pair uses."""
        return total(self.row, self.pool, self.market.demand, x, len(self.market.capacity))

    def margin(self, size: np.ndarray) -> np.ndarray:
        """Give more than what adding up the pairs of each pool, to this size, can lose in float64."""
        count = np.bincount(self.pool, minlength=len(size))
        return ((count + 8.0) * 2.0**-52)[:, None] * size

    def overfull(self, parts: Int[np.ndarray, " held"]) -> np.ndarray:
        """Tell which (pool, resource) hold more than their capacity; exact, or on the safe side where pairs are many."""
        used, limit = self.load(parts.astype(float)), self.market.capacity * SHARE
        margin = self.margin(np.maximum(used, limit))
        over = used > limit + margin
        for j, r in np.argwhere((np.abs(used - limit) <= margin) & (used > 0)):
            pairs = np.flatnonzero((self.pool == j) & (parts > 0))
            amounts = self.market.demand[self.row[pairs], r]
            over[j, r] = len(pairs) > EXACT_PAIRS or _exceeds(amounts, parts[pairs], float(self.market.capacity[j, r]))
        return over

    def moved(self, x: np.ndarray, to: Held) -> np.ndarray:
        """Give what x says of each pair of `to`, which has all pairs where x is above 0."""
        out, some = np.zeros(len(to.at), x.dtype), x > 0
        out[np.searchsorted(to.at, self.at[some])] = x[some]
        return out


def repair(
    sale: Sale,
    plan: Float[np.ndarray, " pair"],
    wants: Float[np.ndarray, " task"] | None = None,
    *,
    refill: bool = False,
    reuse: bool = False,
) -> Int[np.ndarray, " pair"]:
    """Give whole parts that fit, free parts included.

    wants: tasks (> 0) that should get at least one part; refill: who lost by scaling down may take what is spare elsewhere;
    reuse: the answer takes the plan's place in memory.
    """
    market = sale.market
    lower, upper = promised(sale)
    held, idle = _held(sale, plan, lower, upper, wants)
    free = np.zeros(len(held.at), np.int64)
    if market.free.any():
        free = np.rint(market.free[held.at] * SHARE).astype(np.int64)
    z = plan[held.at]
    np.maximum(z, 0.0, out=z)
    z *= SHARE
    z[~(sale.usable[held.at] & np.isfinite(z))] = 0.0
    first = np.searchsorted(held.at, market.indptr[:-1][idle])
    z[first] = np.where(sale.usable[held.at[first]], upper[idle], 0.0)  # who wants nothing costs nothing
    had = held.per_task(z)
    to = had > upper * (1 - NEARLY)  # a solver stops just short of all there is, or just beyond
    z *= np.where(to, upper / np.maximum(had, 1.0), 1.0)[held.row]
    least = lower
    if wants is not None:
        bare = (wants > 0) & (upper > 0) & (had < np.diff(market.indptr))  # else some pair holds a whole part
        if bare.any():
            least = np.maximum(lower, (bare & (held.per_task(np.floor(z)) < 1)).astype(np.int64))
    base, extra, room = free, z, upper
    if least.any():
        mine = _base(held, z, least)
        if held.overfull(free + mine).any():
            mine = _base(held, z, lower)
            spent = np.where(
                mine > 0, np.diff(market.indptr)[held.row], 0
            )  # a task's first pair has what rounding left over
            if (held.load(free + mine - spent) > market.capacity * (SHARE * (1 + 1e-7))).any():
                mine = _base(held, floor_plan(sale)[held.at] * SHARE, lower)
            mine = _shaved(held, free, mine, np.zeros_like(mine))  # by rounding alone: both plans fit
            _restore(held, free, mine, lower)
        base, room = free + mine, upper - held.per_task(mine)
        extra = _within(held, np.maximum(z - mine, 0.0), room)
    spare = market.capacity * SHARE - (held.load(base.astype(float)) if base.any() else 0.0)
    spare -= held.margin(market.capacity * SHARE)
    fit = _fit(np.maximum(spare, 0.0), held.load(extra))
    tight = (fit < 1.0).any()
    scaled = np.floor((extra * least_factor(held.row, held.pool, market.demand, fit) if tight else extra) + 1e-3)
    parts = plan.view(np.int64) if reuse else np.empty(len(plan), np.int64)
    parts.fill(0)
    parts[held.at] = base + scaled.astype(np.int64)
    if tight and refill:
        _refill(held, extra, scaled, room, spare, parts)
    every = Held(sale, parts > 0)
    free, base = held.moved(free, every), held.moved(base, every)
    parts[every.at] = free + _shaved(every, free, base - free, parts[every.at] - base)
    return parts


def _held(
    sale: Sale, plan: np.ndarray, lower: np.ndarray, upper: np.ndarray, wants: np.ndarray | None
) -> tuple[Held, np.ndarray]:
    """Give the pairs to look at: what the plan uses or is free, and all that a task may use who must get something.

    Besides, tell who wants nothing but may be served.
    """
    market = sale.market
    idle = (market.demand @ np.ones(market.demand.shape[1]) == 0) & (upper > 0) & (np.diff(market.indptr) > 0)
    uses = plan > 0
    if market.free.any():
        uses |= market.free > 0
    held, needs = Held(sale, uses), (lower > 0) | idle
    if wants is not None:
        needs |= (wants > 0) & (np.bincount(held.row, minlength=len(needs)) == 0)
    return Held(sale, uses | needs[sale.row]) if needs.any() else held, idle


def _within(held: Held, z: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Scale down the tasks that get more than `most`."""
    had = held.per_task(z)
    return z * _fit(most, had)[held.row] if (had > most).any() else z


def promised(sale: Sale) -> tuple[Int[np.ndarray, " task"], Int[np.ndarray, " task"]]:
    """Give the fewest and the most whole parts that each task may buy.

    The fewest are enough for the floor's whole base units: a part more where rounding would lose one.
    """
    market = sale.market
    free = np.zeros(len(market.cap), np.int64)
    if market.free.any():
        free = np.rint(market.per_task(market.free) * SHARE).astype(np.int64)
    upper = np.maximum(np.floor(market.cap * SHARE * (1 + 2.0**-50)).astype(np.int64) - free, 0)
    whole = np.ceil(market.floor * SHARE * (1 - 2.0**-50)).astype(np.int64)
    floored = np.flatnonzero(market.floor > 0)
    demand = market.demand[floored]
    demand = np.where((demand == np.floor(demand)) & (demand < 2.0**53), demand, 0.0)
    promise = whole_down(demand * market.floor[floored, None])
    whole[floored] += (part(demand.astype(np.int64), whole[floored, None]) < promise).any(axis=1)
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
    found = linprog(cost, loads, np.zeros(size), serve, sale.lower[rows], method="highs")
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
    """Tell which (pool, resource) hold more than their capacity."""
    held = Held(sale, parts > 0)
    return held.overfull(parts[held.at])


def _exceeds(amount: np.ndarray, parts: np.ndarray, capacity: float) -> bool:
    """Compare sum(amount * parts) with capacity * SHARE in whole numbers, whatever the floats."""
    mantissa, exponent = np.frexp(np.append(amount, capacity))
    whole = (mantissa * 2.0**53).astype(np.int64)
    shift = np.where(whole > 0, exponent - exponent[whole > 0].min(), 0)
    counts = [int(k) << int(s) for k, s in zip(whole, shift, strict=True)]
    return sum(k * int(x) for k, x in zip(counts[:-1], parts, strict=True)) > counts[-1] * SHARE


def _base(held: Held, z: np.ndarray, least: np.ndarray) -> Int[np.ndarray, " held"]:
    """Give `least` whole parts to each task, where the plan puts it; without a plan, in its best pool."""
    base = np.zeros(len(z), np.int64)
    if not least.any():
        return base
    keep = np.flatnonzero((least > 0)[held.row] & held.sale.usable[held.at])
    row = held.row[keep]
    plan = z[keep] + 1e-12 * held.market.value[held.at[keep]]
    whole = np.bincount(row, weights=plan, minlength=len(least))
    base[keep] = np.floor(plan * (least[row] / whole[row]) * (1 - 1e-15)).astype(np.int64)
    missing = least - np.bincount(row, weights=base[keep], minlength=len(least)).astype(np.int64)
    order = keep[np.lexsort((-plan, row))]
    first = order[np.append(True, held.row[order][1:] != held.row[order][:-1])]
    base[first] += missing[held.row[first]]
    return base


def _fit(spare: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Give the factor, at most 1, at which a load fits what is spare."""
    with np.errstate(all="ignore"):
        return np.where(load > spare, spare / load, 1.0)


def _refill(
    held: Held, extra: np.ndarray, scaled: np.ndarray, room: np.ndarray, spare: np.ndarray, parts: np.ndarray
) -> None:
    """Let those who lost most by scaling down, for their size, take first what other pools can spare: into parts."""
    from apportion.clearing import kernels  # compiled: small plans come from a solver that leaves nothing to refill

    sale, market = held.sale, held.market
    before, after = held.per_task(extra), held.per_task(scaled)
    lost = np.flatnonzero(after < before * (1 - 1e-9))
    left = np.floor(100.0 * after[lost] / before[lost]).astype(
        np.int8
    )  # by whole per cents: few trade places in memory
    lost = lost[np.argsort(left, kind="stable")]
    spare = np.maximum(spare - held.load(scaled), 0.0)
    kernels.refill(
        lost, market.indptr, market.indices, sale.usable, sale.value, market.demand, room - after, spare, parts
    )


def _shaved(held: Held, free: np.ndarray, base: np.ndarray, extra: np.ndarray) -> Int[np.ndarray, " held"]:
    """Take parts away, above the base first, until nothing is overfull; give what is left above what is free."""
    for attempt in range(60):
        over = held.overfull(free + base + extra)
        if not over.any():
            break
        demand = held.market.demand[held.row]
        fills = (over[held.pool] & (demand > 0)).any(axis=1)
        spare = np.bincount(held.pool[fills], weights=extra[fills], minlength=len(over)) > 0
        keep = 1.0 - 2.0 ** (attempt - 50)
        for parts, where in ((extra, fills & spare[held.pool]), (base, fills & ~spare[held.pool])):
            less = np.minimum(np.floor(parts[where] * keep), parts[where] - 1)
            parts[where] = np.maximum(less, 0).astype(np.int64)
    return base + extra


def _restore(held: Held, free: np.ndarray, base: np.ndarray, lower: np.ndarray) -> None:
    """Give back, in pools that have room, what rounding took from floors."""
    market = held.market
    short = lower - held.per_task(base).astype(np.int64)
    if not (short > 0).any():
        return
    spare = market.capacity * SHARE * (1 - 1e-14) - held.load((free + base).astype(float))
    for e in np.flatnonzero((short > 0)[held.row] & held.sale.usable[held.at]):
        i, j = held.row[e], held.pool[e]
        wants = market.demand[i] > 0
        room = spare[j, wants] / market.demand[i, wants] - 1
        more = min(int(short[i]), int(min(room.min(), SHARE)))
        if more > 0:
            base[e] += more
            short[i] -= more
            spare[j] -= more * market.demand[i]


def _task(sale: Sale, i: int) -> str:
    return f"task {i} ({sale.market.tasks[i]!r})" if sale.market.tasks else f"task {i}"
