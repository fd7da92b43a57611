"""What the gate costs: admission when floors fit, and when they have to be shrunk.

    python benchmarks/intake.py [--large]

Each line is one drawn world (seed 0): tasks x pools, how much of the pools the floors ask for, and the median CPU time over
repeated admissions. `--large` adds 10,000 tasks in 100 pools, where a linear program takes seconds, and 100,000, where none
is solved any more.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from apportion.core.market import Pools, Tasks
from apportion.core.units import SHARE
from apportion.intake.gate import Gate

ACCOUNTS = 10


def drawn(tasks: int, pools: int, asked: float) -> tuple[Gate, Tasks, Pools]:
    """Half the tasks have floors; together these take `asked` of all capacity."""
    rng = np.random.default_rng(0)
    demand = rng.integers(1, 2000, (tasks, 4)).astype(float)
    floor = np.where(rng.random(tasks) < 0.5, rng.uniform(0, 1, tasks), 0.0)
    total = (demand * floor[:, None]).sum(axis=0)
    capacity = np.floor(total / pools / asked * rng.uniform(0.9, 1.1, (pools, 4)))
    some = min(pools, 8)
    return (
        Gate(np.full(ACCOUNTS, 1 / ACCOUNTS), 0.5),
        Tasks(
            name=tuple(f"task-{i}" for i in range(tasks)),
            kind=("game",) * tasks,
            account=rng.integers(0, ACCOUNTS, tasks),
            sponsor=np.full(tasks, -1),
            demand=demand,
            base=demand,
            surge=np.ones(tasks),
            floor=np.ceil(floor * SHARE) / SHARE,
            cap=np.ones(tasks),
            weight=np.ones(tasks),
            priority=rng.integers(0, 3, tasks),
            target=np.full(tasks, 0.95),
            eligible=tuple(tuple(np.sort(rng.choice(pools, some, replace=False)).tolist()) for _ in range(tasks)),
        ),
        Pools(tuple(f"pool-{j}" for j in range(pools)), ("cpu", "memory", "bandwidth", "storage"), capacity),
    )


def measure(tasks: int, pools: int, asked: float, repeat: int) -> None:
    gate, there, what = drawn(tasks, pools, asked)
    bid = np.full(tasks, 1_000_000)
    times = []
    for _ in range(repeat):
        begin = time.thread_time()
        market = gate.admit(there, what, bid)
        times.append(time.thread_time() - begin)
    broken = int((market.floor < there.floor).sum())
    print(
        f"{tasks:>6} tasks {pools:>4} pools   floors ask {asked:4.0%}   {np.median(times) * 1e3:9.2f} ms of CPU   {broken} floors broken"
    )


if __name__ == "__main__":
    for tasks, pools, repeat in ((20, 1, 200), (20, 3, 50), (10_000, 1, 10), (10_000, 10, 3)):
        for asked in (0.3, 0.9, 2.0):
            measure(tasks, pools, asked, repeat)
    if "--large" in sys.argv:
        for asked in (0.3, 0.9, 2.0):
            measure(10_000, 100, asked, 1)
            measure(100_000, 100, asked, 1)
