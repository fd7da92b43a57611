"""Prices for many tasks: Newton on the dual, smoothed, over prices alone.

    D(lam) = sum lam + sum_i D_i(lam; tau),   gradient 1 - load,   lam = price * capacity, one for each pool and resource

Every task's best answer to prices is smoothed by a temperature tau (`sweeps` has the formulas), so D bends; a primal-dual
barrier keeps lam > 0 (slack r of load <= 1, r lam = mu). tau and mu fall together, only from a stage that has converged, and
no further than the asked gap needs. The first prices come from samples: a kept task stands for 1/pi copies of itself, and
a twentieth of the tasks knows the prices to a few per cent. A pass over all tasks gives the dual, its slope, its bends, an
exact bound and what the plan is worth, so the gap is known before a plan is built.
"""

from __future__ import annotations

import numpy as np

from apportion.clearing.certificate import SAFETY
from apportion.clearing.interior import Point
from apportion.clearing.passes import Pass
from apportion.clearing.sale import Sale

SAMPLES = 2500  # tasks in the smallest sample
STAGE = 0.35  # what tau and mu fall by
CONVERGED = 3.0  # in units of mu: what a whole step may still gain where the next stage begins
CROWDED = 0.2  # overfull by more, a pool is not scaled down at what it earns: promises hold only below


class Newton:
    """Prices on their way down: lam, the slack r, the temperature tau and the barrier mu, kept between passes."""

    def __init__(self, over: Pass, seed: int = 0):
        self.shape = over.left.shape
        self.lam = np.full(self.shape, over.rent * over.scale / np.prod(self.shape))
        self.r: np.ndarray | None = np.full(self.shape, 0.5)  # None: to be begun anew
        self.tau, self.mu, self.steps = 0.1, 0.1, 0
        self.rng = np.random.default_rng(seed)

    def begin(self, over: Pass, gap: float) -> None:
        """Find first prices on samples, each some five times larger than the last."""
        part, first = max(SAMPLES, 4 * self.lam.size) / over.count, True
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
            self.tau, self.mu, self.r = min(max(0.006, 3.0 * gap), 0.012), min(max(0.001, 0.3 * gap), 0.005), None

    def resume(self, over: Pass, price: np.ndarray, gap: float) -> None:
        """Begin at known prices; where they are 0 the barrier's own trace of a price stands in."""
        least = 1e-3 * self.mu * over.scale / self.lam.size
        self.lam = np.maximum(price * over.left, least)
        self.tau, self.mu, self.r = min(0.012, 5.0 * gap), min(0.002, 0.4 * gap), None

    def descend(
        self, over: Pass, tau: float, mu: float, gap: float = 0.0, steps: int = 60, share: np.ndarray | None = None
    ) -> float:
        """Go down to this tau and mu; with a gap, until the plan promises it. Give the tasks' part of the exact dual.

        share: takes the plan at the prices where it ends.
        """
        left, size = over.left, self.lam.size
        over.stage(self.lam / left, self.tau)
        dual, worth, held = over.at(self.lam / left, self.tau, share=share)
        for _ in range(steps):
            m = self.mu * over.scale / size
            idle = 1.0 - over.load / left
            self.r = np.maximum(idle, m / self.lam) if self.r is None else np.maximum(self.r, 0.5 * idle)
            rent, crowd = float(self.lam.sum()), np.maximum(-idle.min(axis=1), 0.0)
            promised = over.promise(worth, held + rent, crowd, self.lam.sum(axis=1))
            if promised < gap and crowd.max() < CROWDED:
                break
            slope = m / self.lam - idle
            step, rise = self._solve(over, slope)
            if step is None:
                break
            self.steps += 1
            change = m / self.lam - self.r - self.r / self.lam * step
            length = min(1.0, 0.95 / max((-step / self.lam).max(), 0.95), 0.95 / max((-change / self.r).max(), 0.95))
            if rise:
                length = min(length, 0.5 * over.level / abs(rise))
            fall = float((slope * step).sum())
            here = rent + dual - m * float(np.log(self.lam).sum())
            done = fall < CONVERGED * self.mu * over.scale and length > 0.9
            if done and not gap and self.tau <= tau and self.mu <= mu:
                self.lam, self.r, over.level = self.lam + length * step, self.r + length * change, over.level + rise
                break
            if done and not gap:
                self.tau, self.mu = max(self.tau * STAGE, tau), max(self.mu * STAGE, mu)
            elif done:
                done = self._cool(over, worth, held + rent, idle, gap, fall)
            begun = over.level
            for _ in range(25):
                lam, over.level = self.lam + length * step, begun + length * rise
                if done:
                    over.stage(lam / left, self.tau)
                dual, worth, held = over.at(lam / left, self.tau, share=share)
                there = float(lam.sum()) + dual - m * float(np.log(lam).sum())
                if done or there <= here - 1e-4 * length * fall + 1e-12 * abs(here):
                    break
                length *= 0.5
            else:
                again = over.refine()
                over.level, length = begun, 0.0
                dual, worth, held = over.at(self.lam / left, self.tau, share=share)
                if not again:
                    break  # nowhere to go: what is known must do
            self.lam, self.r = self.lam + length * step, self.r + length * change
        return held

    def _cool(self, over: Pass, worth: float, bound: float, idle: np.ndarray, gap: float, fall: float) -> bool:
        """Lower tau and mu as far as the gap asks; tell whether either fell.

        Without overfull pools the gap has two parts: what idle pools earn, which is the barrier's doing, and the rest,
        which is what smoothing costs.
        """
        idling = float((self.lam * idle).sum()) / over.norm(worth)
        smoothing = over.promise(worth, bound, np.zeros(len(idle)), np.zeros(len(idle))) - idling
        before = self.tau, self.mu
        if smoothing > 0.4 * gap:
            self.tau *= max(STAGE, min(0.7, 0.3 * gap / smoothing))
        self.mu = max(min(self.mu, max(self.mu * STAGE, 0.25 * gap * over.norm(worth) / over.scale)), 1e-9)
        if before == (self.tau, self.mu) and fall < 1e-6 * self.mu * over.scale:  # both small, their sum is not
            self.tau, self.mu = (
                (0.7 * self.tau, self.mu) if smoothing > idling else (self.tau, max(0.5 * self.mu, 1e-9))
            )
        return before != (self.tau, self.mu)

    def _solve(self, over: Pass, slope: np.ndarray) -> tuple[np.ndarray | None, float]:
        """Give the step of lam, and of the level where the objective has one."""
        assert self.r is not None
        along, (pull, stiff) = np.zeros(self.shape), (0.0, 1.0)
        if over.rises:
            along, (pull, stiff) = over.along / over.left, over.pull
        step = over.bends.solve(over.blocks, self.r / self.lam, along, stiff, slope + along * (pull / stiff))
        if step is None:
            return None, 0.0
        return step, (pull - float((along * step).sum())) / stiff if over.rises else 0.0


def solve(sale: Sale, over: Pass, state: Newton, gap: float) -> Point:
    """Go on from `state` until the plan promises this gap."""
    share = np.full(len(sale.value), 0.0)
    held = state.descend(over, 0.0, 0.0, gap, steps=40, share=share)
    price = np.where(sale.left > 0, state.lam / over.left, 0.0)
    rent = float((sale.left * price).sum())
    bound = over.proven(rent, held)
    if bound >= over.most:
        price = np.zeros_like(price)  # prices of 0 prove as much, to anybody
    top = bound * (1.0 + SAFETY) + SAFETY * 100.0 * over.scale
    return Point(share, price, None, state.steps, top if over.exact else None)
