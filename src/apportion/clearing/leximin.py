"""Max-min, then the next to least, and so on: levels found one after another.

At level t a task that rises wants  target = min(t w, reach): its due, or all that it can use. The highest t whose targets
all fit is found from above. A try raises the part of their targets that all get together, which is max-min again. Where
that is below 1, its prices p and slopes y prove by weak duality of every plan

    sum_i y_i u_i <= worth(p, y),      so no level is reached above the one where  sum_i y_i target_i = worth,

which is tried next (Newton's method on a concave function: a few tries). Who has all that it can use by then stands,
however many these are, and so does whose dual is positive and who could rise no further (the interior point ends where
all duals that can be positive are). Pairs that cost more than they earn at these prices hold nothing in any later plan.
Without them the others reach less than before, and tasks that share no pool with them any more are done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from apportion.clearing import interior
from apportion.clearing.certificate import bound
from apportion.clearing.curves import welfare
from apportion.clearing.maxmin import Maxmin
from apportion.clearing.sale import PerTask, Sale

KEPT = 1e-6  # of what a task has: what it may seem to lose while others rise
MET = 1e-4  # of a target: what may be missing where weights are far apart
NEAR = 1e-7  # of a level: when two are one
TRIES = 50  # five are many


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that are connected by pools, and who of them rises."""

    sale: Sale  # to the pairs that can still hold something
    goal: Maxmin  # level: w of those who rise; base: what those who stand hold
    won: float  # the level that all who rise have reached


@dataclass(frozen=True, slots=True)
class Try:
    """A plan for the targets of level `top`, and what its duals prove."""

    top: float
    point: interior.Point
    slope: PerTask  # the point's
    served: PerTask
    part: float  # of its target, what the worst served of those who rise has
    hold: PerTask  # of the target, or what was held before
    limit: float  # no plan reaches a higher level


def solve(sale: Sale, objective: Maxmin, *, tolerance: float = 1e-9) -> interior.Point:
    """Give the lexicographic plan, with the first level's prices and slopes: they are what proves the least service."""
    first = interior.solve(sale, objective, tolerance=tolerance)
    rising = objective.level > 0
    if not rising.any():
        return first
    share, steps, todo = first.share.copy(), 0, [Stage(sale, objective, 0.0)]
    level = float((sale.market.per_task(sale.value * first.share)[rising] / objective.level[rising]).min())
    tried = _judged(todo[0], level, level * objective.level, first)
    while todo:
        stage = todo.pop()
        tried, before, count = _climb(stage, tried, tolerance)
        steps += count
        if (tried.served >= _had(stage) * (1 - KEPT)).all():  # else floats do not tell them apart: what is won stays
            mine = stage.sale.reach[sale.row] > 0
            share[mine] = tried.point.share[mine]
            todo += _rest(stage, tried, before or tried) if tried.part >= 1 - MET and tried.top < np.inf else []
        tried = None
    return interior.Point(share, first.price, first.slope, steps)


def _climb(stage: Stage, first: Try | None, tolerance: float) -> tuple[Try, Try | None, int]:
    """Give the try at the highest level, the one before, whose duals prove that there is no higher, and the steps of all."""
    tried, before, limit = first or _try(stage, np.inf, tolerance), None, np.inf
    steps = tried.point.steps
    for _ in range(TRIES):
        limit = min(limit, tried.limit)
        if limit == tried.top or abs(limit - tried.top) < NEAR * limit or limit <= stage.won:
            break
        before, tried = tried, _try(stage, limit, tolerance)
        steps += tried.point.steps
    return tried, before, steps


def _try(stage: Stage, top: float, tolerance: float) -> Try:
    """Raise the part that all get of their targets at level `top`."""
    goal = stage.goal
    rising, target = goal.level > 0, np.zeros(len(goal.weight))
    target[rising] = np.minimum(top * goal.weight[rising], stage.sale.reach[rising])
    return _judged(stage, top, target, interior.solve(stage.sale, replace(goal, level=target), tolerance=tolerance))


def _judged(stage: Stage, top: float, target: PerTask, point: interior.Point) -> Try:
    sale, goal, slope = stage.sale, stage.goal, np.asarray(point.slope)
    served = sale.market.per_task(sale.value * point.share)
    rising = target > 0
    part = float((served[rising] / target[rising]).min())
    hold = np.where(rising, np.minimum(served, target), goal.base)
    # what service is worth at these slopes, linear in u, is bounded at these prices
    worth = bound(sale, replace(welfare(sale), weight=slope), point.price, slope)
    return Try(top, point, slope, served, part, hold, _limit(stage, slope, worth))


def _limit(stage: Stage, slope: PerTask, worth: float) -> float:
    """Give the level at which slope . hold = worth: it rises with the level, with a kink where a task has all it can use."""
    goal, rising = stage.goal, np.flatnonzero(stage.goal.level > 0)
    weight, reach = goal.weight[rising], stage.sale.reach[rising]
    order = np.argsort(reach / weight)
    slope, weight, reach, left = slope[rising][order], weight[order], reach[order], worth - float(slope @ goal.base)
    full = np.append(0.0, np.cumsum(slope * reach))  # held by the first k, who have all they can use
    rate = np.append(np.cumsum((slope * weight)[::-1])[::-1], 0.0)  # of the others
    k = int(np.searchsorted(full[1:] + rate[1:] * reach / weight, left))
    return (left - full[k]) / rate[k] if rate[k] > 0 else np.inf


def _had(stage: Stage) -> PerTask:
    """Give what each task holds by now."""
    return np.where(stage.goal.level > 0, stage.won * stage.goal.weight, stage.goal.base)


def _rest(stage: Stage, tried: Try, before: Try) -> list[Stage]:
    """Give what is still to be raised: who can rise further, by the pairs that may serve it, part by part.

    Of two numbers whose product is 0 in the end, the one that is less is taken for 0, each beside its own size.
    """
    sale, goal, hold = stage.sale, stage.goal, tried.hold
    one, other = (0.5 / float(each.slope @ hold) for each in (tried, before))
    slope, price = one * tried.slope + other * before.slope, one * tried.point.price + other * before.point.price
    rising, full, count = goal.level > 0, sale.reach <= tried.top * goal.weight, (hold > 0).sum()
    pays = slope * hold * count
    with np.errstate(divide="ignore", invalid="ignore"):
        stands = rising & (full | (pays > tried.served / hold - 1.0) | (pays >= pays[rising & ~full].max()))
    usable = sale.usable.copy()
    pairs = np.flatnonzero(usable)
    most = sale.most[pairs]
    usable[pairs] = _loss(sale, pairs, slope, price) * most * count <= tried.point.share[pairs] / most
    held = sale.market.per_task(sale.value * np.where(usable, tried.point.share, 0.0))
    short = held < hold * (1 - KEPT)  # all that they hold is small: too small to tell
    usable |= sale.usable & short[sale.row]
    stands |= rising & short
    base = np.where(stands, hold * (1 - 1e-10 - 2 * _over(sale, tried.point.share)), goal.base)
    base = np.where(short, base, np.minimum(base, held))
    goal = replace(goal, level=np.where(stands, 0.0, goal.level), base=base)
    return _parts(Stage(sale.only(usable), goal, tried.top))


def _over(sale: Sale, share: np.ndarray) -> float:
    """Give by what part, at most, a plan exceeds a pool or a cap: a solver's rounding."""
    load, total = sale.market.load(share), sale.market.per_task(share)
    pools, tasks = sale.left > 0, sale.upper > 0
    over = max((load[pools] / sale.left[pools]).max(initial=0), (total[tasks] / sale.upper[tasks]).max(initial=0))
    return max(float(over) - 1.0, 0.0)


def _loss(sale: Sale, pairs: np.ndarray, slope: PerTask, price: np.ndarray) -> np.ndarray:
    """Give what a whole share of each pair costs more than it earns, or more than the task's best pair does."""
    gain = slope[sale.row[pairs]] * sale.value[pairs] - sale.charge(price)[pairs]
    best = np.where(sale.lower > 0, -np.inf, 0.0)
    np.maximum.at(best, sale.row[pairs], gain)
    return best[sale.row[pairs]] - gain


def _parts(stage: Stage) -> list[Stage]:
    """Split a stage into those that share no pool; parts in which nobody rises are done."""
    sale, goal = stage.sale, stage.goal
    tasks, pairs = len(sale.upper), np.flatnonzero(sale.usable)
    size = tasks + len(sale.left)
    links = coo_matrix((np.ones(len(pairs)), (sale.row[pairs], tasks + sale.market.indices[pairs])), (size, size))
    label = connected_components(links, directed=False)[1][:tasks]
    out = []
    for each in np.unique(label[goal.level > 0]):
        mine = label == each
        own = replace(goal, level=np.where(mine, goal.level, 0.0), base=np.where(mine, goal.base, 0.0))
        out.append(Stage(sale.only(sale.usable & mine[sale.row]), own, stage.won))
    return out
