"""The holding side of a run: which enforcer is in force, what it holds everybody to, and who takes over when it refuses.

Grants stay known here, so that a program that was started again, or an enforcer that takes over, gets them at once.
Whoever calls is told in notes what did not go as planned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.execution import places
from apportion.execution.choosing import choose, table
from apportion.execution.enforcers import Enforcer, Usage


class Holding:
    """Holds a run's programs by the strongest enforcer that works, until `release` or the end."""

    def __init__(
        self, wanted: str, run: str, folder: Path, offers: Mapping[str, Callable[[str, Path], Enforcer]] | None = None
    ):
        """wanted: 'auto', or an enforcer by name; offers: those to choose from, strongest first.

        Raises EnforcerRefused where none that is wanted works here; then nothing is left.
        """
        self.run, self.folder, self.released = run, folder, False
        self._offers = dict(offers or table())
        self._auto = wanted == "auto"
        self._programs: dict[str, int] = {}  # pid of each that the present enforcer counts; 0: it has ended
        self._limits: dict[str, tuple[int, int]] = {}  # milli-cores, KiB; below 0: no limit
        self._kills: dict[str, int] = {}
        self.enforcer, self.refused = choose(wanted, run, folder, self._offers)

    @property
    def name(self) -> str:
        """The enforcer in force; 'none' after a release."""
        return "none" if self.released else self.enforcer.name

    def host(self) -> list[str]:
        """See to the controller's own turn beside the programs."""
        try:
            self.enforcer.host(os.getpid())
        except EnforcerRefused as refusal:
            return [f"the controller has no group of its own and may be late: {refusal}"]
        return []

    def attach(self, task: str, pid: int) -> list[str]:
        """Take charge of a program that was started or adopted, and hold it to the grant its task has, if any."""
        self._programs[task] = pid
        try:
            self.enforcer.attach(task, pid)
        except EnforcerRefused as refusal:
            return self._fall_back(refusal)
        return self._put([task])

    def hold(self, limits: Mapping[str, tuple[int, int]]) -> list[str]:
        """Put limits in force: milli-cores and KiB by task, below 0: none."""
        self._limits |= limits
        return self._put(limits)

    def _put(self, tasks: Iterable[str]) -> list[str]:
        if self.released:
            return []
        notes = []
        try:
            for task in tasks:
                if task in self._limits and task in self._programs:
                    cpu, memory = self._limits[task]
                    notes.append(self.enforcer.limit(task, cpu, memory, cpu if cpu >= 0 else 1000))
        except EnforcerRefused as refusal:
            notes += self._fall_back(refusal)
        if places.flag(self.folder).exists():  # `release` came while we wrote
            self.enforcer.lift()
        return [note for note in notes if note]

    def _fall_back(self, refusal: EnforcerRefused) -> list[str]:
        """Let the next enforcer take over; raises the refusal where there is none, or this one was asked for by name."""
        if not self._auto or self.enforcer.name == "none":
            raise refusal
        names = list(self._offers)
        weaker = names[names.index(self.enforcer.name) + 1 :]
        self.enforcer.close()
        self.enforcer, _ = choose("auto", self.run, self.folder, {name: self._offers[name] for name in weaker})
        notes = [f"{refusal} From now on {self.enforcer.name} enforces.", *self.host()]
        self._kills.clear()
        self._programs = {task: pid for task, pid in self._programs.items() if pid}
        try:
            for task, pid in self._programs.items():
                self.enforcer.attach(task, pid)
        except EnforcerRefused as next_refusal:
            return notes + self._fall_back(next_refusal)
        return notes + self._put(self._limits)

    def obey(self) -> list[str]:
        """Stop enforcing where somebody asked for it by `release`."""
        if self.released or not places.flag(self.folder).exists():
            return []
        self.released = True
        self.enforcer.lift()
        return ["limits were lifted by `release`: nothing is enforced until the next start"]

    def usage(self, task: str, memory: bool = True) -> Usage:
        """Tell what a task used since the present enforcer took charge; whoever never ran used nothing."""
        return self.enforcer.usage(task, memory) if task in self._programs else Usage(0, 0, 0)

    def ended(self, task: str) -> str:
        """Take note that a task's program has ended; says so where the kernel ended it."""
        if task not in self._programs:
            return ""
        self._programs[task] = 0
        before = self._kills.get(task, 0)
        self._kills[task] = self.enforcer.kills(task)
        return ", by the kernel: it needed more memory than its limit" if self._kills[task] > before else ""
