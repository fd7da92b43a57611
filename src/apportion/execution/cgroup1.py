"""cgroup version 1: CPU by quota and by shares, memory by limit, each hierarchy mounted on its own.

A quota alone is only a ceiling: beside a busy stranger a program gets less than it. So a run as a whole is
given shares that outweigh strangers (the quotas keep it from taking more than was granted), and inside it tasks
weigh as much as they were granted. The controller would starve beside what it let loose, so it moves into a group
of its own within the run, and back when it closes.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.execution import procfs
from apportion.execution.cgroups import Ceilings, Files, Groups, mounts
from apportion.execution.enforcers import Usage, turns
from apportion.execution.guardian import WEIGHTS, open_up
from apportion.execution.places import CONTROLLER

STRANGER, MOST_SHARES = WEIGHTS["cpu.shares"]  # spread over the CPUs; a stranger has all of its own on one
CONTROLLER_SHARES = 8192  # it runs for some ms a round, and then at once


class Cgroup1:
    """Groups under the separate controllers cpu, cpuacct and memory."""

    name = "cgroup1"
    sources: Mapping[str, str] = {"cpu": "cpuacct.usage", "memory": "memory cgroup", "storage": "process counters"}

    def __init__(self, run: str, bases: Mapping[str, Path] | None = None, files: Files | None = None):
        """Set up the run's groups; raises EnforcerRefused where the machine does not let us."""
        files = files or Files()
        bases = mounts() if bases is None else bases
        if missing := [name for name in ("cpu", "cpuacct", "memory") if name not in bases]:
            raise EnforcerRefused(f"cgroup1: no version 1 controller {', '.join(missing)} is mounted here.")
        self._cpu, self._account, self._memory = (
            Groups(self.name, bases[name], run, files) for name in ("cpu", "cpuacct", "memory")
        )
        self._all = (self._cpu, self._account, self._memory)
        self._meters: dict[str, procfs.Meter] = {}
        self._ceilings = Ceilings()
        self._closed = False
        try:
            for groups in self._all:
                groups.make(CONTROLLER)
            self._cpu.put("", "cpu.shares", MOST_SHARES)
        except EnforcerRefused:
            self.close()
            raise

    def attach(self, task: str, pid: int) -> None:
        for groups in self._all:
            groups.make(task)
            groups.enter(task, pid)
        self._meters.setdefault(task, procfs.Meter()).follow(pid)

    def detach(self, task: str) -> None:
        for groups in self._all:
            groups.drop(task)
        self._meters.pop(task, None)
        self._ceilings.forget(task)

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        self._cpu.put(task, "cpu.shares", min(max(weight * STRANGER // 1000, 2), MOST_SHARES))
        if cpu < 0:
            self._cpu.put(task, "cpu.cfs_quota_us", -1)
        else:
            turn, period = turns(cpu)
            self._cpu.put(task, "cpu.cfs_period_us", period)
            self._cpu.put(task, "cpu.cfs_quota_us", turn)
        return self._hold_memory(task, memory)

    def _hold_memory(self, task: str, memory: int) -> str:
        limit, note = self._ceilings.follow(task, memory, lambda: self._held(task))
        if limit is None:
            return note
        name = "memory.limit_in_bytes"
        try:
            self._memory.files.write(self._memory.path(task, name), str(limit * 1024 if limit >= 0 else -1))
        except OSError as error:
            self._ceilings.forget(task)
            if error.errno == errno.EBUSY:  # it grew while we looked; next round again
                return f"memory of {task!r} could not be limited to {limit} KiB: it holds more by now"
            raise self._memory.refusal(name, f"{limit} KiB", task, error) from None
        return note

    def _held(self, task: str) -> int:
        """Give what a task's processes hold in KiB, without file pages that the kernel drops when asked."""
        used = int(self._memory.read(task, "memory.usage_in_bytes"))
        return max(used - self._memory.field(task, "memory.stat", "total_inactive_file"), 0) // 1024

    def usage(self, task: str, memory: bool = True) -> Usage:
        cpu = int(self._account.read(task, "cpuacct.usage"))
        return Usage(cpu, self._held(task) if memory else -1, self._meters[task].storage(self._account.processes(task)))

    def kills(self, task: str) -> int:
        return self._memory.field(task, "memory.oom_control", "oom_kill")

    def host(self, pid: int) -> None:
        self._cpu.put(CONTROLLER, "cpu.shares", CONTROLLER_SHARES)
        self._cpu.move(pid, self._cpu.group(CONTROLLER))

    def groups(self) -> tuple[list[str], list[str]]:
        tasks = [str(groups.group(task)) for groups in (self._cpu, self._memory) for task in self._meters]
        return tasks, [str(self._cpu.run)]

    def lift(self) -> None:
        groups, runs = self.groups()
        open_up(map(Path, groups), map(Path, runs))
        self._ceilings.clear()
        for groups in self._all:
            groups.forget()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.lift()
        for groups in self._all:
            groups.clear()
