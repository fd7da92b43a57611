"""What clearing maximises: sum_i f_i(u_i), each f_i concave and rising, u_i what the task buys.

An objective answers in the two ways that a market needs: what service is worth (`value`), and how much of it a task
would take if service cost g (`respond`). Its conjugate is what that answer earns, and so Fenchel and Young's inequality

    value(u) <= conjugate(g, top) + g.u      for every 0 <= u <= top and g >= 0,   equal at u = respond(g, top)

is the law by which every bound of `certificate` holds. A new objective is one class here and one row in that law.
Tasks that do not enter have weight 0 and f = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from apportion.clearing.sale import Sale
from apportion.core.errors import BadInput

PerTask = Float[np.ndarray, " task"]


@runtime_checkable
class Objective(Protocol):
    """Worth of service to tasks."""

    name: str

    @property
    def weight(self) -> PerTask:
        """Give each task's weight; 0 for those that do not enter."""
        ...

    def value(self, u: PerTask) -> float:
        """Give what service u is worth."""
        ...

    def slope(self, u: PerTask) -> PerTask:
        """Give f'(u), what a little more is worth."""
        ...

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        """Give the u in [0, top] that maximises f(u) - g u."""
        ...

    def conjugate(self, g: PerTask, top: PerTask) -> PerTask:
        """Give max of f(u) - g u over [0, top], task by task."""
        ...

    def gap(self, value: float, bound: float) -> float:
        """Tell how far from the optimum a value may be; 0 is optimal."""
        ...

    def take(self, rows: np.ndarray) -> Objective:
        """Give the objective of these tasks alone."""
        ...

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        """Give the interior point's linear model dg = pull - h du of the condition g = f'(u), as (pull, h)."""
        ...

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        """Give what du * dg = product adds to that condition at second order."""
        ...


@dataclass(frozen=True)
class Proportional:
    """f(u) = w log((1 - eta) mean + eta u): Nash welfare of what was used lately and what is bought now."""

    weight: PerTask
    memory: PerTask  # (1 - eta) / eta * mean: u counts on top of it
    eta: float = 1.0
    name: str = "proportional"

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

    def take(self, rows: np.ndarray) -> Proportional:
        return replace(self, weight=self.weight[rows], memory=self.memory[rows])

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        return self.weight / (self.memory + u) - g, g / (self.memory + u)  # g (memory + u) = w, as a product

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        return product / (self.memory + u)

    def _worth(self, u: PerTask) -> PerTask:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.weight > 0, self.weight * np.log(self.eta * (self.memory + u)), 0.0)


OBJECTIVES = {"proportional": Proportional}


def objective(name: str, sale: Sale) -> Objective:
    """Give the objective of that name for this sale."""
    if name not in OBJECTIVES:
        raise BadInput(f"objective {name!r} is not known. Known: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name].of(sale)
