"""What a round costs beside its waiting: 20 real programs on this machine, every stage timed.

    python benchmarks/rounds.py [--tasks 20] [--rounds 60] [--engine local|sim]

Prints p50 and p95 in milliseconds per stage and in all, beside the bare cost of what no controller can avoid here:
three durable commits of a kibibyte (demand, decision, outcome with bills).
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np

from apportion.serve.build import Choice, Running
from apportion.worlds.world import load

KINDS = ("game", "social", "commerce", "assets")


def world(tasks: int) -> str:
    """A world of small programs that together want half as much again as there is."""
    lines = [
        "version: 1",
        "name: bench-rounds",
        "pools: {here: {capacity: {cpu: 800m, memory: 80% of machine, bandwidth: 1 Gbit/s, storage: 100 MB/s}}}",
        "accounts: {a: {entitlement: 40%}, b: {entitlement: 30%}, c: {entitlement: 20%}, d: {entitlement: 10%}}",
        "tasks:",
    ]
    for i in range(tasks):
        amounts = f"cpu: {1200 // tasks}m, memory: 64 MiB, bandwidth: 4, storage: 1"
        lines.append(
            f"  t{i}: {{kind: {KINDS[i % 4]}, account: {'abcd'[i % 4]}, size: 20, demand: {{{amounts}}}, floor: 20%}}"
        )
    return "\n".join(lines) + "\n"


def bare_commits(folder: Path, count: int) -> np.ndarray:
    """Milliseconds of three durable commits of a kibibyte each, on the same disk."""
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (x BLOB)")
    out = []
    for _ in range(count):
        begin = time.perf_counter()
        for _ in range(3):
            db.execute("INSERT INTO t VALUES (?)", (b"x" * 1024,))
        out.append((time.perf_counter() - begin) * 1e3)
    db.close()
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--engine", choices=("local", "sim"), default="local")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "bench.yaml"
        path.write_text(world(given.tasks))
        with Running(load(path), Choice(given.engine), folder / "out") as running:
            stages = [r.stage_ms for r in running.rounds(given.rounds)]
        bare = bare_commits(folder, given.rounds)
    rows = {name: np.array([s[name] for s in stages]) for name in stages[0]}
    rows["all"] = np.sum(list(rows.values()), axis=0)
    print(f"{given.engine} engine, {given.tasks} tasks, {given.rounds} rounds: milliseconds a round beside its waiting")
    for stage, ms in (rows | {"three bare commits": bare}).items():
        print(f"  {stage:<20} p50 {np.percentile(ms, 50):7.2f}   p95 {np.percentile(ms, 95):7.2f}")
    print(f"  overhead over the bare commits: {np.median(rows['all']) / np.median(bare):.1f} x")


if __name__ == "__main__":
    main()
