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
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]

from apportion.clearing.loads import loads
from apportion.clearing.objectives import Objective
from apportion.clearing.sale import Sale

SHORT = 0.1  # of the way to the boundary: a predictor that gets no further is not trusted for its curvature


@dataclass(frozen=True, slots=True)
class Point:
    """Where the interior point stopped: a plan (not yet whole, not yet exactly feasible) and its duals."""

    share: np.ndarray  # bought, per pair
    price: np.ndarray  # (pool, resource)
    slope: np.ndarray | None  # g, per task
    steps: int
    bound: float | None = None  # where it is known already


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
        sale.value[keep],
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
    """The state of one solve. Slacks lie in one vector, their duals, in the same order, in another:

    z (zeta)   s (q)   l (phi)   r (lam)   a (alpha): parts of u, for objectives made of pieces   c (beta): what is left of them
    """

    def __init__(self, start, row, value, lower, upper, loads, objective):
        self.start, self.row, self.value, self.lower, self.upper = start, row, value, lower, upper
        self.loads, self.objective = loads, objective
        self.floored = np.flatnonzero(lower > 0)
        self.piece, self.rise, self.length = objective.pieces
        self.limited = np.flatnonzero(np.isfinite(self.length))
        self.base = objective.base
        self.level = objective.level if objective.level is not None and objective.level.any() else None
        pairs, tasks = len(row), len(start)
        cut = np.cumsum([0, pairs, tasks, len(self.floored), loads.size, len(self.piece), len(self.limited)])
        self.slack, self.dual = np.empty(cut[-1]), np.empty(cut[-1])
        self.parts = [slice(a, b) for a, b in pairwise(cut)]
        self.z, self.s, self.l, self.r, self.a, self.c = (self.slack[p] for p in self.parts)
        self.zeta, self.q, self.phi, self.lam, self.alpha, self.beta = (self.dual[p] for p in self.parts)
        # begin inside: half of every cap, spread over a task's pairs, and at most half of every pool
        self.z[:] = (upper / (2.0 * self.rows(np.ones(pairs))))[row]
        self.z *= np.minimum(1.0, loads.room(self.z, 0.5))
        total = self.rows(self.z)
        self.s[:] = upper - total
        self.l[:] = np.maximum(total - lower, 0.1 * lower)[self.floored]
        self.r[:] = 1.0 - loads.load(self.z)
        self.u = self.rows(value * self.z)
        if self.level is not None:
            rising = self.level > 0
            self.t = 0.5 * float(((self.u - self.base) / np.where(rising, self.level, 1.0))[rising].min(initial=1e300))
            self.g = np.where(objective.weight > 0, 1.0 / max(self.level.sum(), 1e-300), 0.0)
        else:
            self.t, self.g = 0.0, objective.slope(self.u)
        self._spread()
        # prices at which the pools take half of what service is worth; the tasks' duals answer them
        self._size()
        self.dual[:] = self.scale / len(self.slack) / self.slack
        if self.level is not None:
            self.alpha[:] = self.g[
                self.piece
            ]  # what is above the level earns nothing: their only difference is this dual
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
                best = (self.slack.copy(), self.dual.copy(), self.u.copy(), self.g.copy(), self.t)
                best_merit = self.merit
            else:
                stale += self.product < 0.01 * self.scale  # early on it may rise for a while
            if self.merit < tolerance or stale > 4:
                break
            self._factor()
            slack, dual, du, dg, _ = self._direction(np.zeros_like(self.slack), 0.0)
            reach, back = self._length(slack, self.slack, du, self.u), self._length(dual, self.dual, dg, self.g)
            ahead = (self.slack + reach * slack) @ (self.dual + back * dual)
            mu = self.product / len(self.slack)
            centre = (ahead / self.product) ** 3 * mu
            # what a short step saw of the second order says little of a long one (Colombo & Gondzio 2008)
            trust = 1.0 if min(reach, back) > SHORT else reach * back
            slack, dual, du, dg, dt = self._direction(centre - trust * slack * dual, trust * du * dg)
            reach, back = self._length(slack, self.slack, du, self.u), self._length(dual, self.dual, dg, self.g)
            if not self.objective.bilinear:
                reach = back = min(reach, back)
            self.slack += 0.995 * reach * slack
            self.u += 0.995 * reach * du
            self.t += 0.995 * reach * dt
            self.dual += 0.995 * back * dual
            self.g += 0.995 * back * dg
        if best is not None:
            self.slack[:], self.dual[:], self.u, self.g, self.t = best
        return count

    def _spread(self) -> None:
        """Begin with every piece partly filled."""
        owner = self.piece
        if not len(owner):
            return
        total = np.bincount(owner, weights=np.where(np.isfinite(self.length), self.length, 0.0), minlength=len(self.u))
        part = np.clip(self.u / np.where(total > 0, total, 1.0), 0.05, 0.95)[owner]
        above = self.u[owner] - self.base[owner] - (0.0 if self.level is None else self.t * self.level[owner])
        self.a[:] = np.where(np.isfinite(self.length), part * self.length, np.maximum(above, 0.1 * self.u[owner]))
        self.c[:] = (self.length - self.a)[self.limited]

    def _size(self) -> None:
        """Measure what service is worth at the point: residuals and products are small or large beside that."""
        worth = float(self.g @ self.u)
        self.scale = max(worth, 1e-3 * float(self.objective.weight.sum()) if self.level is None else worth, 1e-300)
        if not (self.objective.weight > 0).any():
            self.scale = 1.0  # only floors to serve: any prices will do

    def _measure(self) -> None:
        """Take the residuals of every condition; `merit` adds them up, each times its dual, beside what service is worth."""
        row, value = self.row, self.value
        lent = -self.q
        lent[self.floored] += self.phi
        cost = self.loads.cost(self.lam)
        self.off_z = (self.g[row] * value - cost) + lent[row] + self.zeta
        total = self.rows(self.z)
        self.off_u = self.u - self.rows(value * self.z)
        self.off_s = self.upper - self.s - total
        self.off_l = (self.lower - total)[self.floored] + self.l
        self.off_r = 1.0 - self.r - self.loads.load(self.z)
        self.product = float(self.slack @ self.dual)
        self.pull, self.h = self.objective.pull(self.u, self.g)
        rent = float(self.lam @ np.abs(self.off_r)) + float(self.q @ np.abs(self.off_s))
        rent += float(self.phi @ np.abs(self.off_l)) + float(np.abs(self.off_u) @ self.g)
        rent += float(np.abs(self.off_z) @ self.z) + float(np.abs(self.pull) @ self.u)
        self.off_t = 0.0
        if len(self.piece):
            self.off_a = self.rise - self.g[self.piece] + self.alpha
            self.off_a[self.limited] -= self.beta
            self.off_c = self.length[self.limited] - (self.a[self.limited] + self.c)
            self.off_sum = self.u - self.base - np.bincount(self.piece, weights=self.a, minlength=len(self.u))
            if self.level is not None:
                self.off_sum -= self.t * self.level
                self.off_t = 1.0 - float(self.level @ self.g)
                rent += abs(self.off_t * self.t)
            rent += float(np.abs(self.off_a) @ self.a) + float(np.abs(self.off_c) @ self.beta)
            mine = np.bincount(self.piece, minlength=len(self.u)) > 0
            rent += float(np.abs(self.off_sum[mine]) @ self.g[mine])
        self._size()
        self.merit = (self.product + rent) / self.scale
        if len(self.piece) and (held := self.base > 0).any():  # who stands still is owed it, though it earns nothing
            self.merit += float((np.abs(self.off_sum[held]) / self.base[held]).max())

    def _factor(self) -> None:
        """Invert every task's system and factor the pools'.

        Written in sqrt(theta) dz, a task's system is the identity and its two terms, which an orthonormal basis (q1, q2)
        of theta-weighted 1 and v turns into a 2 by 2 matrix: written so, nothing cancels however large kappa, h and theta
        become, and near the end they all are.
        """
        row = self.row
        if len(self.piece):  # pieces answer a change of g by sum(omega): together they bend like h = 1 / sum(omega)
            give = self.alpha / self.a
            give[self.limited] += self.beta / self.c
            self.omega = 1.0 / give
            self.omegas = np.bincount(self.piece, weights=self.omega, minlength=len(self.h))
            self.h = np.where(self.omegas > 0, 1.0 / np.where(self.omegas > 0, self.omegas, 1.0), self.h)
        h = self.h
        kappa = self.q / self.s
        kappa[self.floored] += self.phi / self.l
        self.root = np.sqrt(self.z / self.zeta)
        self.size = np.sqrt(self.rows(self.root**2))
        self.q1 = self.root / self.size[row]
        self.first = self.rows(self.q1 * self.root * self.value)  # v = first q1 + second q2, in that basis
        away = self.root * self.value - self.first[row] * self.q1
        away -= self.rows(away * self.q1)[row] * self.q1
        self.second = np.sqrt(self.rows(away**2))
        self.second[self.second < 1e-12 * np.abs(self.first)] = 0.0
        self.q2 = away / np.where(self.second > 0, self.second, np.inf)[row]
        self.still = 1.0 / (1.0 + kappa * self.size**2)  # what kappa leaves of a move along q1
        self.free = self.first**2 * self.still + self.second**2  # v.v, as far as kappa lets v move
        bend = 1.0 + h * self.free
        p11 = self.still * (1.0 + h * self.second**2) / bend
        p12 = -h * self.still * self.first * self.second / bend
        p22 = (1.0 + h * self.first**2 * self.still) / bend
        gram = self.loads.gram(self.start, row, self.root, self.q1, self.q2, p11, p12, p22)
        diagonal = np.einsum("ii->i", gram)
        diagonal += self.r / self.lam
        for lift in (1e-14, 1e-11, 1e-8, 1e-5):
            diagonal *= 1.0 + lift
            self.lower_factor, failed = dpotrf(gram, lower=1)
            if not failed:
                break
        if self.level is not None:  # how all moves with t: a column beside the system
            self.column = self._solve(np.zeros(len(row)), self.h * self.level, np.zeros(self.loads.size))

    def _answer(self, b: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, ...]:
        """Give the tasks' dz for right-hand sides b + v gain, with 1.dz, v.dz and dg = gain - h v.dz.

        The last three come from the basis: dz itself has no digits left for them.
        """
        row, q1, q2 = self.row, self.q1, self.q2
        b = self.root * b
        one, two = self.rows(q1 * b), self.rows(q2 * b)
        rest = b - one[row] * q1 - two[row] * q2
        rest -= self.rows(q1 * rest)[row] * q1 + self.rows(q2 * rest)[row] * q2
        dg = (gain - self.h * (self.still * self.first * one + self.second * two)) / (1.0 + self.h * self.free)
        y1, y2 = self.still * (one + self.first * dg), two + self.second * dg
        dz = self.root * (rest + y1[row] * q1 + y2[row] * q2)
        return dz, self.size * y1, self.first * y1 + self.second * y2, dg

    def _solve(self, b: np.ndarray, gain: np.ndarray, pools: np.ndarray) -> tuple[np.ndarray, ...]:
        """Give the pools' dlam and the tasks' answer to it."""
        right = self.loads.load(self._answer(b, gain)[0]) + pools
        step, _ = dpotrs(self.lower_factor, right, lower=1)
        return step, *self._answer(b - self.loads.cost(step), gain)

    def _direction(self, target: np.ndarray, bend: np.ndarray | float):
        """Solve the Newton system for slack * dual = target (target: what the product should become, less its change)."""
        t = target - self.slack * self.dual
        tz, ts, tl, tr, ta, tc = (t[p] for p in self.parts)
        pull = self.pull - self.objective.bend(self.u, bend)
        if len(self.piece):
            drawn = self.off_a + ta / self.a
            drawn[self.limited] -= (tc - self.beta * self.off_c) / self.c
            drawn *= self.omega
            pieced = np.bincount(self.piece, weights=drawn, minlength=len(self.h)) - self.off_sum
            pull = np.where(self.omegas > 0, pieced * self.h, pull)
        task = -(ts - self.q * self.off_s) / self.s
        task[self.floored] += (tl + self.phi * self.off_l) / self.l
        b = self.off_z + task[self.row] + tz / self.z
        step, dz, total, served, dg = self._solve(b, pull + self.h * self.off_u, tr / self.lam - self.off_r)
        dt = 0.0
        if self.level is not None:
            dt = (self.off_t - float(self.level @ dg)) / float(self.level @ self.column[4])
            step, dz, total, served, dg = (
                x + dt * y for x, y in zip((step, dz, total, served, dg), self.column, strict=True)
            )
        tight = self.lam * self.loads.size > self.r * self.scale
        dr = np.where(tight, (tr - self.r * step) / self.lam, self.off_r - self.loads.load(dz))
        slack = [dz, self.off_s - total, total[self.floored] - self.off_l, dr]
        if len(self.piece):
            da = drawn - self.omega * dg[self.piece]
            slack += [da, self.off_c - da[self.limited]]
        slack = np.concatenate(slack)
        dual = (t - self.dual * slack) / self.slack
        dual[self.parts[3]] = step
        return slack, dual, served - self.off_u, dg, dt

    @staticmethod
    def _length(step: np.ndarray, at: np.ndarray, more: np.ndarray, more_at: np.ndarray) -> float:
        """Give the longest step, at most 1, that keeps both vectors at or above 0."""
        worst = max(float((-step / at).max()), float((-more[more_at > 0] / more_at[more_at > 0]).max(initial=0.0)))
        return min(1.0, 1.0 / worst) if worst > 0 else 1.0
