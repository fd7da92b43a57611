"""Plain attention scores, s_ij = q_i . k_j / sqrt(d_k), from a seeded projection: the untrained comparison.

A task is what it wants of everything there is and its weight; a pool is its part of everything there is. Both are
logarithms, put on the same footing (mean 0, spread 1) and projected by matrices drawn from the seed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from apportion.core.market import Market

WIDTH = 16  # d_k


def scores(market: Market, seed: int) -> Float[np.ndarray, " pair"]:
    """Give one score per eligible pair; the same market and seed give the same scores."""
    rng = np.random.default_rng(seed)
    resources = market.demand.shape[1]
    total = market.capacity.sum(axis=0)
    total = np.where(total > 0, total, 1.0)
    task = np.column_stack([market.demand / total, market.weight / (market.weight.sum() or 1.0)])
    query = _level(task) @ rng.normal(size=(resources + 1, WIDTH)) / np.sqrt(resources + 1)
    key = _level(market.capacity / total) @ rng.normal(size=(resources, WIDTH)) / np.sqrt(resources)
    return (query[market.row] * key[market.indices]).sum(axis=1) / np.sqrt(WIDTH)


def _level(x: np.ndarray) -> np.ndarray:
    x = np.log(np.maximum(x, 1e-12))
    spread = x.std(axis=0) if len(x) else np.ones(x.shape[1])
    return (x - (x.mean(axis=0) if len(x) else 0.0)) / np.where(spread > 1e-12, spread, 1.0)
