"""What both cgroup enforcers share: where groups live, how they are made, written and taken away.

Only ever under our own prefix, `apportion.<run>/<task>`, beneath the group that the controller itself was started
in: what an outer manager grants to the whole stays granted to the whole, and ours can be told from anyone else's.
Each run stands for itself, so that its weight can be given back without a look at other runs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.execution import procfs
from apportion.execution.places import CONTROLLER, PREFIX, label

SPARE_KIB = 8192  # room to breathe above what a program holds when its memory grant falls below that


class Files:
    """The kernel's tree of control files. Tests put a simulated kernel in its place."""

    def make(self, group: Path) -> None:
        group.mkdir(parents=True, exist_ok=True)

    def remove(self, group: Path) -> None:
        group.rmdir()  # the kernel takes the control files along; it refuses while processes live there

    def read(self, path: Path | str) -> str:
        file = os.open(path, os.O_RDONLY)  # a third of what Path.read_text takes, some hundred times a round
        try:
            return os.read(file, 2**16).decode()
        finally:
            os.close(file)

    def write(self, path: Path | str, value: str) -> None:
        file = os.open(path, os.O_WRONLY)  # one write call: the kernel reads each as one command
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)


class Groups:
    """The groups of one run in one hierarchy."""

    def __init__(self, enforcer: str, base: Path, run: str, files: Files, home: Path | None = None):
        """base: below which the run's group stands; home: where processes go when their group is taken away."""
        self.enforcer = enforcer
        self.base = base
        self.home = home or base
        self.run = base / f"{PREFIX}{run}"
        self.files = files
        self._known: dict[tuple[str, str], str] = {}  # (task, file) -> what we last wrote
        self._paths: dict[tuple[str, str], str] = {}  # putting paths together took half of a round's reading

    def group(self, task: str) -> Path:
        return self.run / (CONTROLLER if task == CONTROLLER else label(task))

    def make(self, task: str) -> Path:
        """Give the task's group, made if need be."""
        group = self.group(task)
        try:
            self.files.make(group)
        except OSError as error:
            raise EnforcerRefused(f"{self.enforcer} could not make the group {group}: {error.strerror}.") from None
        return group

    def put(self, task: str, name: str, value: str | int) -> None:
        """Write one control file of a task unless it says so already."""
        value = str(value)
        if self._known.get((task, name)) == value:
            return
        try:
            self.files.write(self.path(task, name), value)
        except OSError as error:
            raise self.refusal(name, value, task, error) from None
        self._known[task, name] = value

    def path(self, task: str, name: str) -> str:
        """Give a control file of a task; of '' it is the run's own."""
        found = self._paths.get((task, name))
        if found is None:
            found = self._paths[task, name] = str((self.group(task) if task else self.run) / name)
        return found

    def refusal(self, name: str, value: str, task: str, error: OSError) -> EnforcerRefused:
        whose = f" of {task!r}" if task else " of the whole run"
        return EnforcerRefused(f"{self.enforcer} refused {name} = {value}{whose}: {error.strerror}.")

    def read(self, task: str, name: str) -> str:
        try:
            return self.files.read(self.path(task, name))
        except OSError as error:
            raise EnforcerRefused(f"{self.enforcer} could not read {name} of {task!r}: {error.strerror}.") from None

    def field(self, task: str, name: str, key: str) -> int:
        """Give one number of a file of `key number` lines; 0 where it is not there."""
        _, found, rest = ("\n" + self.read(task, name)).partition(f"\n{key} ")
        return int(rest.partition("\n")[0]) if found else 0

    def enter(self, task: str, pid: int) -> None:
        """Move a process and its descendants into a task's group; those that ended meanwhile need none."""
        moved: set[int] = set()
        while new := set(procfs.tree(pid)) - moved:  # what is born in the group stays in it
            for each in new:
                self.move(each, self.group(task))
            moved |= new
        if pid not in self.processes(task) and not procfs.ending(pid):  # the kernel moves nobody who is on the way out
            raise EnforcerRefused(f"{self.enforcer}: process {pid} was moved into {self.group(task)} and is not there.")

    def move(self, pid: int, group: Path) -> None:
        try:
            self.files.write(group / "cgroup.procs", str(pid))
        except ProcessLookupError:
            pass
        except OSError as error:
            raise EnforcerRefused(
                f"{self.enforcer} could not move process {pid} into {group}: {error.strerror}."
            ) from None

    def processes(self, task: str) -> list[int]:
        return [int(pid) for pid in self.read(task, "cgroup.procs").split()]

    def forget(self) -> None:
        """Write everything anew from now on."""
        self._known.clear()

    def drop(self, task: str) -> None:
        """Take away a task's group; it stays while processes live in it."""
        self._known = {key: value for key, value in self._known.items() if key[0] != task}
        self._remove(self.group(task))

    def clear(self) -> None:
        """Take away this run's groups."""
        if self.run.is_dir():
            for group in [child for child in self.run.iterdir() if child.is_dir()]:
                with contextlib.suppress(EnforcerRefused, OSError):
                    for pid in self.files.read(group / "cgroup.procs").split():
                        self.move(int(pid), self.home)  # the controller; programs only if they are handed over
                self._remove(group)
            self._remove(self.run)

    def _remove(self, group: Path) -> None:
        for _ in range(50):  # a killed process leaves its group a moment after it is waited for
            try:
                return self.files.remove(group)
            except FileNotFoundError:
                return None
            except OSError:
                time.sleep(0.01)
        return None  # still lived in: `machine.clean` finds it once it is empty


class Ceilings:
    """Memory limits in force, in KiB; they follow grants down only as far as use allows.

    A limit below what a program holds would have the kernel kill it for a decision it never saw. It then stays just
    above, and sinks as the program gives memory back; growing into it is the program's own affair.
    """

    def __init__(self):
        self._limit: dict[str, int] = {}
        self._above: set[str] = set()

    def follow(self, task: str, memory: int, held: Callable[[], int]) -> tuple[int | None, str]:
        """Give the limit to set (-1: none, None: as it is) and, when it begins to stay above the grant, a note."""
        before = self._limit.get(task, -1)
        limit, holds = memory, 0
        if memory >= 0 and not 0 <= before <= memory:  # falling: look what it holds
            holds = held()
            limit = max(memory, holds + SPARE_KIB)
            limit = min(limit, before) if before >= 0 else limit
        note = ""
        if limit > memory and task not in self._above:
            note = (
                f"memory limit of {task!r} stays at {limit} KiB, above its grant of {memory} KiB: it holds {holds} KiB"
            )
        (self._above.add if limit > memory else self._above.discard)(task)
        self._limit[task] = limit
        return (None if limit == before else limit), note

    def forget(self, task: str) -> None:
        self._limit.pop(task, None)
        self._above.discard(task)

    def clear(self) -> None:
        self._limit.clear()
        self._above.clear()


def mounts(root: Path = Path("/proc")) -> dict[str, Path]:
    """Give the controller's own group in each hierarchy: 'cpu', 'memory', ... for version 1, '' for version 2."""
    try:
        groups, table = ((root / "self" / name).read_text() for name in ("cgroup", "mountinfo"))
    except FileNotFoundError:  # no such kernel
        return {}
    own: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        path = path.partition(f"/{PREFIX}")[0] or "/"  # a second run of one process stands beside the first
        own |= dict.fromkeys(controllers.split(","), path)
    found: dict[str, Path] = {}
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        inside, mount = left.split()[3:5]
        kind, _, options = right.split(maxsplit=2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        for controller in [""] if kind == "cgroup2" else options.split(","):
            if controller in own:  # a container sees its own subtree as the mount's root
                within = os.path.relpath(own[controller], inside)
                found.setdefault(controller, Path(mount) / ("" if within.startswith("..") else within))
    return found
