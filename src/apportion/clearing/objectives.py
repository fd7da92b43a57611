"""What clearing maximises: sum_i f_i(u_i), each f_i concave and rising, u_i what the task buys.

An objective answers in the two ways that a market needs: what service is worth (`value`), and how much of it a task
would take if service cost g (`respond`). Its conjugate is what that answer earns, and so Fenchel and Young's inequality

    value(u) <= conjugate(g, top) + g.u      for every 0 <= u <= top and g >= 0,   equal at u = respond(g, top)

is the law by which every bound of `certificate` holds. Tasks that do not enter have weight 0 and f = 0.
A new objective is a file beside this one, a line in OBJECTIVES and a row in that law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from apportion.clearing.curves import welfare
from apportion.clearing.maxmin import drf, leximin, maxmin
from apportion.clearing.proportional import Proportional
from apportion.clearing.sale import PerTask, Sale
from apportion.core.errors import BadInput
from apportion.core.market import Market


@runtime_checkable
class Answers(Protocol):
    """What makes tasks ask for more or less service: enough to find the slopes that prove most."""

    def slope(self, u: PerTask) -> PerTask:
        """Give f'(u), what a little more is worth."""
        ...

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        """Give the u in [0, top] that maximises f(u) - g u."""
        ...


@runtime_checkable
class Objective(Answers, Protocol):
    """Worth of service to tasks."""

    @property
    def name(self) -> str: ...

    @property
    def needy(self) -> bool:
        """Tell whether a task that gets nothing at all spoils the whole."""
        ...

    @property
    def weight(self) -> PerTask:
        """Give each task's weight; 0 for those that do not enter."""
        ...

    def value(self, u: PerTask) -> float:
        """Give what service u is worth."""
        ...

    def conjugate(self, g: PerTask, top: PerTask) -> PerTask:
        """Give max of f(u) - g u over [0, top], task by task."""
        ...

    def gap(self, value: float, bound: float) -> float:
        """Tell how far from the optimum a value may be; 0 is optimal."""
        ...

    def near(self, value: float) -> Answers:
        """Give the task-by-task answers whose slopes prove most near this value: its own, if it is a sum."""
        ...

    def scaled(self, price: np.ndarray, slope: PerTask) -> tuple[np.ndarray, PerTask]:
        """Give the multiple of these prices and slopes that proves most."""
        ...

    # What the interior point asks besides: f as products, curves or pieces.

    @property
    def bilinear(self) -> bool:
        """Tell whether g = f'(u) is a product or linear: then primal and dual may take steps of their own."""
        ...

    @property
    def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the parts that u is made of: their task, what a unit is worth, their length."""
        ...

    @property
    def level(self) -> PerTask | None:
        """Give what u rises by with the level: only max-min has one; pieces hold what is above."""
        ...

    @property
    def base(self) -> PerTask | None:
        """Give what u holds before any piece."""
        ...

    def take(self, rows: np.ndarray) -> Objective:
        """Give the objective of these tasks alone."""
        ...

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        """Give the linear model dg = pull - h du of the condition g = f'(u), as (pull, h)."""
        ...

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        """Give what du * dg = product adds to that condition at second order."""
        ...


OBJECTIVES: dict[str, Callable[[Sale], Objective]] = {
    "proportional": Proportional.of,
    "welfare": welfare,
    "maxmin": maxmin,
    "leximin": leximin,
    "drf": drf,
}
ALIKE = {"drf"}  # where a task is served does not matter to these


def pose(market: Market, objective: str | Callable[[Sale], Objective]) -> tuple[Sale, Objective]:
    """Give what is for sale, and what is to be maximised: an objective by its name, or one that a caller makes."""
    if callable(objective):
        sale = Sale(market)
        return sale, objective(sale)
    if objective == "experience":
        raise BadInput("objective 'experience' needs its curves: clear(market, experience(kind, curve)).")
    if objective not in OBJECTIVES:
        raise BadInput(f"objective {objective!r} is not known. Known: {', '.join(OBJECTIVES)}, experience.")
    sale = Sale(market, alike=objective in ALIKE)
    return sale, OBJECTIVES[objective](sale)
