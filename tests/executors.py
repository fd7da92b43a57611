"""What the tests of execution share: grants to write down quickly, programs that burn, and executors to try them on."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from apportion.core.allocation import Allocation
from apportion.core.clock import VirtualClock, WallClock
from apportion.core.errors import EnforcerRefused
from apportion.core.market import Market
from apportion.execution import procfs
from apportion.execution.choosing import choose
from apportion.execution.local import LocalExecutor
from apportion.execution.programs import Program, own
from apportion.execution.sim import SimExecutor

# Where the kernel holds programs for us, the governor's turn in the long tests comes with the slow ones.
_kernel_holds = os.access("/sys/fs/cgroup/cpu/cgroup.procs", os.W_OK)
HOLDERS = ["cgroup1", pytest.param("governor", marks=[pytest.mark.slow] if _kernel_holds else [])]

BURNER = str(Path(__file__).with_name("burner.py"))
RESOURCES = ("cpu", "memory", "bandwidth", "storage")
MIB = 1024  # KiB


def allocation(
    grants: dict[str, float], demand: float = 1000, memory: float = 256 * MIB, pools: Sequence[float] = (1.0,)
) -> Allocation:
    """Grant each task so many of the milli-cores it demands, divided among the pools as said."""
    n, m = len(grants), len(pools)
    market = Market(
        demand=np.tile([demand, memory, 1000.0, 1000.0], (n, 1)),
        capacity=np.full((m, 4), 1e9),
        tasks=list(grants),
        pools=[f"pool-{j}" for j in range(m)],
        resources=list(RESOURCES),
    )
    part = np.array(list(grants.values()), float) / demand
    share = np.outer(part, np.array(pools)).ravel()
    return Allocation(market, share, np.zeros((m, 4)), "test", 0.0, 0.0, 0.0)


def burner(name: str, *arguments: str, want: float = 1.0) -> Program:
    return own(name, (sys.executable, "-S", BURNER, "--want", str(want), *arguments))


@cache
def _refusal(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            enforcer, _ = choose(name, f"offered-{os.getpid()}", Path(folder))
        except EnforcerRefused as refusal:
            return str(refusal).removeprefix(f"{name}: ").partition(" Choose")[0]
        enforcer.close()
        return ""


def offered(name: str) -> str:
    """Give the enforcer's name, or skip where this machine does not let it work."""
    if why := _refusal(name):
        pytest.skip(f"{name}: {why}")
    return name


@contextmanager
def local(enforcer: str, folder: Path, *programs: Program) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(programs, offered(enforcer), folder, WallClock())
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def simulated(names: Sequence[str], clock: VirtualClock, seed: int = 7, kind: str = "process") -> Iterator[SimExecutor]:
    executor = SimExecutor(dict.fromkeys(names, kind), {}, clock, seed)
    try:
        yield executor
    finally:
        executor.close()


def eventually(claim: Callable[[], bool], seconds: float) -> bool:
    """Wait until it holds, at most so long."""
    until = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def speed(pid: int, seconds: float = 0.4) -> float:
    """Give the cores that a process and its descendants use just now."""
    begun, before = time.monotonic(), {each: procfs.cpu_ns(each) for each in procfs.tree(pid)}
    time.sleep(seconds)
    used = sum(procfs.cpu_ns(each) - ns for each, ns in before.items() if procfs.cpu_ns(each))
    return used / 1e9 / (time.monotonic() - begun)
