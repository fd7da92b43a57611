"""Random markets for the laws of clearing, drawn from a seed: plain ones, awkward ones and wild ones; and objectives for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apportion.clearing.curves import LINEAR, PIECEWISE, SATURATING, experience
from apportion.clearing.objectives import OBJECTIVES, Objective
from apportion.clearing.sale import Sale
from apportion.core.market import Market
from apportion.core.units import SHARE

CURVES = {"saturating": [SATURATING], "piecewise": [PIECEWISE], "experience": [LINEAR, SATURATING, PIECEWISE]}
GOALS = (*OBJECTIVES, *CURVES)
Goal = str | Callable[[Sale], Objective]


def curves(name: str, tasks: int, seed: int, knots: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Give each task a response curve of the kinds that belong to the name, as (kind, curve)."""
    rng = np.random.default_rng(seed)
    kind, steps = rng.choice(CURVES[name], tasks), -np.sort(-rng.random((tasks, knots)), axis=1)
    curve = np.cumsum(steps, axis=1) / steps.sum(axis=1, keepdims=True)
    curve[kind == SATURATING, 0] = rng.uniform(0.1, 8, (kind == SATURATING).sum())
    return kind, curve


def goal(name: str, tasks: int, seed: int) -> Goal:
    """Give an objective by its name; one of response curves draws these from the seed."""
    return experience(*curves(name, tasks, seed)) if name in CURVES else name


def like(market: Market, **new: np.ndarray | float) -> Market:
    """Give the same market but for what is new."""
    names = ("demand", "capacity", "weight", "value", "indptr", "indices", "floor", "cap", "mean", "eta", "free")
    return Market(**({name: getattr(market, name) for name in names} | new))


def draw(seed: int, most_tasks: int = 8, most_pools: int = 4, awkward: bool = True) -> Market:
    """Give a small market; awkward ones have floors, caps, memory, free shares, zeros and wild scales."""
    rng = np.random.default_rng(seed)
    n, m, r = rng.integers(1, most_tasks + 1), rng.integers(1, most_pools + 1), rng.integers(1, 4)
    demand = rng.lognormal(0, 1, (n, r)) * 100
    eligible = rng.random((n, m)) < rng.uniform(0.4, 1)
    eligible[np.arange(n), rng.integers(0, m, n)] = True
    value = np.where(eligible, rng.uniform(0.2, 1, (n, m)), 0)
    capacity = rng.lognormal(0, 0.5, (m, r)) * demand.sum(0) / m / rng.uniform(0.3, 6)
    weight = rng.choice([1.0, 2.0, 4.0], n)
    extra = {}
    if awkward:
        demand[rng.random((n, r)) < 0.1] = 0
        weight[rng.random(n) < 0.1] = 0
        weight *= 10.0 ** rng.integers(-3, 4)
        scale = 10.0 ** rng.integers(-6, 10, r)
        demand, capacity = demand * scale, capacity * scale
        capacity[rng.random((m, r)) < 0.05] = 0
        if rng.random() < 0.5:  # whole base units, as the house has them
            demand, capacity = np.ceil(demand), np.floor(capacity)
        cap = np.where(rng.random(n) < 0.3, rng.uniform(0, 1, n), 1.0)
        extra = {"cap": cap, "eta": rng.choice([1.0, 0.3]), "mean": rng.uniform(0, 1, n) * (rng.random(n) < 0.7)}
        market = Market(demand, capacity, weight, value)
        some = _some_plan(market, cap, rng)
        if rng.random() < 0.5:
            extra["free"] = np.floor(some * rng.uniform(0, 0.4) * 1e9) / 1e9
        if rng.random() < 0.6:
            extra["floor"] = np.minimum(market.per_task(some) * rng.uniform(0, 0.9, n) * (rng.random(n) < 0.6), cap)
    return Market(demand, capacity, weight, value, **extra)


def wild(seed: int, most_tasks: int = 10, most_pools: int = 5) -> Market:
    """Give a small market in which numbers of one kind differ by many orders, tasks are alike, want nothing or may go nowhere."""
    rng = np.random.default_rng(seed)
    n, m, r = rng.integers(1, most_tasks + 1), rng.integers(1, most_pools + 1), rng.integers(1, 5)
    chance = lambda p: rng.random() < p  # noqa: E731
    demand = rng.lognormal(0, rng.choice([0.3, 1, 2.5]), (n, r))
    demand[rng.random((n, r)) < 0.2 * rng.integers(0, 2)] = 0
    value = np.exp(rng.uniform(np.log(rng.choice([0.2, 1e-2, 1e-4])), 0, (n, m))) * (
        rng.random((n, m)) < rng.uniform(0.3, 1)
    )
    contention = 10 ** rng.uniform(-1, 1.5)
    capacity = rng.lognormal(0, rng.choice([0.3, 1, 2]), (m, r)) * np.maximum(demand.sum(0), 0.1) / m / contention
    if chance(0.2):
        demand[:], value[:] = demand[0], value[0]
    if chance(0.2):
        demand[rng.random(n) < 0.4] = 0
    weight = rng.choice([1.0, 2.0, 4.0], n) if chance(0.7) else np.exp(rng.uniform(np.log(1e-2), np.log(1e2), n))
    weight *= (rng.random(n) < 0.6 if chance(0.2) else 1.0) * 10.0 ** rng.integers(-6, 10)
    unit = 10.0 ** rng.integers(-6, 10, r)
    demand, capacity = demand * unit, capacity * unit
    if chance(0.3):
        capacity[rng.random(m) < 0.5] = 0  # lost
    capacity[rng.random((m, r)) < 0.1 * rng.integers(0, 2)] = 0
    cap = np.where(rng.random(n) < 0.5, 10 ** rng.uniform(-3, 0, n), 1.0) if chance(0.4) else np.ones(n)
    extra = {"eta": rng.choice([1.0, 0.3, 0.01]), "mean": rng.uniform(0, 1, n) * (rng.random(n) < 0.7)}
    some = _some_plan(Market(demand, capacity, weight, value), cap, rng)
    if chance(0.3):
        extra["free"] = np.floor(some * rng.uniform(0, 0.4) * 1e9) / 1e9
    if chance(0.4):
        served = Market(demand, capacity, weight, value).per_task(some)
        extra["floor"] = np.minimum(served * rng.uniform(0, 0.95, n) * (rng.random(n) < 0.6), cap)
    return Market(demand, capacity, weight, value, cap=cap, **extra)


def rounding(sale: Sale, share: np.ndarray) -> float:
    """Give what whole parts may cost at most, beside a solver's gap: a part for each pair and one more, of what a task buys."""
    pairs, best = np.bincount(sale.row[sale.usable], minlength=len(sale.upper)), np.zeros(len(sale.upper))
    np.maximum.at(best, sale.row[sale.usable], sale.value[sale.usable])
    parts = np.maximum(sale.bought(share) * SHARE, 1e-9)
    return float(((pairs + 1) * best / parts)[sale.enters].max(initial=0.0))


def _some_plan(market: Market, cap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give shares that fit, so that floors and free shares drawn below them fit too."""
    share = rng.random(len(market.indices))
    share *= np.minimum(1, cap / np.maximum(market.per_task(share), 1e-9))[market.row]
    load = market.load(share)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = np.where(load > market.capacity, market.capacity / load, 1.0)
    wanted = (market.demand > 0)[market.row]
    return share * np.where(wanted, fit[market.indices], 1.0).min(axis=1, initial=1.0)
