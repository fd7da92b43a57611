"""What programs really get of the CPU that they were granted, and what it costs to grant and to look.

    python benchmarks/delivery.py [--rounds 8] [--hogs N] [--busy 1.0] [--enforcers cgroup1 governor none]
    python benchmarks/delivery.py --programs [--rounds 20]

Six programs that want all they can get, an outside hog for every core beside them, all in one run: `held` grants
stay the same, `moved` grants are drawn anew every round (seed 1). Delivered / granted is the mean over the rounds; `off` is
the worst task's distance from 1. The enforcer `none` shows what the machine does of its own accord.
Then twenty programs whose grants all change: how long grant() and observe() take.

With --programs, the shipped programs one at a time instead, held to all and to half of what they say they want: what
reaches them, what they make of it, how much that varies from second to second, and how many operations a second a core
of theirs is asked for (the `rate` and `noise` of execution/programs.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.clock import WallClock
from apportion.core.errors import EnforcerRefused
from apportion.core.market import Market
from apportion.execution import machine
from apportion.execution.local import LocalExecutor
from apportion.execution.programs import own, shipped

PARTS = np.array([0.37, 0.26, 0.16, 0.11, 0.06, 0.04])
BURN = (sys.executable, "-I", "-S", "-c", "while True: pass")
SIZES = {"game": 200, "social": 200, "commerce": 100, "assets": 40}
RESOURCES = ("cpu", "memory", "bandwidth", "storage")


def allocation(grants: np.ndarray) -> Allocation:
    """Grant these milli-cores to programs that want more of everything than there is."""
    n = len(grants)
    demand = np.column_stack([np.maximum(grants, 1), np.full((n, 1), 2**20), np.full((n, 2), 1000.0)])
    market = Market(
        demand, np.full((1, 4), 1e12), tasks=[f"t{i}" for i in range(n)], pools=["machine"], resources=list(RESOURCES)
    )
    return Allocation(market, np.ones(n), np.zeros((1, 4)), "as told", 0.0, 0.0, 0.0)


@contextmanager
def executor(enforcer: str, programs: int) -> Iterator[LocalExecutor]:
    with tempfile.TemporaryDirectory(prefix="apportion-bench-") as folder:
        running = LocalExecutor([own(f"t{i}", BURN) for i in range(programs)], enforcer, Path(folder), WallClock())
        try:
            yield running
        finally:
            running.close()


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Strangers that want the machine too."""
    running = [subprocess.Popen(BURN, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def delivery(enforcer: str, capacity: int, rounds: int, moved: bool) -> np.ndarray:
    """Give delivered / granted per round and task, at rounds of a second."""
    rng, seen = np.random.default_rng(1), []
    with executor(enforcer, len(PARTS)) as running:
        for number in range(rounds + 1):
            parts = PARTS * rng.uniform(0.5, 1.5, len(PARTS)) if moved else PARTS
            grants = np.floor(parts / parts.sum() * capacity)
            running.grant(allocation(grants))
            time.sleep(1)
            if number:  # the first has start-up in it
                seen.append(running.observe().delivered[:, 0] / grants)
    return np.array(seen)


def latency(enforcer: str, capacity: int, rounds: int, programs: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Give milliseconds of grant() and observe() per round, all grants being new each time."""
    rng, grant_ms, observe_ms = np.random.default_rng(1), [], []
    with executor(enforcer, programs) as running:
        for number in range(rounds + 1):
            parts = rng.uniform(0.5, 1.5, programs)
            plan = allocation(np.floor(parts / parts.sum() * capacity))
            begun = time.perf_counter()
            running.grant(plan)
            granted = time.perf_counter()
            time.sleep(0.25)
            looked = time.perf_counter()
            running.observe()
            if number:
                grant_ms.append((granted - begun) * 1e3)
                observe_ms.append((time.perf_counter() - looked) * 1e3)
    return np.array(grant_ms), np.array(observe_ms)


def wants(running: LocalExecutor, name: str, seconds: int) -> float:
    """Give the cores that a program says it wants, the median over some seconds without limits."""
    said = running.folder / "run" / f"{name}.out"
    time.sleep(seconds + 2)
    lines = [json.loads(line) for line in said.read_text().splitlines()[2:]]  # the first tell of its start
    return float(np.median([line["wanted"]["cpu"] for line in lines]))


def shipped_programs(enforcer: str, rounds: int) -> None:
    """Print what the shipped programs make of their grants."""
    print(f"{'kind':10}{'wants':>8}{'granted':>9}{'got':>7}{'experience':>12}{'sd':>7}{'rate':>8}   {enforcer}")
    for kind, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="apportion-bench-") as folder:
            running = LocalExecutor([shipped("t0", kind, size)], enforcer, Path(folder), WallClock())
            try:
                cores = wants(running, "t0", 4)
                for part in (1.0, 0.5):
                    grant, outcomes = np.array([max(np.floor(cores * part * 1000), 1.0)]), []
                    for number in range(rounds + 2):
                        running.grant(allocation(grant))
                        time.sleep(1)
                        outcome = running.observe()
                        if number >= 2 and outcome.asked[0] > 0:
                            outcomes.append(
                                (outcome.delivered[0, 0] / grant[0], outcome.experience[0], outcome.asked[0])
                            )
                    got, felt, asked = np.array(outcomes).T
                    print(
                        f"{kind:10}{cores:8.3f}{part:9.0%}{got.mean():7.2f}{felt.mean():12.3f}{felt.std():7.3f}"
                        f"{asked.sum() / (rounds * cores):8.0f}",
                        flush=True,
                    )
            finally:
                running.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of a second")
    parser.add_argument("--hogs", type=int, default=os.cpu_count(), help="outside the programs that are held")
    parser.add_argument("--busy", type=float, default=1.0, help="part of what the machine promises that is granted")
    parser.add_argument("--enforcers", nargs="*", default=["cgroup2", "cgroup1", "governor", "none"])
    parser.add_argument("--programs", action="store_true", help="the shipped programs instead")
    args = parser.parse_args()
    if args.programs:
        return shipped_programs("auto", args.rounds)
    capacity = int(machine.capacity()["cpu"] * args.busy)
    print(
        f"{os.cpu_count()} cores, {capacity} milli-cores granted to {len(PARTS)} programs, {args.hogs} hogs beside, "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    print(f"{'enforcer':10}{'grants':8}" + "".join(f"{part:>8.0%}" for part in PARTS) + f"{'off':>8}")
    works = []
    with hogs(args.hogs):
        for enforcer in args.enforcers:
            try:
                for moved in (False, True):
                    got = delivery(enforcer, capacity, args.rounds, moved).mean(axis=0)
                    row = "".join(f"{x:8.3f}" for x in got) + f"{np.abs(got - 1).max():8.1%}"
                    print(f"{enforcer:10}{'moved' if moved else 'held':8}{row}", flush=True)
                works.append(enforcer)
            except EnforcerRefused as refusal:
                print(f"{enforcer:10}{str(refusal).partition(' Choose')[0]}")
        print(f"\n{'enforcer':10}{'20 programs, ms':20}{'p50':>8}{'p95':>8}{'max':>8}")
        for enforcer in works:
            for what, taken in zip(("grant", "observe"), latency(enforcer, capacity, 40), strict=True):
                p50, p95 = np.quantile(taken, [0.5, 0.95])
                print(f"{enforcer:10}{what:20}{p50:8.2f}{p95:8.2f}{taken.max():8.2f}", flush=True)
    return None


if __name__ == "__main__":
    main()
