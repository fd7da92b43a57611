"""Prices for many tasks: Newton on the dual, smoothed, over prices alone.

    D(lam) = sum lam + sum_i D_i(lam; tau),   gradient 1 - load,   lam = price * capacity, one for each pool and resource

Every task's best answer to prices is smoothed by a temperature tau (`sweeps` has the formulas), so D bends; a primal-dual
barrier keeps lam > 0 (slack r of load <= 1, r lam = mu). tau and mu fall together, only from a stage that has converged, and
no further than the asked gap needs. The first prices come from samples: a kept task stands for 1/pi copies of itself, and
a twentieth of the tasks knows the prices to a few per cent. A pass over all tasks gives the dual, its slope, its bends, an
exact bound and what the plan is worth, so the gap is known before a plan is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]

from apportion.clearing import sweeps
from apportion.clearing.certificate import SAFETY
from apportion.clearing.interior import Point
from apportion.clearing.objectives import Curves, Maxmin, Objective, Proportional
from apportion.clearing.sale import Sale

LARGEST = 2000  # prices, as many as a dense factorisation is worth
SAMPLES = 2500  # tasks in the smallest sample
STAGE = 0.35  # what tau and mu fall by


@dataclass
class Tasks:
    """The tasks that are priced: rows of a sale that may buy, without the pairs that may not."""

    rows: np.ndarray  # of the sale
    pairs: np.ndarray  # of the sale
    indptr: np.ndarray
    pool: np.ndarray
    value: np.ndarray
    demand: np.ndarray
    left: np.ndarray  # (pool, resource); 1 where nothing is left and nobody may buy
    weight: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, sale: Sale, weight: np.ndarray) -> Tasks:
        market = sale.market
        buys = sale.enters | (sale.lower > 0)
        if sale.usable.all() and buys.all():
            rows, pairs, indptr = np.arange(len(buys)), np.arange(len(sale.row)), market.indptr
        else:
            pairs = np.flatnonzero(sale.usable & buys[sale.row])
            count = np.bincount(sale.row[pairs], minlength=len(buys))
            rows = np.flatnonzero(count)
            indptr = np.concatenate([[0], np.cumsum(count[rows])])
        whole = len(pairs) == len(sale.row)
        return cls(
            rows,
            pairs,
            indptr,
            (market.indices if whole else market.indices[pairs]).astype(np.uint32),  # unsigned: no wrap to check
            sale.value if whole else sale.value[pairs],
            market.demand if whole else market.demand[rows],
            np.where(sale.left > 0, sale.left, 1.0),
            weight[rows],
            sale.lower[rows],
            sale.upper[rows],
        )

    def sample(self, part: float, rng: np.random.Generator) -> tuple[Tasks, np.ndarray, np.ndarray]:
        """Keep about this part of the tasks, the weighty and the large rather; give them, their places, their copies."""
        size = (self.demand / self.left.sum(axis=0)).max(axis=1)
        matter = 0.5 * self.weight / self.weight.sum() + 0.5 * size / size.sum()
        chance = np.minimum(1.0, part * len(size) * np.maximum(matter, 0.3 / len(size)))
        keep = np.flatnonzero(rng.random(len(size)) < chance)
        copies = 1.0 / chance[keep]
        copies *= self.weight.sum() / (self.weight[keep] @ copies)
        count = np.diff(self.indptr)[keep]
        indptr = np.concatenate([[0], np.cumsum(count)])
        pairs = np.repeat(self.indptr[keep] - indptr[:-1], count) + np.arange(indptr[-1])
        kept = Tasks(
            keep,
            pairs,
            indptr,
            self.pool[pairs],
            self.value[pairs],
            self.demand[keep] * copies[:, None],
            self.left,
            self.weight[keep] * copies,
            self.lower[keep],
            self.upper[keep],
        )
        return kept, keep, copies


@runtime_checkable
class Pass(Protocol):
    """One objective's pass over the tasks."""

    tasks: Tasks
    load: np.ndarray  # (pool, resource), in units of demand
    bends: np.ndarray  # (pool, pool, resource, resource)
    scale: float  # what service is worth, in all
    size: float  # the absolute terms of the exact dual, added up
    level: float  # that all rise to; 0 where the objective has none
    most: float  # above which no level is
    along: np.ndarray  # how loads move with the level

    pull: tuple[float, float]  # the dual's slope in the level, and how that falls as the level rises

    def at(self, price: np.ndarray, tau: float, bend: bool = True) -> tuple[float, float, float]:
        """Give the tasks' part of the smoothed dual, what their plan is worth, and their part of the exact dual."""
        ...

    def plan(self, price: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
        """Give what each pair buys, and the tasks' part of the exact dual."""
        ...

    def sample(self, part: float, rng: np.random.Generator) -> Pass: ...

    def promise(self, worth: float, bound: float, over: np.ndarray, rent: np.ndarray) -> float:
        """Tell the gap if overfull pools (over: by what part) are scaled down; rent is what pools earn, bound has it."""
        ...

    def norm(self, worth: float) -> float:
        """Give what a gap of 1 is, in the dual's units."""
        ...

    def proven(self, rent: float, held: float) -> float:
        """Give the exact dual of what pools earn and the tasks' part."""
        ...

    def stage(self, price: np.ndarray, tau: float) -> None:
        """Prepare for a new temperature."""
        ...


class _Room:
    """What passes write into."""

    level, most, pull = 0.0, np.inf, (0.0, 1.0)

    def __init__(self, tasks: Tasks):
        self.tasks = tasks
        pools, resources = tasks.left.shape
        self.load, self.along = np.empty((pools, resources)), np.zeros((pools, resources))
        self.bends = np.zeros((pools, pools, resources, resources))
        self.scale = float(tasks.weight.sum())
        self.size = 100.0 * self.scale

    def stage(self, price, tau):
        pass

    def norm(self, worth):
        return self.scale

    def proven(self, rent: float, held: float) -> float:
        return rent + held


class ProportionalPass(_Room):
    """f = w log(memory + u). Who has a floor but no weight gets next to none of it, so that it stands in line somewhere."""

    def __init__(self, tasks: Tasks, memory: np.ndarray, eta: float, row: np.ndarray | None = None):
        super().__init__(tasks)
        self.memory, self.shift = memory, float(tasks.weight.sum()) * np.log(eta)
        self.weight = np.where(tasks.weight > 0, tasks.weight, 1e-4 * tasks.weight.mean())
        self.row = np.zeros(len(memory)) if row is None else row

    def _sweep(self, price, tau, bend, x, write):
        t = self.tasks
        return sweeps.proportional(
            t.indptr, t.pool, t.value, t.demand, self.weight, self.memory, t.lower, t.upper, self.row,
            price, tau, self.load, self.bends, bend, x, write,
        )  # fmt: skip

    def at(self, price, tau, bend=True):
        return self._shifted(self._sweep(price, tau, bend, np.empty(0), False))

    def plan(self, price, tau):
        x = np.zeros(len(self.tasks.pairs))
        return x, self._shifted(self._sweep(price, tau, False, x, True))[2]

    def _shifted(self, told):
        return tuple(each + self.shift for each in told)

    def sample(self, part, rng):
        tasks, keep, _ = self.tasks.sample(part, rng)
        return ProportionalPass(tasks, self.memory[keep], 1.0, self.row[keep])

    def promise(self, worth, bound, over, rent):
        return (bound - worth + float(over @ rent)) / self.scale


class WelfarePass(_Room):
    """f = w u."""

    def __init__(self, tasks: Tasks):
        super().__init__(tasks)
        self.unit = np.maximum(tasks.weight, 0.1 * tasks.weight.mean())

    def _sweep(self, price, tau, bend, x, write):
        t = self.tasks
        return sweeps.welfare(
            t.indptr, t.pool, t.value, t.demand, t.weight, tau * self.unit, t.lower, t.upper,
            price, self.load, self.bends, bend, x, write,
        )  # fmt: skip

    def at(self, price, tau, bend=True):
        return self._sweep(price, tau, bend, np.empty(0), False)

    def plan(self, price, tau):
        x = np.zeros(len(self.tasks.pairs))
        return x, self._sweep(price, tau, False, x, True)[2]

    def sample(self, part, rng):
        return WelfarePass(self.tasks.sample(part, rng)[0])

    def norm(self, worth):
        return max(worth, 1e-300)

    def promise(self, worth, bound, over, rent):
        left = worth - float(over @ rent)
        return bound / left - 1.0 if left > 0 else np.inf


class MaxminPass(_Room):
    """log t less what serving all at u = t w costs; t moves with the prices, kept between passes."""

    def __init__(self, tasks: Tasks, most: float, demand: np.ndarray | None = None, level: float = 0.0):
        """most: no level is above it, whatever the prices."""
        super().__init__(tasks)
        self.most, self.level, self.scale, self.size = most, level, 1.0, 100.0
        self.demand = tasks.demand if demand is None else demand
        self.row = np.zeros(len(tasks.rows))
        self.unit = np.ones(len(tasks.rows))
        self.told = (0.0,) * 5

    def stage(self, price, tau):
        """A task's temperature is tau times its least price of service."""
        t = self.tasks
        least = np.minimum.reduceat(sweeps.charges(t.indptr, t.pool, self.demand, price) / t.value, t.indptr[:-1])
        self.unit = tau * np.maximum(least, 1e-6 * least.mean() + 1e-300)
        if self.level == 0.0:
            self.level = min(1.0 / max(float(t.weight @ least), 1e-300), 0.9 * self.most)

    def _sweep(self, price, bend, x, write):
        t = self.tasks
        self.told = sweeps.maxmin(
            t.indptr, t.pool, t.value, self.demand, t.weight, self.unit, t.upper, self.row, self.level,
            price, self.load, self.along, self.bends, bend, x, write,
        )  # fmt: skip
        self.pull = 1.0 / self.level - self.told[1], 1.0 / self.level**2 + self.told[2]

    def at(self, price, tau, bend=True):
        """The level's own step is anticipated: what it still adds to the dual is known to second order."""
        self._sweep(price, bend, np.empty(0), False)
        pull, stiff = self.pull
        return np.log(self.level) - self.told[0] + 0.5 * pull * pull / stiff, self.level, self.told[4]

    def plan(self, price, tau):
        x = np.zeros(len(self.tasks.pairs))
        self._sweep(price, False, x, True)
        return x, self.told[4]

    def proven(self, rent: float, held: float) -> float:
        """Give the level that no plan exceeds."""
        return min((rent + held) / self.told[3], self.most)

    def sample(self, part, rng):
        tasks, _, _ = self.tasks.sample(part, rng)
        tasks.weight = self.tasks.weight[tasks.rows]
        return MaxminPass(tasks, self.most, level=self.level)

    def promise(self, worth, bound, over, rent):
        return self.proven(bound, 0.0) * (1.0 + float(over.max())) / worth - 1.0


def passes(sale: Sale, objective: Objective) -> Pass | None:
    """Give the pass of an objective; None where there is none."""
    if isinstance(objective, Proportional):
        tasks = Tasks.of(sale, objective.weight)
        return ProportionalPass(tasks, objective.memory[tasks.rows], objective.eta)
    if isinstance(objective, Curves) and objective.name == "welfare":
        return WelfarePass(Tasks.of(sale, objective.weight))
    if isinstance(objective, Maxmin) and objective.name == "maxmin" and not sale.lower.any():
        tasks = Tasks.of(sale, objective.weight)
        most = float((sale.reach[sale.enters] / objective.weight[sale.enters]).min(initial=np.inf))
        return MaxminPass(tasks, most)
    return None


class Newton:
    """Prices on their way down: lam, the slack r, the temperature tau and the barrier mu, kept between passes."""

    def __init__(self, over: Pass, seed: int = 0):
        self.shape = over.tasks.left.shape
        self.lam = np.full(self.shape, 0.5 * over.scale / np.prod(self.shape))
        self.r: np.ndarray | None = np.full(self.shape, 0.5)  # None: to be begun anew
        self.tau, self.mu, self.steps = 0.1, 0.1, 0
        self.rng = np.random.default_rng(seed)

    def begin(self, over: Pass) -> None:
        """Find first prices on samples, each some five times larger than the last."""
        n = len(over.tasks.rows)
        part, first = SAMPLES / n, True
        while part < 0.5:
            some = over.sample(part, self.rng)
            if first:
                self.descend(some, 0.03, 0.005)
            else:
                self.tau, self.mu, self.r = 0.015, 0.003, None
                self.descend(some, 0.01, 0.0015)
            over.level = some.level
            part, first = part * 6, False
        if not first:
            self.tau, self.mu, self.r = 0.006, 0.001, None

    def resume(self, over: Pass, price: np.ndarray, gap: float) -> None:
        """Begin at known prices; where they are 0 the barrier's own trace of a price stands in."""
        least = 1e-3 * self.mu * over.scale / self.lam.size
        self.lam = np.maximum(price * over.tasks.left, least)
        self.tau, self.mu, self.r = min(0.012, 5.0 * gap), min(0.002, 0.4 * gap), None

    def descend(self, over: Pass, tau: float, mu: float, gap: float = 0.0, steps: int = 60) -> float:
        """Go down to this tau and mu; with a gap, until the plan promises it. Give what the plan promises."""
        left, size = over.tasks.left, self.lam.size
        over.stage(self.lam / left, self.tau)
        dual, worth, held = over.at(self.lam / left, self.tau)
        self.steps += 1
        promised = np.inf
        for _ in range(steps):
            m = self.mu * over.scale / size
            idle = 1.0 - over.load / left
            if self.r is None:
                self.r = np.maximum(idle, m / self.lam)
            rent, crowd = float(self.lam.sum()), np.maximum(-idle.min(axis=1), 0.0)
            promised = over.promise(worth, held + rent, crowd, self.lam.sum(axis=1))
            if promised < gap:
                break
            slope = m / self.lam - idle
            step, rise = self._solve(over, slope)
            if step is None:
                break
            change = m / self.lam - self.r - self.r / self.lam * step
            length = min(1.0, 0.95 / max((-step / self.lam).max(), 0.95), 0.95 / max((-change / self.r).max(), 0.95))
            if rise:  # a level may rise half of the way that is left, or fall by half
                room = 0.5 * (over.most - over.level) if rise > 0 else 0.5 * over.level
                length = min(length, room / abs(rise))
            fall = float((slope * step).sum())
            here = rent + dual - m * float(np.log(self.lam).sum())
            done = fall < 0.3 * self.mu * over.scale and length > 0.9
            if done and not gap and self.tau <= tau and self.mu <= mu:
                self.lam, self.r, over.level = self.lam + length * step, self.r + length * change, over.level + rise
                break
            if done and not gap:
                self.tau, self.mu = max(self.tau * STAGE, tau), max(self.mu * STAGE, mu)
            elif done:
                done = self._cool(over, worth, held + rent, idle, gap)
            begun = over.level
            for _ in range(25):
                lam, over.level = self.lam + length * step, begun + length * rise
                if done:
                    over.stage(lam / left, self.tau)
                dual, worth, held = over.at(lam / left, self.tau)
                self.steps += 1
                there = float(lam.sum()) + dual - m * float(np.log(lam).sum())
                if done or there <= here - 1e-4 * length * fall + 1e-12 * abs(here):
                    break
                length *= 0.5
            self.lam, self.r = lam, self.r + length * change
        return promised

    def _cool(self, over: Pass, worth: float, bound: float, idle: np.ndarray, gap: float) -> bool:
        """Lower tau and mu as far as the gap asks; tell whether either fell.

        Without overfull pools the gap has two parts: what idle pools earn, which is the barrier's doing, and the rest,
        which is what smoothing costs.
        """
        idling = float((self.lam * idle).sum()) / over.norm(worth)
        smoothing = over.promise(worth, bound, np.zeros(len(idle)), np.zeros(len(idle))) - idling
        before = self.tau, self.mu
        if smoothing > 0.4 * gap:
            self.tau *= max(STAGE, min(0.7, 0.3 * gap / smoothing))
        self.mu = max(min(self.mu, max(self.mu * STAGE, 0.25 * gap)), 1e-9)
        return before != (self.tau, self.mu)

    def _solve(self, over: Pass, slope: np.ndarray) -> tuple[np.ndarray | None, float]:
        """Give the step of lam, and of the level where the objective has one."""
        left, size = over.tasks.left, self.lam.size
        h = (over.bends / left[:, None, :, None] / left[None, :, None, :]).transpose(0, 2, 1, 3).reshape(size, size)
        slope, pull, stiff, along = slope.ravel(), 0.0, 1.0, np.zeros(size)
        if over.level:
            pull, stiff = over.pull
            along = (over.along / left).ravel()
            h += along[:, None] * (along / stiff)
            slope = slope + along * (pull / stiff)
        diagonal = np.einsum("ii->i", h)
        assert self.r is not None
        diagonal += (self.r / self.lam).ravel() + 1e-10 * diagonal + 1e-12 * diagonal.mean()
        for lift in (0.0, 1e-9, 1e-6, 1e-3):
            diagonal *= 1.0 + lift
            factor, failed = dpotrf(h, lower=1)
            if not failed:
                step = dpotrs(factor, slope, lower=1)[0]
                rise = (pull - float(along @ step)) / stiff if over.level else 0.0
                return step.reshape(self.shape), rise
        return None, 0.0


def solve(sale: Sale, over: Pass, state: Newton, gap: float) -> Point:
    """Go on from `state` until the plan promises this gap."""
    left = over.tasks.left
    state.descend(over, 0.0, 0.0, gap, steps=40)
    price = np.where(sale.left > 0, state.lam / left, 0.0)
    share = np.zeros(len(sale.row))
    share[over.tasks.pairs], bound = over.plan(price, state.tau)
    rent = float((sale.left * price).sum())
    return Point(share, price, None, state.steps, over.proven(rent, bound) * (1.0 + SAFETY) + SAFETY * over.size)
