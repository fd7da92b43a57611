"""Levels: the least service by weight, raised; then the next to least; and dominant shares, raised so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from apportion.clearing.sale import PerTask, Sale


@dataclass(frozen=True)
class Maxmin:
    """F(u) = min_i u_i / w_i over the tasks that enter. No sum, so its slopes are tied: sum_i w_i g_i = 1 proves most."""

    weight: PerTask
    level: PerTask  # w for tasks that still rise together; 0 for those that stand at `base`
    base: PerTask
    name: str = "maxmin"
    needy: bool = True
    bilinear: bool = True

    @property
    def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Above its level a task holds any amount, worth nothing."""
        tasks = np.flatnonzero(self.weight > 0)
        return tasks, np.zeros(len(tasks)), np.full(len(tasks), np.inf)

    def _most(self, top: PerTask) -> float:
        active = self.weight > 0
        return float((top[active] / self.weight[active]).min()) if active.any() else 0.0

    def value(self, u: PerTask) -> float:
        return self._most(u)

    def slope(self, u: PerTask) -> PerTask:
        return np.where(self.weight > 0, 1.0 / max(self.weight.sum(), 1e-300), 0.0)

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        return self.weight * (self._most(top) if float(self.weight @ g) < 1.0 else 0.0)

    def conjugate(self, g: PerTask, top: PerTask) -> PerTask:
        """Give t (1 - sum w g) at the best t, told task by task."""
        gain = max(0.0, 1.0 - float(self.weight @ g)) * self._most(top)
        return gain * self.weight / max(self.weight.sum(), 1e-300)

    def gap(self, value: float, bound: float) -> float:
        return bound / value - 1.0 if value > 0 else bound

    def near(self, value: float) -> AtLevel:
        return AtLevel(self.weight, value * self.weight)

    def scaled(self, price: np.ndarray, slope: PerTask) -> tuple[np.ndarray, PerTask]:
        total = float(self.weight @ slope)
        return (price / total, slope / total) if total > 0 else (price, slope)

    def take(self, rows: np.ndarray) -> Maxmin:
        return replace(self, weight=self.weight[rows], level=self.level[rows], base=self.base[rows])

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        return np.zeros(len(u)), np.zeros(len(u))

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        return 0.0


@dataclass(frozen=True)
class AtLevel:
    """Each task wants exactly `wanted`: what max-min comes to once its level is known."""

    weight: PerTask
    wanted: PerTask

    def slope(self, u: PerTask) -> PerTask:
        return np.where((self.weight > 0) & (u < self.wanted), np.inf, 0.0)

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        return np.where(self.weight > 0, np.minimum(self.wanted, top), 0.0)


def maxmin(sale: Sale) -> Maxmin:
    """Give the least service by weight, to be raised."""
    weight = np.where(sale.enters, sale.market.weight, 0.0)
    return Maxmin(weight, weight, np.zeros(len(weight)))


def leximin(sale: Sale) -> Maxmin:
    """Give the same, and then the next to least, and so on."""
    return replace(maxmin(sale), name="leximin")


def drf(sale: Sale) -> Maxmin:
    """Give dominant resource fairness: leximin over served shares, weighed by what a whole task takes of all there is.

    A task's dominant share is its share times the largest part that it asks of any resource, over all pools.
    """
    market = sale.market
    total = market.capacity.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(market.demand > 0, market.demand / total, 0.0).max(axis=1, initial=0.0)
    enters = sale.enters & np.isfinite(part)
    weight = np.where(enters, market.weight / np.where(enters, part, 1.0), 0.0)
    return Maxmin(weight, weight, np.zeros(len(weight)), name="drf")
