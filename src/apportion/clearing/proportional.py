"""Nash welfare: the weighted sum of logarithms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from apportion.clearing.sale import PerTask, Sale

NO_PIECES = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Proportional:
    """f(u) = w log((1 - eta) mean + eta u): Nash welfare of what was used lately and what is bought now."""

    weight: PerTask
    memory: PerTask  # (1 - eta) / eta * mean: u counts on top of it
    eta: float = 1.0
    name: str = "proportional"
    needy: bool = True
    bilinear: bool = True
    pieces: tuple[np.ndarray, np.ndarray, np.ndarray] = NO_PIECES
    level: None = None
    base: None = None

    @classmethod
    def of(cls, sale: Sale) -> Proportional:
        market = sale.market
        return cls(np.where(sale.enters, market.weight, 0.0), (1 - market.eta) / market.eta * market.mean, market.eta)

    def value(self, u: PerTask) -> float:
        return float(self._worth(u).sum())

    def slope(self, u: PerTask) -> PerTask:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.weight > 0, self.weight / (self.memory + u), 0.0)

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(g > 0, self.weight / g - self.memory, np.inf)
        return np.where(self.weight > 0, np.clip(wanted, 0.0, top), 0.0)

    def conjugate(self, g: PerTask, top: PerTask) -> PerTask:
        u = self.respond(g, top)
        return self._worth(u) - np.where(u > 0, g * u, 0.0)

    def gap(self, value: float, bound: float) -> float:
        total = self.weight.sum()
        if total == 0:
            return 0.0
        return float(np.expm1(min((bound - value) / total, 700.0))) if np.isfinite(value) else np.inf

    def near(self, value: float) -> Proportional:
        return self

    def scaled(self, price: np.ndarray, slope: PerTask) -> tuple[np.ndarray, PerTask]:
        return price, slope

    def take(self, rows: np.ndarray) -> Proportional:
        return replace(self, weight=self.weight[rows], memory=self.memory[rows])

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        return self.weight / (self.memory + u) - g, g / (self.memory + u)  # g (memory + u) = w, as a product

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        return product / (self.memory + u)

    def _worth(self, u: PerTask) -> PerTask:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.weight > 0, self.weight * np.log(self.eta * (self.memory + u)), 0.0)
