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
from scipy.linalg.lapack import dpotrf, dpotrs

from apportion.clearing import sweeps
from apportion.clearing.certificate import SAFETY
from apportion.clearing.interior import Point
from apportion.clearing.objectives import Curves, Objective, Proportional
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
            market.indices if whole else market.indices[pairs],
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

    def at(self, price: np.ndarray, tau: float, bend: bool = True) -> tuple[float, float, float]:
        """Give the tasks' part of the smoothed dual, what their plan is worth, and their part of the exact dual."""
        ...

    def plan(self, price: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
        """Give what each pair buys, and the tasks' part of the exact dual."""
        ...

    def sample(self, part: float, rng: np.random.Generator) -> Pass: ...

    def gap(self, worth: float, bound: float) -> float: ...


class _Room:
    """What passes write into."""

    def __init__(self, tasks: Tasks):
        self.tasks = tasks
        pools, resources = tasks.left.shape
        self.load = np.empty((pools, resources))
        self.bends = np.zeros((pools, pools, resources, resources))
        self.scale = float(tasks.weight.sum())
        self.size = 100.0 * self.scale


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

    def gap(self, worth, bound):
        return (bound - worth) / self.scale


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

    def gap(self, worth, bound):
        return bound / worth - 1.0 if worth > 0 else np.inf


def passes(sale: Sale, objective: Objective) -> Pass | None:
    """Give the pass of an objective; None where there is none."""
    if isinstance(objective, Proportional):
        tasks = Tasks.of(sale, objective.weight)
        return ProportionalPass(tasks, objective.memory[tasks.rows], objective.eta)
    if isinstance(objective, Curves) and objective.name == "welfare":
        return WelfarePass(Tasks.of(sale, objective.weight))
    return None


class Newton:
    """Prices on their way down: lam, the slack r, the temperature tau and the barrier mu, kept between passes."""

    def __init__(self, over: Pass, seed: int = 0):
        self.shape = over.tasks.left.shape
        self.lam = np.full(self.shape, 0.5 * over.scale / np.prod(self.shape))
        self.r = np.full(self.shape, 0.5)
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
                self.descend(some, 0.015, 0.003)
            part, first = part * 6, False
        if not first:
            self.tau, self.mu, self.r = 0.012, 0.002, None

    def resume(self, over: Pass, price: np.ndarray) -> None:
        """Begin at known prices; where they are 0 the barrier's own trace of a price stands in."""
        least = 1e-3 * self.mu * over.scale / self.lam.size
        self.lam = np.maximum(price * over.tasks.left, least)
        self.tau, self.mu, self.r = 0.012, 0.002, None

    def descend(self, over: Pass, tau: float, mu: float, gap: float = 0.0, steps: int = 60) -> float:
        """Go down to this tau and mu, or until the plan promises this gap; give what it promises."""
        left, size = over.tasks.left, self.lam.size
        dual, worth, bound = over.at(self.lam / left, self.tau)
        self.steps += 1
        for _ in range(steps):
            m = self.mu * over.scale / size
            idle = 1.0 - over.load / left
            if self.r is None:
                self.r = np.maximum(idle, m / self.lam)
            rent = float(self.lam.sum())
            lost = float((np.maximum(-idle.min(axis=1), 0.0) * self.lam.sum(axis=1)).sum())  # to scaling pools down
            promised = over.gap(worth - lost, bound + rent)
            if promised < gap:
                return promised
            slope = m / self.lam - idle
            step = self._solve(over.bends, left, slope)
            if step is None:
                return promised
            change = m / self.lam - self.r - self.r / self.lam * step
            length = min(1.0, 0.95 / max((-step / self.lam).max(), 0.95), 0.95 / max((-change / self.r).max(), 0.95))
            fall = float((slope * step).sum())
            here = rent + dual - m * float(np.log(self.lam).sum())
            done = fall < 0.3 * self.mu * over.scale and length > 0.9
            if done and self.tau <= tau and self.mu <= mu and not gap:
                self.lam, self.r = self.lam + length * step, self.r + length * change
                return promised
            if done:
                self.tau, self.mu = max(self.tau * STAGE, tau), max(self.mu * STAGE, mu)
            for _ in range(25):
                lam = self.lam + length * step
                dual, worth, bound = over.at(lam / left, self.tau)
                self.steps += 1
                there = float(lam.sum()) + dual - m * float(np.log(lam).sum())
                if done or there <= here - 1e-4 * length * fall + 1e-12 * abs(here):
                    break
                length *= 0.5
            self.lam, self.r = lam, self.r + length * change
        return promised

    def _solve(self, bends: np.ndarray, left: np.ndarray, slope: np.ndarray) -> np.ndarray | None:
        size = self.lam.size
        h = (bends / left[:, None, :, None] / left[None, :, None, :]).transpose(0, 2, 1, 3).reshape(size, size)
        diagonal = np.einsum("ii->i", h)
        diagonal += (self.r / self.lam).ravel() + 1e-10 * diagonal + 1e-12 * diagonal.mean()
        for lift in (0.0, 1e-9, 1e-6, 1e-3):
            diagonal *= 1.0 + lift
            factor, failed = dpotrf(h, lower=1)
            if not failed:
                return dpotrs(factor, slope.ravel(), lower=1)[0].reshape(self.shape)
        return None


def solve(sale: Sale, over: Pass, state: Newton, gap: float) -> Point:
    """Go on from `state` until the plan promises this gap."""
    left = over.tasks.left
    # the barrier costs about mu and smoothing about tau / 5 of what service is worth
    state.descend(over, min(4.0 * gap, 0.01), min(0.4 * gap, 0.002), gap, steps=40)
    price = np.where(sale.left > 0, state.lam / left, 0.0)
    share = np.zeros(len(sale.row))
    share[over.tasks.pairs], bound = over.plan(price, state.tau)
    rent = float((sale.left * price).sum())
    return Point(share, price, None, state.steps, bound + rent + SAFETY * (rent + over.size))
