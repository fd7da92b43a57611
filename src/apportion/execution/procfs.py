"""What /proc tells about processes and their trees; standard library only, since the guardian lives on it.

A process is known by pid *and* start time: the kernel gives pids away again, a start time never.
"""

from __future__ import annotations

import os
import time

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
_EXITING = 0x4  # PF_EXITING of the kernel: a zombie has it too
_TELLS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _stat(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    return _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()


def _read(path: str) -> str:
    file = os.open(path, os.O_RDONLY)  # a third of what open() takes, some hundred times a round
    try:
        return os.read(file, 2**16).decode(errors="replace")
    finally:
        os.close(file)


def started(pid: int) -> int:
    """Give the start time of a live process in clock ticks since boot; 0 where there is none (a zombie is none)."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive(pid: int, start: int) -> bool:
    """Tell whether the very process that started then still runs."""
    return start > 0 and started(pid) == start


def ending(pid: int) -> bool:
    """Tell whether a process is gone or on its way out, which takes long where much memory has to be given back."""
    try:
        return bool(int(_stat(pid)[6]) & _EXITING)
    except OSError:
        return True


def stopped(pid: int) -> bool:
    """Tell whether a process is held by SIGSTOP."""
    try:
        return _stat(pid)[0] == "T"
    except OSError:
        return False


def tree(pid: int) -> list[int]:
    """Give a process and all its descendants, parents first; one that has ended is simply not there."""
    found = [pid]
    children = _children if _TELLS_CHILDREN else _scan().get
    for parent in found:  # grows while we walk it
        found += children(parent) or []
    return found


def _children(pid: int) -> list[int]:
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split()]
    except OSError:
        pass  # ended while we looked
    return found


def _scan() -> dict[int, list[int]]:
    """Give every process's children the slow way, for kernels built without CONFIG_PROC_CHILDREN."""
    found: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
        except OSError:
            continue
    return found


def own() -> list[int]:
    """Give the processes of our own user, but for ourselves."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if pid != os.getpid() and os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                found.append(pid)
        except OSError:
            continue  # ended while we looked
    return found


def environment(pid: int) -> dict[str, str]:
    """Give the environment that a process was started with; nothing where we may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            said = file.read()
    except OSError:
        return {}
    named = (each.partition("=") for each in os.fsdecode(said).split("\0") if each)
    return {name: value for name, _, value in named}


def cpu_ns(pid: int) -> int:
    """Give the CPU time of a process, all threads, to the nanosecond; 0 when it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # CPUCLOCK_SCHED of another process: see clock_getcpuclockid(3)
    except OSError:
        return 0


def reaped_ns(pid: int) -> int:
    """Give the CPU time of a process's children that have ended and been waited for."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0
    return (int(fields[13]) + int(fields[14])) * _TICK_NS


def resident(pid: int) -> int:
    """Give the resident memory of a process in KiB; 0 when it is gone."""
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_KIB
    except (OSError, IndexError):
        return 0


def storage(pid: int) -> int:
    """Give the bytes a process, and those of its children that have ended, moved to and from disks; -1: not told."""
    try:
        lines = _read(f"/proc/{pid}/io").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("read_bytes:", "write_bytes:")))
    except OSError:
        return -1


class Meter:
    """Adds up what one task's processes used, over restarts; every total only grows.

    CPU and storage of a child that ended move to its parent's books when it is waited for, so the sum over the
    living is complete but for what was never waited for.
    """

    def __init__(self):
        self.pid = self.start = 0
        self._before = [0, 0]  # what earlier incarnations used: CPU ns, storage bytes
        self._now = [0, 0]

    def follow(self, pid: int) -> None:
        """Follow this process and its descendants from now on; totals of an earlier one are kept."""
        if pid != self.pid:
            self._before = [a + b for a, b in zip(self._before, self._now, strict=True)]
            self._now, self.pid, self.start = [0, 0], pid, started(pid)

    def processes(self) -> list[int]:
        """Give who is counted now; none once the process has ended, whoever has its number then."""
        return tree(self.pid) if alive(self.pid, self.start) else []

    def cpu(self, pids: list[int] | None = None) -> int:
        """Give nanoseconds of CPU so far."""
        pids = self.processes() if pids is None else pids
        return self._grow(0, sum(cpu_ns(pid) + reaped_ns(pid) for pid in pids))

    def storage(self, pids: list[int] | None = None) -> int:
        """Give bytes moved to and from disks so far; -1 where the kernel does not tell."""
        moved = [storage(pid) for pid in (self.processes() if pids is None else pids)]
        told = [bytes_ for bytes_ in moved if bytes_ >= 0]
        return self._grow(1, sum(told)) if told or not moved or self._now[1] else -1

    def _grow(self, which: int, amount: int) -> int:
        self._now[which] = max(self._now[which], amount)
        return self._before[which] + self._now[which]
