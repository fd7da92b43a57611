"""One pass over all tasks at given prices, objective by objective: what prices alone must know of the tasks.

A pass is a sum over tasks, so it may be taken over *shards* of them, one after another, by threads, or on other machines:
each keeps its own tasks and answers prices with loads, bends and a few sums. Nothing else crosses.

    Shard       some of the tasks
    sweep       what one shard adds up                          `sweeps` has the loops and their formulas
    Pass        all shards together, for Newton                 dual, worth, exact dual; load, bends; what a plan promises
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np

from apportion.clearing import sweeps
from apportion.clearing.bends import Bends
from apportion.clearing.curves import PIECEWISE, SATURATING, Curves
from apportion.clearing.maxmin import Maxmin
from apportion.clearing.objectives import Objective
from apportion.clearing.proportional import Proportional
from apportion.clearing.sale import Sale
from apportion.clearing.shards import Shard

Each = Callable[[Callable[[Any], Any], Iterable], Iterable]  # like map: calls a function for each shard


class Pass(ABC):
    """One objective's pass over all shards, and what Newton asks of it."""

    weigh = True  # whether worth adds up by weight, so that a sampled task weighs as much as those that it stands for
    exact = True  # whether the bound found on the way is the market's own
    most = np.inf  # what no plan exceeds, whatever the prices
    level, pull = 0.0, (0.0, 1.0)  # what all rise to, if anything; the slope of the dual in it, and how that falls
    rent = 0.5  # of what service is worth in all: what pools may earn, to begin with
    rises = False  # whether the level moves with the prices

    def __init__(self, shards: Sequence[Shard], each: Each = map, bends: Bends | None = None):
        self.shards, self.each, self.left = shards, each, shards[0].left
        told = np.sum(list(each(_totals, shards)), axis=0)
        self.count, self.weight, self.bulk = int(told[0]), float(told[1]), float(told[2])
        self.scale = self.weight if self.weigh else 1.0  # what service is worth, in all
        self.bends = bends or Bends(self.left, each(lambda s: sweeps.meet(s.indptr, s.pool, len(s.left)), shards))
        self.load = self.along = self.blocks = np.zeros(0)

    def at(
        self, price: np.ndarray, tau: float, bend: bool = True, share: np.ndarray | None = None
    ) -> tuple[float, float, float]:
        """Give the tasks' part of the smoothed dual, what their plan is worth, and their part of the exact dual.

        share: takes what each pair of the sale buys.
        """
        if share is None:
            return self._read(self._sums(price, tau, bend, [NOWHERE] * len(self.shards)))
        parts = [share[s.pairs] if isinstance(s.pairs, slice) else np.empty(len(s.pool)) for s in self.shards]
        told = self._read(self._sums(price, tau, bend, parts))
        for shard, part in zip(self.shards, parts, strict=True):
            if not isinstance(shard.pairs, slice):
                share[shard.pairs] = part
        return told

    def _sums(self, price: np.ndarray, tau: float, bend: bool, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Take the pass: every shard's sums, added; the same of loads, bends, and how loads move with the level."""

        def sweep(job: tuple[Shard, np.ndarray]) -> tuple[float, ...]:
            shard, x = job
            if bend and not len(shard.blocks):
                shard.blocks = self.bends.room()
            return self._sweep(shard, price, tau, bend, x, len(x) > 0)

        told = list(self.each(sweep, zip(self.shards, parts, strict=True)))
        self.load, self.along = _added(s.load for s in self.shards), _added(s.along for s in self.shards)
        self.blocks = _added(s.blocks for s in self.shards) if bend else self.blocks
        return np.sum(told, axis=0) if len(told) > 1 else np.array(told[0])

    def sample(self, part: float, rng: np.random.Generator) -> Pass:
        """Give the same pass over about this part of the tasks, the weighty and the large rather."""
        some, seeds = copy(self), rng.integers(2**63, size=len(self.shards))

        def keep(job: tuple[Shard, int]) -> Shard:
            shard, seed = job
            return shard.keep(self._chance(shard, part), self.weigh, np.random.default_rng(seed))

        Pass.__init__(some, list(self.each(keep, zip(self.shards, seeds, strict=True))), self.each, self.bends)
        return some

    def _chance(self, shard: Shard, part: float) -> np.ndarray:
        """Give each task's chance to be among about this part of all, the weighty and the large rather."""
        matter = 0.5 * shard.weight / self.weight + 0.5 * shard.bulk / self.bulk
        return np.minimum(1.0, part * self.count * np.maximum(matter, 0.3 / self.count))

    def stage(self, price: np.ndarray, tau: float) -> None:  # noqa: B027  (most have nothing to prepare)
        """Prepare for a new temperature."""

    def refine(self) -> bool:
        """Be more exact from now on, if possible; tell whether."""
        return False

    def norm(self, worth: float) -> float:
        """Give what a gap of 1 is, in the dual's units."""
        return self.scale

    def proven(self, rent: float, held: float) -> float:
        """Give the exact dual of what pools earn and the tasks' part."""
        return rent + held

    @abstractmethod
    def promise(self, worth: float, bound: float, over: np.ndarray, rent: np.ndarray) -> float:
        """Tell the gap if overfull pools (over: by what part) are scaled down; rent is what pools earn, bound has it."""

    @abstractmethod
    def _sweep(self, shard: Shard, price: np.ndarray, tau: float, bend: bool, x: np.ndarray, write: bool) -> tuple:
        """Let one shard answer prices; give its sums."""

    def _read(self, sums: np.ndarray) -> tuple[float, float, float]:
        return float(sums[0]), float(sums[1]), float(sums[2])


NOWHERE = np.empty(0)
NEAR = 0.1  # what the level's pull, times the level, may be where its own step is anticipated instead of taken
TOP = 1e-5  # how far below the highest level of all we stay: there a task would need all of its best pool


def _totals(shard: Shard) -> tuple[float, float, float]:
    return float(len(shard.weight)), float(shard.weight.sum()), float(shard.bulk.sum())


def _added(arrays: Iterable[np.ndarray]) -> np.ndarray:
    first, *others = arrays
    return sum(others, first) if others else first


class ConcavePass(Pass):
    """Worths that bend. Who has a floor but no weight gets next to none of it, so that it stands in line somewhere."""

    logs = False

    def __init__(self, sale: Sale, goal: Proportional | Curves, threads: int, each: Each):
        weight = np.where(goal.weight > 0, goal.weight, 1e-4 * goal.weight.sum() / max(sale.enters.sum(), 1))
        kind, own = _bent(goal)
        super().__init__(Shard.of(sale, weight, kind, own).split(threads), each)
        self.exact = not (sale.lower[goal.weight <= 0] > 0).any()

    def _sweep(self, shard, price, tau, bend, x, write):
        s, sweep = shard, sweeps.proportional if self.logs else sweeps.concave
        return sweep(
            s.indptr, s.pool, s.rate, s.demand, s.weight, s.kind, s.own, s.lower, s.upper, s.row,
            price, sweeps.sharpness(tau), s.load, self.bends.place, s.blocks, bend, x, write, s.unrolled,
        )  # fmt: skip


def _bent(goal: Proportional | Curves) -> tuple[np.ndarray, np.ndarray]:
    """Give each task's kind of worth, and what it is made of."""
    if isinstance(goal, Proportional):
        return np.full(len(goal.weight), sweeps.LOG, np.int8), goal.memory[:, None]
    saturates, rate = goal.kind == SATURATING, goal.rate
    slopes = np.where((goal.kind == PIECEWISE)[:, None], goal.steps, 1.0)
    slopes[:, 0] = np.where(saturates, rate / -np.expm1(-rate), slopes[:, 0])
    return np.where(saturates, sweeps.SATURATING, sweeps.PIECES).astype(np.int8), np.column_stack([rate, slopes])


class ProportionalPass(ConcavePass):
    """f = w log((1 - eta) mean + eta u)."""

    logs = True

    def __init__(self, sale: Sale, goal: Proportional, threads: int, each: Each):
        super().__init__(sale, goal, threads, each)
        self.eta = goal.eta

    def _read(self, sums):
        dual, worth, held = sums + self.weight * np.log(self.eta)
        return float(dual), float(worth), float(held)

    def promise(self, worth, bound, over, rent):
        return (bound - worth + float(over @ rent)) / self.scale


class _Ratio(Pass):
    """A gap that is a ratio of what is proven and what is reached."""

    def norm(self, worth):
        return max(worth, 1e-300)

    def promise(self, worth, bound, over, rent):
        left = worth - float(over @ rent)
        return bound / left - 1.0 if left > 0 else np.inf


class ExperiencePass(_Ratio, ConcavePass):
    """f = w q(u), q a response curve."""


class WelfarePass(_Ratio):
    """f = w u."""

    def __init__(self, sale: Sale, goal: Curves, threads: int, each: Each):
        super().__init__(Shard.of(sale, goal.weight, priced=False).split(threads), each)
        self.least = 0.1 * self.weight / self.count

    def _sweep(self, shard, price, tau, bend, x, write):
        s = shard
        return sweeps.welfare(
            s.indptr, s.pool, s.rate, s.demand, s.weight, tau * np.maximum(s.weight, self.least), s.lower, s.upper,
            price, s.load, self.bends.place, s.blocks, bend, x, write, s.unrolled,
        )  # fmt: skip


class MaxminPass(Pass):
    """log t less what serving all at u = t w costs; t moves with the prices, kept between passes."""

    weigh, rent = False, 1.0

    def __init__(self, sale: Sale, goal: Maxmin, threads: int, each: Each):
        super().__init__(Shard.of(sale, goal.weight).split(threads), each)
        self.most = float((sale.reach[sale.enters] / goal.weight[sale.enters]).min(initial=np.inf))
        self.firm = 0.1
        self.prices = 1.0  # of a level of 1, were every task served at its least price

    def refine(self):
        self.firm *= 4.0
        return self.firm < 2.0

    def stage(self, price, tau):
        """A task's temperature is tau times its least price of service."""

        def warm(shard: Shard) -> float:
            s = shard
            least = sweeps.cheapest(s.indptr, s.pool, s.rate, s.demand, price, s.unrolled)
            s.unit = tau * np.maximum(least, 1e-6 * least.mean() + 1e-300)
            return float(s.weight @ least)

        total = sum(self.each(warm, self.shards))
        if self.level == 0.0:
            self.level = min(1.0 / max(total, 1e-300), 0.9 * self.most)

    def _sweep(self, shard, price, tau, bend, x, write):
        s = shard
        return sweeps.maxmin(
            s.indptr, s.pool, s.rate, s.demand, s.weight, s.unit, self.firm, s.lower, s.upper, s.row, self.level,
            price, s.load, s.along, self.bends.place, s.blocks, bend, x, write, s.unrolled,
        )  # fmt: skip

    def _sums(self, price, tau, bend, parts):
        """Take the pass, again where the level is far from the best at these prices: where tasks reach their caps it bends hard."""
        low, high, top, stride, width = 0.0, np.inf, self.most * (1.0 - TOP), 1e-3, np.inf
        begun = self.level = min(self.level, top)
        sums = super()._sums(price, tau, bend, parts)
        for _ in range(40):
            t, slope, curve = self.level, sums[1], sums[2]
            pull, _ = self.pull = 1.0 / t - slope, 1.0 / t**2 + curve
            self.rises = pull < 0.0 or t < top
            if not self.rises or abs(pull) * t < NEAR or high - low < 1e-9 * t:
                break
            low, high = (t, high) if pull > 0.0 else (low, t)
            newton = t - (t - 1.0 / slope) / (1.0 + curve / slope**2)  # S rises like a pole: 1/S' is nearly straight
            if 0.0 < low < high < np.inf:
                self.level = newton if low < newton < high and high - low < 0.5 * width else 0.5 * (low + high)
                width = high - low
            else:  # beyond a kink: go on in larger strides
                self.level = (
                    min(max(newton, t + stride * t), top) if pull > 0.0 else max(min(newton, t - stride * t), 0.5 * t)
                )
                stride *= 4.0
            sums = super()._sums(price, tau, False, parts)
        return sums if self.level == begun or not bend else super()._sums(price, tau, True, parts)

    def _read(self, sums):
        """The level's own step is anticipated: what it still adds to the dual is known to second order."""
        cost, _, _, self.prices, held = (float(x) for x in sums)
        pull, stiff = self.pull
        more = 0.5 * pull * pull / stiff if self.rises else 0.0
        return np.log(self.level) - cost + more, self.level, held

    def proven(self, rent, held):
        """Give the level that no plan exceeds."""
        return min((rent + held) / self.prices, self.most)

    def promise(self, worth, bound, over, rent):
        return self.proven(bound, 0.0) * (1.0 + float(over.max())) / worth - 1.0


def passes(sale: Sale, objective: Objective, threads: int = 1, each: Each = map) -> Pass | None:
    """Give the pass of an objective; None where it has none, or nobody is to be priced."""
    if not sale.enters.any() or not sale.usable.any():
        return None
    if isinstance(objective, Proportional):
        return ProportionalPass(sale, objective, threads, each)
    if isinstance(objective, Curves) and not objective.kind.any():
        return WelfarePass(sale, objective, threads, each)
    if isinstance(objective, Curves) and (sale.reach > 1).any():
        return None  # a straight curve goes on beyond 1, and its pieces would not: a bound too low
    if isinstance(objective, Curves):
        return ExperiencePass(sale, objective, threads, each)
    if isinstance(objective, Maxmin) and objective.name == "maxmin":
        return MaxminPass(sale, objective, threads, each)
    return None
