"""Whoever makes grants true on this machine: one protocol, four ways, tried for real in order of strength.

cgroup2    the kernel holds CPU and memory, per group, all descendants included
cgroup1    the same on the older interface
governor   a process of ours stops and continues programs by their measured CPU time; needs no rights
none       nothing is held, everything is measured
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from apportion.core.errors import BadInput, EnforcerRefused
from apportion.execution import procfs

PERIOD_US = 25_000  # half a tick of a 20 Hz world: nobody held back waits longer than this for its next turn
SLICE_US = 1_000  # the shortest turn the kernel sells; smaller grants get the same turn less often
LONGEST_US = 1_000_000
TRIAL_MOST = 200  # milli-cores that a busy program granted 50 may get on trial; on a full machine it gets few anyway


def turns(cpu: int) -> tuple[int, int]:
    """Give (turn, period) in microseconds for a grant of so many milli-cores; the ratio is the grant."""
    cpu = max(cpu, 1)  # a program without any turn could not even be asked to end
    period = min(max(PERIOD_US, -(-SLICE_US * 1000 // cpu)), LONGEST_US)
    return max(period * cpu // 1000, SLICE_US), period


@dataclass(frozen=True, slots=True)
class Usage:
    """What one task used: totals that only grow, and the memory it holds now. -1: not measured."""

    cpu: int  # nanoseconds
    memory: int  # KiB
    storage: int  # bytes


@runtime_checkable
class Enforcer(Protocol):
    """Holds tasks to their grants and counts what they use. Raises EnforcerRefused where the machine says no."""

    name: str
    sources: Mapping[str, str]  # resource -> where its usage is read

    def attach(self, task: str, pid: int) -> None:
        """Take charge of a process and its descendants; what the task used before stays counted."""
        ...

    def detach(self, task: str) -> None:
        """Let go of a task whose processes have ended, and forget it."""
        ...

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        """Grant milli-cores and KiB (-1: no limit), weighed against the others; '' or what could not be done so."""
        ...

    def usage(self, task: str, memory: bool = True) -> Usage:
        """Tell what a task used; without `memory` it is -1 and costs nothing."""
        ...

    def kills(self, task: str) -> int:
        """Tell how often the kernel killed a process of this task for want of memory."""
        ...

    def host(self, pid: int) -> None:
        """See to it that the controller itself gets its turn beside the programs it holds."""
        ...

    def groups(self) -> tuple[list[str], list[str]]:
        """Give the control groups to open up, and those whose weight to give back, should the controller die."""
        ...

    def lift(self) -> None:
        """Lift every limit; usage goes on being counted."""
        ...

    def close(self) -> None:
        """Lift every limit and take away whatever was set up; calling it twice is fine."""
        ...


class NoEnforcer:
    """Holds nobody; measures by the processes' own clocks."""

    name = "none"
    sources: Mapping[str, str] = {"cpu": "process clocks", "memory": "resident pages", "storage": "process counters"}

    def __init__(self):
        self._meters: dict[str, procfs.Meter] = {}

    def attach(self, task: str, pid: int) -> None:
        self._meters.setdefault(task, procfs.Meter()).follow(pid)

    def detach(self, task: str) -> None:
        self._meters.pop(task, None)

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        return ""

    def usage(self, task: str, memory: bool = True) -> Usage:
        meter = self._meters[task]
        pids = meter.processes()
        return Usage(meter.cpu(pids), sum(map(procfs.resident, pids)) if memory else -1, meter.storage(pids))

    def kills(self, task: str) -> int:
        return 0

    def host(self, pid: int) -> None:
        pass

    def groups(self) -> tuple[list[str], list[str]]:
        return [], []

    def lift(self) -> None:
        pass

    def close(self) -> None:
        pass


def table() -> dict[str, Callable[[str, Path], Enforcer]]:
    """Name every enforcer, strongest first; each is built from the run's id and folder. A new one is a line here."""
    from apportion.execution.cgroup1 import Cgroup1
    from apportion.execution.cgroup2 import Cgroup2
    from apportion.execution.governor import Governor

    return {
        "cgroup2": lambda run, folder: Cgroup2(run),
        "cgroup1": lambda run, folder: Cgroup1(run),
        "governor": lambda run, folder: Governor(folder),
        "none": lambda run, folder: NoEnforcer(),
    }


def choose(
    wanted: str, run: str, folder: Path, offers: Mapping[str, Callable[[str, Path], Enforcer]] | None = None
) -> tuple[Enforcer, list[str]]:
    """Give the wanted enforcer, or for 'auto' the first that works here, and why stronger ones do not."""
    offers = offers or table()
    if wanted != "auto" and wanted not in offers:
        raise BadInput(f"enforcer: {wanted!r} is unknown. Choose one of auto, {', '.join(offers)}.")
    refused: list[str] = []
    for name in offers if wanted == "auto" else (wanted,):
        try:
            return trial(offers[name](run, folder)), refused
        except EnforcerRefused as refusal:
            refused.append(str(refusal))
    if wanted != "auto":
        raise EnforcerRefused(f"{refused[0]} Choose another enforcer; 'auto' takes the strongest that works here.")
    raise EnforcerRefused(f"no enforcer works here: {' '.join(refused)}")


def trial(enforcer: Enforcer) -> Enforcer:
    """Give the enforcer back after it has really held a busy process; raises EnforcerRefused where it did not."""
    try:
        with _busy() as pid:
            enforcer.attach("@trial", pid)
            enforcer.limit("@trial", 50, 2**20, 50)
            got, tries = 1000.0, 10
            while (
                enforcer.name != "none" and got > TRIAL_MOST and tries
            ):  # a governor's process may take its time to start
                got, tries = _speed(enforcer, 4 * PERIOD_US / 1e6), tries - 1
            enforcer.limit("@trial", -1, -1, 50)
        enforcer.detach("@trial")
        if enforcer.name != "none" and got > TRIAL_MOST:
            raise EnforcerRefused(f"{enforcer.name}: a program granted 50 milli-cores got {got:.0f}.")
    except EnforcerRefused:
        enforcer.close()
        raise
    return enforcer


def _speed(enforcer: Enforcer, seconds: float) -> float:
    """Give the milli-cores that the trial uses now."""
    before, begun = enforcer.usage("@trial").cpu, time.monotonic()
    time.sleep(seconds)
    return (enforcer.usage("@trial").cpu - before) / 1e6 / (time.monotonic() - begun)


@contextmanager
def _busy() -> Iterator[int]:
    """Run a process that wants all it can get, to try things on."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
