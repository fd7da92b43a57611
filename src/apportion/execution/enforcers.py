"""Whoever makes grants true on this machine: the protocol, and what those without control groups share.

Which there are, and which of them works here, is in `choosing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from apportion.execution import procfs

PERIOD_US = 25_000  # half a tick of a 20 Hz world: nobody held back waits longer than this for its next turn
SLICE_US = 1_000  # the shortest turn the kernel sells; smaller grants get the same turn less often
LONGEST_US = 1_000_000


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


class Metered:
    """What enforcers without control groups share: usage by the processes' own clocks, and no groups to speak of."""

    sources: Mapping[str, str] = {"cpu": "process clocks", "memory": "resident pages", "storage": "process counters"}

    def __init__(self):
        self._meters: dict[str, procfs.Meter] = {}

    def attach(self, task: str, pid: int) -> None:
        self._meters.setdefault(task, procfs.Meter()).follow(pid)

    def detach(self, task: str) -> None:
        self._meters.pop(task, None)

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


class NoEnforcer(Metered):
    """Holds nobody."""

    name = "none"

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        return ""

    def lift(self) -> None:
        pass

    def close(self) -> None:
        pass
