"""A simulated cgroup version 2 tree, as far as enforcers can tell it from the kernel's.

What it insists on is what the kernel's documentation says (admin-guide/cgroup-v2): controllers are handed down one
level at a time; a group other than the root has processes or hands controllers down, not both; a control file
exists only where its controller does; values are checked; a group with processes or children stays.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from apportion.execution.cgroups import Files

CONTROL = {
    "cpu": {"cpu.max": "max 100000\n", "cpu.weight": "100\n"},
    "memory": {
        "memory.max": "max\n",
        "memory.current": "0\n",
        "memory.stat": "inactive_file 0\n",
        "memory.events": "oom_kill 0\n",
    },
}
CORE = {"cgroup.procs": "", "cgroup.subtree_control": "\n", "cpu.stat": "usage_usec 0\n"}
VALID = {
    "cpu.max": re.compile(r"max|[0-9]{4,} [0-9]{4,7}"),
    "cpu.weight": re.compile(r"[1-9][0-9]{0,3}|10000"),
    "memory.max": re.compile(r"max|[0-9]+"),
}


class Kernel(Files):
    """The tree, and what would have happened to programs in it."""

    def __init__(self, root: Path, controllers: str = "cpu memory"):
        self.root = root
        self.broken: dict[str, int] = {}  # file name -> the error that writing it gives from now on
        self.killed: list[str] = []  # groups that were limited below what they held
        self._fill(root, controllers.split(), {})

    def _fill(self, group: Path, controllers: list[str], control: dict[str, str]) -> None:
        for name, text in (CORE | control | {"cgroup.controllers": " ".join(controllers) + "\n"}).items():
            (group / name).write_text(text)

    def make(self, group: Path) -> None:
        if group.exists():
            return
        if not group.parent.exists():
            self.make(group.parent)
        given = self.read(group.parent / "cgroup.subtree_control").split()
        group.mkdir()
        self._fill(group, given, {name: text for c in given for name, text in CONTROL[c].items()})

    def remove(self, group: Path) -> None:
        if self.read(group / "cgroup.procs").strip() or any(child.is_dir() for child in group.iterdir()):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for file in group.iterdir():
            file.unlink()
        group.rmdir()

    def write(self, path: Path | str, value: str) -> None:
        path = Path(path)
        if path.name in self.broken:
            raise OSError(self.broken[path.name], os.strerror(self.broken[path.name]))
        if not path.exists():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if path.name == "cgroup.procs":
            return self._move(path, value)
        if path.name == "cgroup.subtree_control":
            return self._hand_down(path.parent, value)
        if not VALID[path.name].fullmatch(value):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if (
            path.name == "memory.max"
            and value != "max"
            and int(value) < int(self.read(path.with_name("memory.current")))
        ):
            self.killed.append(path.parent.name)
        path.write_text(value + "\n")
        return None

    def _move(self, path: Path, pid: str) -> None:
        if self.read(path.with_name("cgroup.subtree_control")).strip() and path.parent != self.root:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for procs in self.root.rglob("cgroup.procs"):
            procs.write_text("".join(line + "\n" for line in procs.read_text().split() if line != pid))
        path.write_text(path.read_text() + pid + "\n")

    def _hand_down(self, group: Path, value: str) -> None:
        if group != self.root and self.read(group / "cgroup.procs").strip():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        wanted = [name.removeprefix("+") for name in value.split()]
        if set(wanted) - set(self.read(group / "cgroup.controllers").split()):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        given = self.read(group / "cgroup.subtree_control").split()
        (group / "cgroup.subtree_control").write_text(" ".join(dict.fromkeys(given + wanted)) + "\n")
