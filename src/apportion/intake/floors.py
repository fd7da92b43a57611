"""Floors in pools: which fit, and who gives way when they do not.

Floors come first: they keep programs alive, and whoever wrote them was told at load that they fit. Beside them stand the free
shares of guarantees. Where both cannot be had, free shares give way, each keeping the same part of what it
holds beyond the floors; settlement then pays their owners as donors. Where floors alone do not fit (a pool was lost, or a
surge raised one resource and not another), they shrink:

    class by class, the highest priority first; inside a class max-min: each keeps the same part of its promise, except
    those who need nothing of what has run out, who keep more; a resource spent on one class is closed to the lower ones

One pool is counted out exactly, in whole numbers. With several, a floor may be split in many ways: a few cheap splits are
tried first, then a linear program (HiGHS) finds one or proves that there is none, and its answer is counted out
exactly in the same way. Where the program would be too large for a round, the last cheap split must do: what is kept fits
and classes keep their order, but a class may keep less than it could (0.39 of its promise for 0.45, the worst of it 0.26
for 0.41, at 10,000 tasks in 100 pools that hold half of what was promised).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import linprog
from scipy.sparse import coo_array

from apportion.core.units import SHARE
from apportion.intake.fill import Count, Groups, fill, trim, whole_parts

TRIES = 8  # cheap splits before a linear program
EXACT = 1e-9  # tolerance of the linear programs, relative to capacity
SLACK = 1e-7  # what one program leaves the next, so that rounding never makes it infeasible
LARGE = 5000  # columns from which the interior point is faster (3x at 35,000)
MOST = 50_000  # columns beyond which a program would take longer than a round: the cheap splits must do
BOTTLENECKS = 50  # resolved one by one inside a class; what is left after them shares one level


@dataclass(frozen=True, slots=True)
class Overload:
    """How much of the pools the floors need at best."""

    factor: float  # of capacity, in the worst pool; above 1 they do not fit; inf: some have no pool at all
    split: Float[np.ndarray, " pair"]  # part of its task's floor on each pair
    dual: Float[np.ndarray, "pool resource"]  # what binds; sums to 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Who may be served where: pairs in row order, and the same by pool."""

    tasks: int
    row: Int[np.ndarray, " pair"]
    indptr: Int[np.ndarray, " bound"]  # task i has the pairs indptr[i] to indptr[i+1]
    indices: Int[np.ndarray, " pair"]
    pools: Groups

    @classmethod
    def of(cls, eligible: tuple[tuple[int, ...], ...], pools: int) -> Layout:
        """Lay out the pools that each task may use."""
        width = np.fromiter(map(len, eligible), np.int64, len(eligible))
        indices = np.fromiter(chain.from_iterable(eligible), np.int64, int(width.sum()))
        row = np.repeat(np.arange(len(eligible)), width)
        indptr = np.concatenate([[0], np.cumsum(width)])
        return cls(len(eligible), row, indptr, indices, Groups(indices, pools))

    @property
    def forced(self) -> bool:
        """Nobody has a choice of pools."""
        return len(self.row) <= self.tasks and bool((np.diff(self.indptr) <= 1).all())

    def per_task(self, parts: Int[np.ndarray, " pair"]) -> Int[np.ndarray, " task"]:
        """Add up whole parts over each task's pairs."""
        total = np.concatenate([[0], np.cumsum(parts)])
        return total[self.indptr[1:]] - total[self.indptr[:-1]]


def fit(
    layout: Layout,
    demand: Float[np.ndarray, "task resource"],
    capacity: Float[np.ndarray, "pool resource"],
    floor: Int[np.ndarray, " task"],
    free: Int[np.ndarray, " pair"],
    priority: Int[np.ndarray, " task"],
) -> tuple[Int[np.ndarray, " task"], Int[np.ndarray, " pair"]]:
    """Give floors and free shares, in whole parts, that some allocation can keep at once."""
    need = np.maximum(floor - layout.per_task(free), 0)
    if not need.any():
        return floor, free
    count = Count(demand[layout.row], float(demand.sum(axis=0).max(initial=0.0)))
    limit = count.limit(capacity)
    if beside(layout, count, need, limit - count.load(free, layout.pools), demand) is not None:
        return floor, free
    placed = promised(layout, count, floor, limit, priority, demand)
    excess = np.maximum(free - placed, 0)
    left = limit - count.load(placed, layout.pools)
    spared = keep(layout, count, excess, left, np.zeros(layout.tasks, np.int64))
    return layout.per_task(placed), np.minimum(free, placed + spared)


def beside(
    layout: Layout,
    count: Count,
    need: Int[np.ndarray, " task"],
    room: Shaped[np.ndarray, "pool resource"],
    demand: Float[np.ndarray, "task resource"],
) -> Int[np.ndarray, " pair"] | None:
    """Put what floors need into this room, exactly; None where it cannot be done."""
    if layout.forced:
        put = need[layout.row]
        served = np.array_equal(layout.per_task(put), need)  # a task without a pool cannot be
        return put if served and (count.load(put, layout.pools) <= room).all() else None
    space = np.asarray(room, float) / SHARE
    asked = demand * (need / SHARE)[:, None]
    if (asked.sum(axis=0) > space.sum(axis=0) * (1 + EXACT)).any():  # more than all pools together: no need to search
        return None
    put, _ = _even(layout, count, need, room, demand)
    if put is not None:
        return put
    best = overload(layout, asked, space)
    if best is None or best.factor > 1:
        return None
    put = _split(layout, need, best.split)
    fits = (count.load(put, layout.pools) <= room).all() and (layout.per_task(put) == need).all()
    return put if fits else None


def _even(
    layout: Layout,
    count: Count,
    need: Int[np.ndarray, " task"],
    room: Shaped[np.ndarray, "pool resource"],
    demand: Float[np.ndarray, "task resource"],
) -> tuple[Int[np.ndarray, " pair"] | None, Float[np.ndarray, " pair"]]:
    """Try some cheap splits, each away from the pools that the last one crowded; give one that fits, and the last weights."""
    space = np.asarray(room, float) / SHARE
    weight = _space(layout, demand, space)
    for _ in range(TRIES):
        put = _split(layout, need, weight)
        load = count.load(put, layout.pools)
        if (load <= room).all() and (layout.per_task(put) == need).all():
            return put, weight
        full = np.divide(np.asarray(load, float), SHARE * space, out=np.full(space.shape, np.inf), where=space > 0)
        full = np.where(demand[layout.row] > 0, full[layout.indices], 0.0).max(axis=1, initial=0.0)
        weight = weight / np.maximum(full, 0.1)
    return None, weight


def promised(
    layout: Layout,
    count: Count,
    floor: Int[np.ndarray, " task"],
    limit: Shaped[np.ndarray, "pool resource"],
    priority: Int[np.ndarray, " task"],
    demand: Float[np.ndarray, "task resource"],
) -> Int[np.ndarray, " pair"]:
    """Place the floors alone, shrunk as little as it takes."""
    if not layout.forced:
        put = beside(layout, count, floor, limit, demand)
        if put is not None:
            return put
        space = np.asarray(limit, float) / SHARE
        found = shrink(layout, demand * (floor / SHARE)[:, None], space, priority)
        part, kept = found or (_even(layout, count, floor, limit, demand)[1], np.ones(layout.tasks))  # if it must be
        want = _split(layout, whole_parts(kept * floor / SHARE, floor), part)
    else:
        want = floor[layout.row]
    return keep(layout, count, want, limit, priority)


def keep(
    layout: Layout,
    count: Count,
    want: Int[np.ndarray, " pair"],
    limit: Shaped[np.ndarray, "pool resource"],
    priority: Int[np.ndarray, " task"],
) -> Int[np.ndarray, " pair"]:
    """Keep of these parts what fits, class by class; exact."""
    kept = np.zeros(len(want), np.int64)
    room = limit.copy()
    closed = np.zeros(room.shape, bool)
    rank = priority[layout.row]
    for p in np.unique(rank[want > 0])[::-1]:
        shut = ((count.demand > 0) & closed[layout.indices]).any(axis=1)
        rows = np.flatnonzero((rank == p) & (want > 0) & ~shut)
        if not len(rows):
            continue
        ours, groups = count.of(rows), Groups(layout.indices[rows], layout.pools.count)
        parts = want[rows]
        over = ours.load(parts, groups) > room
        if over.any():
            need = ours.demand.astype(float) * (parts / SHARE)[:, None]
            level, spent = fill(need, np.ones(len(rows)), np.asarray(room, float) / SHARE, groups)
            parts = trim(np.minimum(np.floor(level * parts + 1e-6).astype(np.int64), parts), ours, groups, room)
            closed |= spent | (over & ~spent.any(axis=1, keepdims=True))
        kept[rows] = parts
        room = room - ours.load(parts, groups)
    return kept


def overload(
    layout: Layout, need: Float[np.ndarray, "task resource"], room: Float[np.ndarray, "pool resource"]
) -> Overload | None:
    """Split floors over pools so that the fullest is as empty as possible; None if the solver gives up.

    need: what each floor takes, in base units. min t: sum_j x_ij = 1, sum_i need_ir x_ij <= t room_jr. The duals of
    the capacity rows, sum 1, say what binds: lower floors there, or add room there.
    """
    pairs, usable = len(layout.row), _usable(layout, need, room)
    asks = np.any(need > 0, axis=1)
    lost = asks & (np.bincount(layout.row[usable], minlength=layout.tasks) == 0)
    if lost.any():
        return Overload(np.inf, np.zeros(pairs), _lack(layout, need, room, lost))
    if not asks.any():
        return Overload(0.0, np.zeros(pairs), np.zeros(room.shape))
    cols = np.flatnonzero(usable & asks[layout.row])
    at, row, col = _capacity_rows(layout, need, room, cols)
    rows, m, t = int(asks.sum()), room.size, len(cols)  # the last column is t
    number = np.cumsum(asks) - 1
    serve = coo_array((np.ones(t), (number[layout.row[cols]], np.arange(t))), shape=(rows, t + 1))
    entries = np.concatenate([at, -np.ones(m)])
    where = np.concatenate([row, np.arange(m)]), np.concatenate([col, np.full(m, t)])
    fits = coo_array((entries, where), shape=(m, t + 1))
    cost = np.zeros(len(cols) + 1)
    cost[-1] = 1.0
    got = _solve(cost, fits, np.zeros(m), serve, np.ones(rows))
    if got is None:
        return None
    split = np.zeros(pairs)
    split[cols] = got.x[:-1]
    return Overload(float(got.x[-1]), split, np.maximum(-got.ineqlin.marginals, 0.0).reshape(room.shape))


def shrink(
    layout: Layout,
    need: Float[np.ndarray, "task resource"],
    room: Float[np.ndarray, "pool resource"],
    priority: Int[np.ndarray, " task"],
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " task"]] | None:
    """Give the split over pools (None if the solver gives up), and the part of its floor that each task keeps: by priority, then max-min.

    max t: sum_j x_ij >= t for those of the class that still rise, sum_j x_ij >= kept_i for all that are settled. Tasks whose
    row has a positive dual can rise no further in any optimum; they are settled at t, and the others go on.
    """
    usable = _usable(layout, need, room)
    kept, split = np.zeros(layout.tasks), np.zeros(len(layout.row))
    settled = ~(need > 0).any(axis=1)
    kept[settled] = 1.0
    for p in np.unique(priority[~settled])[::-1]:
        rising = ~settled & (priority == p)
        rising &= np.bincount(layout.row[usable], minlength=layout.tasks) > 0  # no pool left: nothing to keep
        spent = np.zeros(room.shape, bool)
        for turn in range(BOTTLENECKS):
            if not rising.any():
                break
            got = _raise(layout, need, room, usable, kept, rising)
            if got is None:
                return None
            split, level = got.split, got.level
            done = level >= 1 - EXACT or not got.stuck.any() or turn == BOTTLENECKS - 1
            stop = rising if done else got.stuck
            kept[stop] = level
            rising = rising & ~stop
            spent |= (got.dual > EXACT) & (level < 1 - EXACT)
        above = (kept > 0)[layout.row]  # who already keeps something keeps its pairs
        usable &= above | ~((need[layout.row] > 0) & spent[layout.indices]).any(axis=1)
    return split, np.minimum(kept, 1.0)


@dataclass(frozen=True, slots=True)
class _Raised:
    level: float  # of all that rose
    split: Float[np.ndarray, " pair"]
    stuck: Bool[np.ndarray, " task"]  # of those that rose: no optimum has them any higher
    dual: Float[np.ndarray, "pool resource"]


def _raise(
    layout: Layout,
    need: Float[np.ndarray, "task resource"],
    room: Float[np.ndarray, "pool resource"],
    usable: Bool[np.ndarray, " pair"],
    kept: Float[np.ndarray, " task"],
    rising: Bool[np.ndarray, " task"],
) -> _Raised | None:
    """Raise all that still rise to one level, as high as it goes; None if the solver gives up."""
    asks = (rising | (kept > 0)) & (need > 0).any(axis=1)
    cols = np.flatnonzero(usable & asks[layout.row])
    at, row, col = _capacity_rows(layout, need, room, cols)
    rows, m, t = int(asks.sum()), room.size, len(cols)  # the last column is t
    number = np.cumsum(asks) - 1
    up = number[np.flatnonzero(rising)]
    entries = np.concatenate([at, -np.ones(t), np.ones(len(up))])
    where = (
        np.concatenate([row, m + number[layout.row[cols]], m + up]),
        np.concatenate([col, np.arange(t), np.full(len(up), t)]),
    )
    matrix = coo_array((entries, where), shape=(m + rows, t + 1))
    least = np.where(rising, 0.0, -kept * (1 - SLACK))[asks]
    cost = np.zeros(len(cols) + 1)
    cost[-1] = -1.0
    got = _solve(cost, matrix, np.concatenate([np.ones(m), least]), top=1.0)
    if got is None:
        return None
    split, stuck = np.zeros(len(layout.row)), np.zeros(layout.tasks, bool)
    split[cols] = got.x[:-1]
    dual = -got.ineqlin.marginals
    stuck[asks] = dual[m:] > EXACT
    return _Raised(float(got.x[-1]), split, stuck & rising, dual[:m].reshape(room.shape))


def _solve(cost, upper, room, equal=None, equals=None, top=None):
    if len(cost) > MOST:
        return None
    bounds = [(0.0, None)] * (len(cost) - 1) + [(0.0, top)]
    options = {"primal_feasibility_tolerance": EXACT, "dual_feasibility_tolerance": EXACT}
    method = "highs-ipm" if len(cost) > LARGE else "highs"
    equal = None if equal is None else equal.tocsr()
    got = linprog(cost, upper.tocsr(), room, equal, equals, bounds, method=method, options=options)
    return got if got.status == 0 else None  # a round must go on, whatever a solver's tolerances make of it


def _usable(layout: Layout, need: np.ndarray, room: np.ndarray) -> np.ndarray:
    return np.all((need[layout.row] <= 0) | (room[layout.indices] > 0), axis=1)


def _capacity_rows(
    layout: Layout, need: np.ndarray, room: np.ndarray, cols: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row per pool and resource, scaled by what there is: entries, their rows, their columns."""
    resources = room.shape[1]
    pool = layout.indices[cols]
    at = np.divide(need[layout.row[cols]], room[pool], out=np.zeros((len(cols), resources)), where=room[pool] > 0)
    return (
        at.ravel(),
        (pool[:, None] * resources + np.arange(resources)).ravel(),
        np.repeat(np.arange(len(cols)), resources),
    )


def _lack(layout: Layout, need: np.ndarray, room: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Blame the resources that a task without any usable pool finds empty."""
    out = np.zeros(room.shape)
    for e in np.flatnonzero(lost[layout.row]):
        j, i = layout.indices[e], layout.row[e]
        out[j] += (need[i] > 0) & (room[j] <= 0)
    return out / max(out.sum(), 1.0)


def _space(layout: Layout, demand: np.ndarray, space: np.ndarray) -> np.ndarray:
    """How often each pool could hold the task of each pair."""
    want = demand[layout.row]
    fits = np.divide(space[layout.indices], want, out=np.full(want.shape, np.inf), where=want > 0)
    return np.clip(fits.min(axis=1, initial=np.inf), 0.0, 1e18)


def _split(layout: Layout, need: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Divide whole parts over each task's pairs by weight, evenly where all weigh nothing; the heaviest gets the rest."""
    total = np.bincount(layout.row, weights=weight, minlength=layout.tasks)
    weight = np.where(total[layout.row] > 0, weight, 1.0)
    total = np.bincount(layout.row, weights=weight, minlength=layout.tasks)
    put = np.floor(need[layout.row] * (weight / total[layout.row])).astype(np.int64)
    rest = need - layout.per_task(put)
    width = np.diff(layout.indptr)
    starts = layout.indptr[:-1][width > 0]
    if len(starts):
        top = np.repeat(np.maximum.reduceat(weight, starts), width[width > 0])
        heaviest = np.flatnonzero(weight == top)
        first = heaviest[np.append(True, np.diff(layout.row[heaviest]) > 0)]
        put[first] += rest[layout.row[first]]
    return put
