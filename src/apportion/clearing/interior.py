"""Exact prices by a primal-dual interior point with the tasks eliminated.

    max sum_i f_i(u_i)    with  u = V z (g),  lower <= sum_j z <= upper (phi, q),  A z <= 1 (lam),  z >= 0 (zeta)

A is demand over what is left, so lam is a pool's revenue; the dual of each constraint stands in brackets. Mehrotra's
predictor and corrector aim at  slack * dual = mu. Given the step of lam, each task's step solves a system with

    zeta/z + h v v' + kappa 1 1',      h = -dg/du (the objective's curvature),   kappa = q/s + phi/l

a diagonal and two rank-one terms, inverted in closed form (Woodbury). What is left is a system in the pools' lam,
A B A' + diag(r/lam), M R square, by Cholesky. For the logarithm, g (u + memory) = w is kept as one more product, with
its own target w instead of mu: this is why no line search is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from apportion.clearing.loads import loads
from apportion.clearing.objectives import Objective
from apportion.clearing.sale import Sale


@dataclass(frozen=True, slots=True)
class Point:
    """Where the interior point stopped: a plan (not yet whole, not yet exactly feasible) and its duals."""

    share: np.ndarray  # bought, per pair
    price: np.ndarray  # (pool, resource)
    slope: np.ndarray  # g, per task
    steps: int


def solve(sale: Sale, objective: Objective, *, tolerance: float = 1e-9, steps: int = 100) -> Point:
    """Follow the central path until what is left to gain is below tolerance * sum of weights, or no step helps."""
    market = sale.market
    able = np.zeros(len(sale.upper), bool)
    able[sale.row[sale.usable]] = True
    rows = np.flatnonzero(able & (sale.enters | (sale.lower > 0)))
    keep = sale.usable & np.isin(sale.row, rows, assume_unique=False)
    share, slope = np.zeros(len(sale.row)), objective.slope(sale.reach)
    price = np.zeros(sale.left.shape)
    if not len(rows):
        return Point(share, price, slope, 0)
    row = np.searchsorted(rows, sale.row[keep])
    path = _Path(
        np.searchsorted(row, np.arange(len(rows))),
        row,
        market.value[keep],
        sale.lower[rows],
        sale.upper[rows],
        loads(market.demand[rows][row], market.indices[keep], sale.left),
        objective.take(rows),
    )
    count = path.follow(tolerance, steps)
    share[keep], slope[rows] = path.z, path.g
    live = sale.left > 0
    price[live] = path.lam.reshape(price.shape)[live] / sale.left[live]
    return Point(share, price, slope, count)


class _Path:
    """The state of one solve. Slacks (z, s, l, r) lie in one vector and their duals (zeta, q, phi, lam) in another."""

    def __init__(self, start, row, value, lower, upper, loads, objective):
        self.start, self.row, self.value, self.lower, self.upper = start, row, value, lower, upper
        self.loads, self.objective = loads, objective
        self.floored = np.flatnonzero(lower > 0)
        pairs, tasks, floors = len(row), len(start), len(self.floored)
        cut = np.cumsum([0, pairs, tasks, floors, loads.size])
        self.slack, self.dual = np.empty(cut[-1]), np.empty(cut[-1])
        self.parts = [slice(a, b) for a, b in pairwise(cut)]
        self.z, self.s, self.l, self.r = (self.slack[p] for p in self.parts)
        self.zeta, self.q, self.phi, self.lam = (self.dual[p] for p in self.parts)
        # begin inside: half of every cap, spread over a task's pairs, and at most half of every pool
        self.z[:] = (upper / (2.0 * self.rows(np.ones(pairs))))[row]
        self.z *= np.minimum(1.0, loads.room(self.z, 0.5))
        total = self.rows(self.z)
        self.s[:] = upper - total
        self.l[:] = np.maximum(total - lower, 0.1 * lower)[self.floored]
        self.r[:] = 1.0 - loads.load(self.z)
        self.u = self.rows(value * self.z)
        self.g = objective.slope(self.u)
        self.scale = max(float(objective.weight.sum()), 1e-300)
        if not (objective.weight > 0).any():
            self.scale = 1.0  # only floors to serve: any prices will do
        # prices at which the pools take half of all weight; the tasks' duals answer them
        mu = self.scale / len(self.slack)
        self.dual[:] = mu / self.slack
        self.lam[:] = 0.5 * self.scale / loads.size
        gain = self.g[row] * value - loads.cost(self.lam)
        self.q += np.maximum(np.maximum.reduceat(gain, start), 0.0)
        self.zeta += np.maximum(self.q[row] - gain, 0.0)

    def rows(self, x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, self.start)

    def follow(self, tolerance: float, steps: int) -> int:
        best, best_merit, stale, count = None, np.inf, 0, 0
        while count < steps:
            count += 1
            self._measure()
            if not np.isfinite(self.merit):
                break
            if self.merit < best_merit:
                stale = 0
                best, best_merit = (self.slack.copy(), self.dual.copy(), self.u.copy(), self.g.copy()), self.merit
            else:
                stale += self.product < 0.01 * self.scale  # early on it may rise for a while
            if self.merit < tolerance or stale > 4:
                break
            self._factor()
            none = np.zeros_like(self.slack)
            slack, dual, du, dg = self._direction(none, 0.0)
            reach, back = self._length(slack, self.slack, du, self.u), self._length(dual, self.dual, dg, self.g)
            ahead = (self.slack + reach * slack) @ (self.dual + back * dual)
            mu = self.product / len(self.slack)
            centre = (ahead / self.product) ** 3 * mu
            slack, dual, du, dg = self._direction(centre - slack * dual, du * dg)
            reach, back = self._length(slack, self.slack, du, self.u), self._length(dual, self.dual, dg, self.g)
            self.slack += 0.995 * reach * slack
            self.u += 0.995 * reach * du
            self.dual += 0.995 * back * dual
            self.g += 0.995 * back * dg
        if best is not None:
            self.slack[:], self.dual[:], self.u, self.g = best
        return count

    def _measure(self) -> None:
        """Take the residuals of every condition; `merit` is the largest, against its own scale."""
        row, value = self.row, self.value
        lent = -self.q
        lent[self.floored] += self.phi
        cost = self.loads.cost(self.lam)
        self.off_z = (self.g[row] * value - cost) + lent[row] + self.zeta
        total = self.rows(self.z)
        self.off_u = self.u - self.rows(value * self.z)
        self.off_s = self.upper - self.s - total
        self.off_l = (self.lower + 0.0 - total)[self.floored] + self.l
        self.off_r = 1.0 - self.r - self.loads.load(self.z)
        self.product = float(self.slack @ self.dual)
        self.pull, self.h = self.objective.pull(self.u, self.g)
        gain = float(np.abs(self.off_z) @ self.z) + float(np.abs(self.pull) @ self.u)
        rent = float(self.lam @ np.abs(self.off_r)) + float(self.q @ np.abs(self.off_s))
        rent += float(self.phi @ np.abs(self.off_l)) + float(np.abs(self.off_u) @ self.g)
        self.merit = (self.product + gain + rent) / self.scale

    def _factor(self) -> None:
        """Invert every task's system and factor the pools'.

        Written in sqrt(theta) dz, a task's system is the identity and its two terms, which an orthonormal basis (q1, q2)
        of theta-weighted 1 and v turns into a 2 by 2 matrix. Written so, nothing cancels when kappa, h and theta are
        large, and they all are near the end.
        """
        row, value, h = self.row, self.value, self.h
        kappa = self.q / self.s
        kappa[self.floored] += self.phi / self.l
        self.root = np.sqrt(self.z / self.zeta)
        size = np.sqrt(self.rows(self.root**2))
        self.q1 = self.root / size[row]
        first = self.rows(self.q1 * self.root * value)  # v = first q1 + second q2, in that basis
        away = self.root * value - first[row] * self.q1
        away -= self.rows(away * self.q1)[row] * self.q1
        second = np.sqrt(self.rows(away**2))
        second[second < 1e-12 * np.abs(first)] = 0.0
        self.q2 = away / np.where(second > 0, second, np.inf)[row]
        a, b, c = 1.0 + kappa * size**2 + h * first**2, h * first * second, 1.0 + h * second**2
        det = 1.0 + h * (first**2 + second**2) + kappa * size**2 * c
        self.p11, self.p12, self.p22 = c / det, -b / det, a / det
        self.kappa, self.size, self.first, self.second = kappa, size, first, second
        gram = self.loads.gram(self.start, row, self.root, self.q1, self.q2, self.p11, self.p12, self.p22)
        diagonal = np.einsum("ii->i", gram)
        diagonal += self.r / self.lam
        for lift in (1e-14, 1e-11, 1e-8, 1e-5):
            diagonal *= 1.0 + lift
            self.lower_factor, failed = dpotrf(gram, lower=1)
            if not failed:
                return

    def _answer(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the tasks' dz for right-hand sides b, with 1.dz and v.dz, which dz itself has no digits left for."""
        row, q1, q2 = self.row, self.q1, self.q2
        b = self.root * b
        one, two = self.rows(q1 * b), self.rows(q2 * b)
        rest = b - one[row] * q1 - two[row] * q2
        rest -= self.rows(q1 * rest)[row] * q1 + self.rows(q2 * rest)[row] * q2
        y1, y2 = self.p11 * one + self.p12 * two, self.p12 * one + self.p22 * two
        dz = self.root * (rest + y1[row] * q1 + y2[row] * q2)
        return dz, self.size * y1, self.first * y1 + self.second * y2

    def _direction(self, target: np.ndarray, bend: np.ndarray | float):
        """Solve the Newton system for slack * dual = target (target: what the product should become, less its change)."""
        t = target - self.slack * self.dual
        tz, ts, tl, tr = (t[p] for p in self.parts)
        pull = self.pull - self.objective.bend(self.u, bend)
        task = -(ts - self.q * self.off_s) / self.s
        task[self.floored] += (tl + self.phi * self.off_l) / self.l
        gain = pull + self.h * self.off_u
        b = self.off_z + self.value * gain[self.row] + task[self.row] + tz / self.z
        right = self.loads.load(self._answer(b)[0]) + tr / self.lam - self.off_r
        step, _ = dpotrs(self.lower_factor, right, lower=1)
        dz, total, served = self._answer(b - self.loads.cost(step))
        tight = self.lam * self.loads.size > self.r * self.scale
        dr = np.where(tight, (tr - self.r * step) / self.lam, self.off_r - self.loads.load(dz))
        slack = np.concatenate([dz, self.off_s - total, total[self.floored] - self.off_l, dr])
        dual = (t - self.dual * slack) / self.slack
        dual[self.parts[3]] = step
        return slack, dual, served - self.off_u, gain - self.h * served

    @staticmethod
    def _length(step: np.ndarray, at: np.ndarray, more: np.ndarray, more_at: np.ndarray) -> float:
        """Give the longest step, at most 1, that keeps both vectors at or above 0."""
        worst = max(float((-step / at).max()), float((-more[more_at > 0] / more_at[more_at > 0]).max(initial=0.0)))
        return min(1.0, 1.0 / worst) if worst > 0 else 1.0
