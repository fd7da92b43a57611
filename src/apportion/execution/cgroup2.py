"""cgroup version 2: one tree, CPU by `cpu.max` and `cpu.weight`, memory by `memory.max`.

Groups may hold processes or share out controllers, not both; so ours stand below the nearest ancestor that lets us
(under systemd, the user's slice). Written against the kernel's documentation (admin-guide/cgroup-v2) and tested
against a simulated tree; see the support table for where it has really run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.execution import procfs
from apportion.execution.cgroups import Ceilings, Files, Groups, mounts
from apportion.execution.enforcers import Usage, turns
from apportion.execution.guardian import WEIGHTS, open_up
from apportion.execution.places import CONTROLLER

CONTROLLERS = ("cpu", "memory")
_, MOST_WEIGHT = WEIGHTS["cpu.weight"]


class Cgroup2:
    """Groups in the unified tree."""

    name = "cgroup2"
    sources: Mapping[str, str] = {"cpu": "cpu.stat", "memory": "memory.current", "storage": "process counters"}

    def __init__(self, run: str, base: Path | None = None, files: Files | None = None):
        """Set up the run's groups at or above `base`; raises EnforcerRefused where the machine does not let us."""
        base = base or mounts().get("")
        if base is None:
            raise EnforcerRefused("cgroup2: no version 2 tree is mounted here.")
        self._groups = self._settle(base, run, files or Files())
        self._meters: dict[str, procfs.Meter] = {}
        self._ceilings = Ceilings()
        self._closed = False
        try:
            self._groups.make(CONTROLLER)
            self._groups.put("", "cpu.weight", MOST_WEIGHT)
        except EnforcerRefused:
            self.close()
            raise

    def _settle(self, own: Path, run: str, files: Files) -> Groups:
        """Find the nearest group below which ours can have controllers, and set up the run's there."""
        refusals = []
        for base in (own, *own.parents):
            if not (base / "cgroup.controllers").exists():
                break
            offered = files.read(base / "cgroup.controllers").split()
            if missing := [name for name in CONTROLLERS if name not in offered]:
                refusals.append(
                    f"{base} offers no controller {', '.join(missing)} (offers: {', '.join(offered) or 'none'})"
                )
                continue
            groups = Groups(self.name, base, run, files, home=own)
            try:
                self._hand_down(base, files)
                files.make(groups.run)
                self._hand_down(groups.run, files)
                return groups
            except OSError as error:
                refusals.append(f"{base} does not let us ({error.strerror})")
                groups.clear()
        raise EnforcerRefused(f"cgroup2: {'; '.join(refusals) or f'{own} is no version 2 group'}.")

    def _hand_down(self, group: Path, files: Files) -> None:
        given = files.read(group / "cgroup.subtree_control").split()
        if missing := [name for name in CONTROLLERS if name not in given]:
            files.write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))

    def attach(self, task: str, pid: int) -> None:
        self._groups.make(task)
        self._groups.enter(task, pid)
        self._meters.setdefault(task, procfs.Meter()).follow(pid)

    def detach(self, task: str) -> None:
        self._groups.drop(task)
        self._meters.pop(task, None)
        self._ceilings.forget(task)

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        self._groups.put(task, "cpu.weight", min(max(weight, 1), MOST_WEIGHT))
        if cpu < 0:
            self._groups.put(task, "cpu.max", "max")
        else:
            turn, period = turns(cpu)
            self._groups.put(task, "cpu.max", f"{turn} {period}")
        return self._hold_memory(task, memory)

    def _hold_memory(self, task: str, memory: int) -> str:
        limit, note = self._ceilings.follow(task, memory, lambda: self._held(task))
        if limit is not None:
            self._groups.put(task, "memory.max", limit * 1024 if limit >= 0 else "max")
        return note

    def _held(self, task: str) -> int:
        """Give what a task's processes hold in KiB, without file pages that the kernel drops when asked."""
        used = int(self._groups.read(task, "memory.current"))
        return max(used - self._groups.field(task, "memory.stat", "inactive_file"), 0) // 1024

    def usage(self, task: str, memory: bool = True) -> Usage:
        cpu = self._groups.field(task, "cpu.stat", "usage_usec") * 1000
        return Usage(cpu, self._held(task) if memory else -1, self._meters[task].storage(self._groups.processes(task)))

    def kills(self, task: str) -> int:
        return self._groups.field(task, "memory.events", "oom_kill")

    def host(self, pid: int) -> None:
        self._groups.put(CONTROLLER, "cpu.weight", MOST_WEIGHT)
        self._groups.move(pid, self._groups.group(CONTROLLER))

    def groups(self) -> tuple[list[str], list[str]]:
        return [str(self._groups.group(task)) for task in self._meters], [str(self._groups.run)]

    def lift(self) -> None:
        groups, runs = self.groups()
        open_up(map(Path, groups), map(Path, runs))
        self._ceilings.clear()
        self._groups.forget()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.lift()
        self._groups.clear()
