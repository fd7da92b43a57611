"""Markets for measuring: tasks around hot spots, pools near and far, demand with a heavy tail; the same seed, the same market."""

from __future__ import annotations

import numpy as np

from apportion.core.market import Market

SIZES = {"S": (100, 10), "M": (1_000, 20), "L": (10_000, 50), "XL": (100_000, 100), "1M": (1_000_000, 200)}
PROFILE = np.array(
    [[1, 1.2, 0.8, 0.9, 0.2], [0.5, 0.1, 0.6, 1.5, 0.3], [0.9, 0.05, 0.9, 0.6, 0.7], [0.4, 0.05, 0.4, 0.3, 1.8]]
)  # game, social, commerce, assets: cpu, gpu, memory, bandwidth, storage


def instance(tasks: int, pools: int, seed: int, contention: float = 2.2, eligible: int = 8) -> Market:
    """Draw a market of five resources. contention: wanted / there is, around which resources spread; eligible: pools per task."""
    eligible = min(eligible, pools)
    rng = np.random.default_rng([seed, tasks, pools])
    kind = rng.choice(4, tasks, p=[0.4, 0.3, 0.2, 0.1])
    size = np.minimum((1 - rng.random(tasks)) ** (-1 / 1.5), 200.0)
    demand = size[:, None] * PROFILE[kind] * rng.lognormal(0, 0.4, (tasks, 5))
    place, pool = (
        rng.random((6, 2))[rng.integers(0, 6, tasks)] + rng.normal(0, 0.15, (tasks, 2)),
        rng.random((pools, 2)),
    )
    capacity = rng.lognormal(0, 0.6, (pools, 1)) * rng.lognormal(0, 0.35, (pools, 5))
    level = contention * np.linspace(0.7, 1.35, 5)[rng.permutation(5)]
    capacity *= demand.sum(0) / (level * capacity.sum(0))
    hardware = rng.uniform(0.3, 1, (4, 4))[:, rng.integers(0, 4, pools)]
    indices, value = np.empty((tasks, eligible), np.int64), np.empty((tasks, eligible))
    for a in range(0, tasks, 20_000):
        some = slice(a, a + 20_000)
        far = np.linalg.norm(place[some, None] - pool, axis=2)
        near = np.argpartition(far / 0.15 - rng.gumbel(size=far.shape), eligible - 1, axis=1)[:, :eligible]
        indices[some] = np.sort(near, axis=1)
        far = np.take_along_axis(far, indices[some], 1)
        value[some] = hardware[kind[some, None], indices[some]] * np.exp(-far / 0.8) * rng.lognormal(0, 0.15, far.shape)
    value = np.maximum(value / value.max(1, keepdims=True), 0.02)
    return Market(
        demand,
        capacity,
        rng.choice([1.0, 2.0, 4.0], tasks, p=[0.6, 0.3, 0.1]),
        value.ravel(),
        indptr=np.arange(0, tasks * eligible + 1, eligible),
        indices=indices.ravel(),
    )
