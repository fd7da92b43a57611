"""Service worth what curves say: welfare where they are straight, experience where they bend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from apportion.clearing.sale import PerTask, Sale
from apportion.core.errors import BadInput

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
            at = np.minimum(np.floor(u[bent] * knots * (1 + 1e-14)), knots).astype(np.int64)
            rises = np.column_stack([self.rises[bent], np.zeros(bent.sum())])
            out[bent] = rises[np.arange(len(at)), at]
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
    kind, curve = np.array(kind), np.array(curve, np.float64)
    for i in np.flatnonzero(~np.isin(kind, (LINEAR, SATURATING, PIECEWISE))):
        raise BadInput(f"curve_kind[{i}] is {kind[i]}: it is 0 (linear), 1 (saturating) or 2 (piecewise).")
    curve = curve[:, None] if curve.ndim == 1 else curve
    if not curve.shape[1]:
        raise BadInput(f"curve has shape {curve.shape}: give each task at least one number.")
    kind, steps = kind.astype(np.int64), np.diff(curve, axis=1, prepend=0.0)
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
