"""How long clearing takes beside the solvers that one would pick: same instances, same run, one thread, CPU seconds.

    python benchmarks/clearing.py [--sizes S,M,L,XL] [--seeds 0] [--objectives welfare,proportional,maxmin] [--gaps 1e-3,1e-4]
                                  [--peers highs,clarabel] [--slowest 120]

Sizes: S 100 x 10, M 1,000 x 20, L 10,000 x 50, XL 100,000 x 100, five resources, eight pools a task, demand with a heavy
tail, 2.2 times what there is. From arrays in memory to an allocation in memory; imports and compilation are done before.
`gap` is certified: ours by its own bound, a peer's by the same bound at the peer's prices or, where it has none, left out.
A peer that took longer than `--slowest` at one size is not asked at the next. `ratio` is the peer's time over ours.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before NumPy is imported: one thread is what is measured

import numpy as np  # noqa: E402
from scipy.optimize import linprog  # noqa: E402
from scipy.sparse import csr_matrix, hstack, vstack  # noqa: E402

from apportion.clearing.clear import clear  # noqa: E402
from apportion.core.market import Market  # noqa: E402

SIZES = {"S": (100, 10), "M": (1_000, 20), "L": (10_000, 50), "XL": (100_000, 100)}
PROFILE = np.array(
    [[1, 1.2, 0.8, 0.9, 0.2], [0.5, 0.1, 0.6, 1.5, 0.3], [0.9, 0.05, 0.9, 0.6, 0.7], [0.4, 0.05, 0.4, 0.3, 1.8]]
)  # game, social, commerce, assets: cpu, gpu, memory, bandwidth, storage


def instance(tasks: int, pools: int, seed: int, contention: float = 2.2, eligible: int = 8) -> Market:
    """Give tasks around hot spots, pools near and far, heavy-tailed demand."""
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


def constraints(market: Market) -> tuple[csr_matrix, np.ndarray]:
    """Give capacities (each as 1) and caps as rows over pairs."""
    row, resources = market.row, market.demand.shape[1]
    part = market.demand[row] / market.capacity[market.indices]
    lines = market.indices[:, None] * resources + np.arange(resources)
    pairs = np.repeat(np.arange(len(row)), resources)
    loads = csr_matrix((part.ravel(), (lines.ravel(), pairs)), (market.capacity.size, len(row)))
    caps = csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), (len(market.demand), len(row)))
    return vstack([loads, caps]).tocsr(), np.ones(market.capacity.size + len(market.demand))


def highs(market: Market, objective: str) -> float | None:
    """Solve the linear objectives by HiGHS' interior point; give the value."""
    rows, limit = constraints(market)
    if objective == "welfare":
        found = linprog(-(market.weight[market.row] * market.value), rows, limit, method="highs-ipm")
        return -found.fun
    if objective == "maxmin":
        serve = csr_matrix(
            (-market.value / market.weight[market.row], (market.row, np.arange(len(market.row)))),
            (len(market.demand), len(market.row)),
        )
        level = csr_matrix(np.append(np.zeros(rows.shape[0]), np.ones(len(market.demand)))[:, None])
        cost = np.append(np.zeros(len(market.row)), -1.0)
        limit = np.append(limit, np.zeros(len(market.demand)))
        found = linprog(cost, hstack([vstack([rows, serve]), level]).tocsr(), limit, method="highs-ipm")
        return -found.fun
    return None


def clarabel(market: Market, objective: str) -> float | None:
    """Solve the same by Clarabel, through cvxpy; give the value."""
    import cvxpy as cp

    rows, limit = constraints(market)
    x = cp.Variable(len(market.row), nonneg=True)
    u = csr_matrix((market.value, (market.row, np.arange(len(market.row)))), (len(market.demand), len(market.row))) @ x
    worth = {
        "welfare": lambda: market.weight @ u,
        "proportional": lambda: market.weight @ cp.log(u),
        "maxmin": lambda: cp.min(cp.multiply(1 / market.weight, u)),
    }[objective]()
    problem = cp.Problem(cp.Maximize(worth), [rows @ x <= limit])
    problem.solve(cp.CLARABEL)
    return float(problem.value)


PEERS = {"highs": highs, "clarabel": clarabel}


def timed(run) -> tuple[float, object]:
    begun = time.process_time()
    told = run()
    return time.process_time() - begun, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S,M,L")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--objectives", default="welfare,proportional,maxmin")
    parser.add_argument("--gaps", default="1e-3,1e-4")
    parser.add_argument("--peers", default="highs,clarabel")
    parser.add_argument("--slowest", type=float, default=120.0)
    told = parser.parse_args()
    objectives, gaps = told.objectives.split(","), [float(g) for g in told.gaps.split(",")]
    for objective in objectives:  # compile and import, outside the clock
        clear(instance(200, 10, 99), objective)
        for peer in told.peers.split(",") if told.peers else ():
            PEERS[peer](instance(20, 8, 99), objective)
    tired: set[tuple[str, str]] = set()
    print(f"{'size':4} {'objective':13} {'who':14} {'CPU s':>9} {'gap':>9} {'ratio':>8} {'peak MB':>8}")
    for size in told.sizes.split(","):
        for seed in told.seeds.split(","):
            market = instance(*SIZES[size], int(seed))
            for objective in objectives:
                ours = {}
                for gap in gaps:
                    ours[gap], answer = timed(lambda o=objective, g=gap, m=market: clear(m, o, gap=g))
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    who = f"ours {gap:g}"
                    print(f"{size:4} {objective:13} {who:14} {ours[gap]:9.4f} {answer.gap:9.2g} {'':8} {peak:8.0f}")
                for peer in told.peers.split(",") if told.peers else ():
                    if (peer, objective) in tired:
                        continue
                    took, value = timed(lambda p=peer, o=objective, m=market: PEERS[p](m, o))
                    if value is None:
                        continue
                    if took > told.slowest:
                        tired.add((peer, objective))
                    ratio = f"{took / ours[gaps[0]]:.0f}"
                    print(f"{size:4} {objective:13} {peer:14} {took:9.4f} {'':9} {ratio:>8}", flush=True)


if __name__ == "__main__":
    main()
