"""What clearing maximises: sum_i f_i(u_i), each f_i concave and rising, u_i what the task buys.

An objective answers in the two ways that a market needs: what service is worth (`value`), and how much of it a task
would take if service cost g (`respond`). Its conjugate is what that answer earns, and so Fenchel and Young's inequality

    value(u) <= conjugate(g, top) + g.u      for every 0 <= u <= top and g >= 0,   equal at u = respond(g, top)

is the law by which every bound of `certificate` holds. A new objective is one class here and one row in that law.
Tasks that do not enter have weight 0 and f = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from apportion.clearing.sale import Sale
from apportion.core.errors import BadInput
from apportion.core.market import Market

PerTask = Float[np.ndarray, " task"]


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


LINEAR, SATURATING, PIECEWISE = 0, 1, 2


@dataclass(frozen=True)
class Curves:
    """f(u) = w q(u), q concave with q(0) = 0 and q(1) = 1: how experience answers service.

    linear       q = u
    saturating   q = (1 - exp(-k u)) / (1 - exp(-k)),                 k in the first column of `curve`
    piecewise    straight between equal steps of u; `curve` holds q at 1/K, 2/K, ... 1; flat beyond
    """

    weight: PerTask
    kind: Int[np.ndarray, " task"]
    curve: Float[np.ndarray, "task knot"]
    name: str = "experience"
    bilinear: bool = False
    needy: bool = False
    level: None = None

    @property
    def base(self) -> PerTask:
        return np.zeros(len(self.weight))

    @property
    def rate(self) -> PerTask:
        return np.where(self.kind == SATURATING, self.curve[:, 0], 1.0)

    @property
    def steps(self) -> Float[np.ndarray, "task piece"]:
        """Give the slope of q on each piece."""
        return np.diff(self.curve, axis=1, prepend=0.0) * self.curve.shape[1]

    @property
    def rises(self) -> Float[np.ndarray, "task piece"]:
        """Give what a unit of service is worth on each piece."""
        return self.steps * self.weight[:, None]

    @property
    def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tasks = np.flatnonzero((self.kind == PIECEWISE) & (self.weight > 0))
        knots = self.curve.shape[1]
        rises = np.column_stack([self.rises[tasks], np.zeros(len(tasks))])
        lengths = np.tile(np.append(np.full(knots, 1.0 / knots), np.inf), len(tasks))
        return np.repeat(tasks, knots + 1), rises.ravel(), lengths

    def worth(self, u: PerTask) -> PerTask:
        k, knots = self.rate, self.curve.shape[1]
        out = np.where(self.kind == SATURATING, np.expm1(-k * u) / np.expm1(-k), u)
        if (bent := self.kind == PIECEWISE).any():
            filled = np.clip(u[bent, None] - np.arange(knots) / knots, 0.0, 1.0 / knots)
            out[bent] = (filled * np.diff(self.curve[bent], axis=1, prepend=0.0) * knots).sum(axis=1)
        return self.weight * out

    def value(self, u: PerTask) -> float:
        return float(self.worth(u).sum())

    def slope(self, u: PerTask) -> PerTask:
        k, knots = self.rate, self.curve.shape[1]
        out = self.weight * np.where(self.kind == SATURATING, -k * np.exp(-k * u) / np.expm1(-k), 1.0)
        if (bent := self.kind == PIECEWISE).any():
            at = np.floor(u[bent] * knots * (1 + 1e-14)).astype(np.int64)
            rises = np.column_stack([self.rises[bent], np.zeros(bent.sum())])
            out[bent] = rises[np.arange(len(at)), np.minimum(at, knots)]
        return out

    def respond(self, g: PerTask, top: PerTask) -> PerTask:
        k, knots = self.rate, self.curve.shape[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            bent = np.log(self.weight * k / (-np.expm1(-k) * g)) / k
        out = np.where(self.kind == SATURATING, bent, np.where(self.weight > g, np.inf, 0.0))
        pieces = self.kind == PIECEWISE
        out[pieces] = (self.rises[pieces] > g[pieces, None]).sum(axis=1) / knots
        return np.where(self.weight > 0, np.clip(np.nan_to_num(out, nan=0.0, posinf=np.inf), 0.0, top), 0.0)

    def conjugate(self, g: PerTask, top: PerTask) -> PerTask:
        u = self.respond(g, top)
        return np.maximum(self.worth(u) - g * u, 0.0)

    def gap(self, value: float, bound: float) -> float:
        return bound / value - 1.0 if value > 0 else bound

    def near(self, value: float) -> Curves:
        return self

    def scaled(self, price: np.ndarray, slope: PerTask) -> tuple[np.ndarray, PerTask]:
        return price, slope

    def take(self, rows: np.ndarray) -> Curves:
        return replace(self, weight=self.weight[rows], kind=self.kind[rows], curve=self.curve[rows])

    def pull(self, u: PerTask, g: PerTask) -> tuple[PerTask, PerTask]:
        bent = self.kind == SATURATING
        pull = np.where((self.kind != PIECEWISE) & (self.weight > 0), self.slope(u) - g, 0.0)
        return pull, np.where(bent, self.rate * g, 0.0)

    def bend(self, u: PerTask, product: PerTask | float) -> PerTask | float:
        return 0.0


def welfare(sale: Sale) -> Curves:
    """Give f(u) = w u."""
    weight = np.where(sale.enters, sale.market.weight, 0.0)
    return Curves(weight, np.zeros(len(weight), np.int64), np.ones((len(weight), 1)), "welfare", bilinear=True)


def experience(kind: ArrayLike, curve: ArrayLike) -> Callable[[Sale], Curves]:
    """Give the objective of these response curves, one row per task (see Curves)."""
    kind, curve = np.array(kind, np.int64), np.array(curve, np.float64)
    curve = curve[:, None] if curve.ndim == 1 else curve
    steps = np.diff(curve, axis=1, prepend=0.0)
    for i in np.flatnonzero(~np.isin(kind, (LINEAR, SATURATING, PIECEWISE))):
        raise BadInput(f"curve_kind[{i}] is {kind[i]}: it is 0 (linear), 1 (saturating) or 2 (piecewise).")
    for i in np.flatnonzero((kind == SATURATING) & ~((curve[:, 0] > 0) & (curve[:, 0] < 500))):
        raise BadInput(f"curve[{i}, 0] is {curve[i, 0]}: a saturating curve's rate lies between 0 and 500.")
    wrong = (np.diff(steps, axis=1) > 1e-12).any(axis=1) | (steps < 0).any(axis=1) | ~np.isfinite(curve).all(axis=1)
    for i in np.flatnonzero((kind == PIECEWISE) & wrong):
        raise BadInput(f"curve[{i}] is {curve[i].tolist()}: a piecewise curve rises from 0 by steps that never grow.")

    def of(sale: Sale) -> Curves:
        if kind.shape != sale.upper.shape or len(curve) != len(kind):
            raise BadInput(
                f"{len(kind)} kinds and {len(curve)} curves for {len(sale.upper)} tasks: give each task one."
            )
        return Curves(np.where(sale.enters, sale.market.weight, 0.0), kind, curve)

    return of


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
