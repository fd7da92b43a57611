"""Random markets for the laws of clearing, drawn from a seed: plain ones and awkward ones."""

from __future__ import annotations

import numpy as np

from apportion.core.market import Market


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


def _some_plan(market: Market, cap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give shares that fit, so that floors and free shares drawn below them fit too."""
    share = rng.random(len(market.indices))
    share *= np.minimum(1, cap / np.maximum(market.per_task(share), 1e-9))[market.row]
    load = market.load(share)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = np.where(load > market.capacity, market.capacity / load, 1.0)
    wanted = (market.demand > 0)[market.row]
    return share * np.where(wanted, fit[market.indices], 1.0).min(axis=1)
