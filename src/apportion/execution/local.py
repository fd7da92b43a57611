"""Real child processes on this machine, held to their grants by the strongest enforcer that works here.

    controller ── grants ──> enforcer ── holds ──> programs ── probe lines ──> controller
        └── pipe ──> guardian: if the controller dies, it lifts all limits

Programs outlive a controller that is killed; the next one on the same folder adopts them. A clean `close` leaves
nothing: no process, no control group, no state file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.clock import Clock
from apportion.core.errors import BadInput
from apportion.core.files import replacing
from apportion.core.market import Market
from apportion.core.round import Outcome
from apportion.core.units import whole_down
from apportion.execution import machine, places, procfs
from apportion.execution.children import Children, end, sweep
from apportion.execution.enforcers import Enforcer, Usage
from apportion.execution.guardian import Guardian, lift
from apportion.execution.holding import Holding
from apportion.execution.programs import Program

UNMEASURED = "unmeasured"
MOST_COUNTED = 2.0**52  # operations in one round: the log holds no more
MEASURED = ("cpu", "memory", "storage")  # by the enforcer; bandwidth the program tells itself


class LocalExecutor:
    """The machine that we run on."""

    def __init__(
        self,
        programs: Sequence[Program],
        enforcer: str,
        folder: Path,
        clock: Clock,
        offers: Mapping[str, Callable[[str, Path], Enforcer]] | None = None,
    ):
        """Start the programs, or adopt those that an earlier controller of this folder left running.

        enforcer: 'auto', or one by name; 'none' measures and holds nobody. Raises BadInput where a command cannot be
        started, EnforcerRefused where the enforcer asked for does not work; then nothing is left running.
        offers: the enforcers to choose from, strongest first, if not those of `choosing.table`.
        """
        self.folder, self.clock, self._closed = Path(folder).resolve(), clock, False
        self._notes: list[str] = []
        self._allocation: Allocation | None = None
        self._counts: Enforcer | None = None
        places.run(self.folder).mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            self._lock_file = undo.enter_context(_lock(self.folder))
            previous = _previous(self.folder)
            self.run = previous["run"] if previous else secrets.token_hex(4)
            undo.callback(lambda: machine.clean(self.run))  # also what an earlier controller left elsewhere
            self._notes += lift(self.folder)  # its limits too: ours come with the first grant
            places.flag(self.folder).unlink(missing_ok=True)  # whoever starts anew wants limits anew
            self._holding = Holding(enforcer, self.run, self.folder, offers)
            undo.callback(lambda: self._holding.enforcer.close())
            if self.enforcer in ("governor", "none"):  # a weaker hold than the kernel's: say why
                self._notes += self._holding.refused
            self._notes += [
                f"run {other} holds programs on this machine too: both promise the same CPU, and share it"
                for other in machine.living()
                if other != self.run
            ]
            self._notes += self._holding.host()
            known = previous["children"] if previous else {}
            self._children = Children(programs, self.run, self.folder, clock, known, self._took_up)
            self._save()  # from here on a guardian of an earlier controller keeps its hands off
            self._guardian = Guardian(self.folder)
            undo.callback(lambda: self._guardian.dismiss())
            undo.callback(self._forget)
            undo.callback(self._children.close)
            self._notes += self._children.open()
            undo.callback(lambda: self._holding.enforcer.lift())
            self._mark()
            self._undo = undo.pop_all()
        self.greeting = list(self._notes)  # what was found at the start; the first outcome's notes hold it too

    @property
    def enforcer(self) -> str:
        """The enforcer in force; 'none' after a release."""
        return self._holding.name

    def silent(self) -> list[str]:
        """Name the tasks whose programs have not told twice: the first line still speaks of their start, which is unheld."""
        self._notes += self._children.read()
        return [name for name, child in self._children.children.items() if child.reader.told.lines < 2]

    # ---- one round ----

    def grant(self, allocation: Allocation) -> None:
        """Put these grants in force, now."""
        if self._closed:
            raise BadInput("this executor is closed: start another one.")
        market = allocation.market
        if strangers := sorted(set(market.tasks) - set(self._children.children)):
            known = ", ".join(self._children.children)
            raise BadInput(f"task {strangers[0]!r} has no program here. Programs: {known}.")
        if not market.tasks:
            raise BadInput("this market names no tasks: give Market(..., tasks=[...]) the names of the programs.")
        self._supervise()
        granted = allocation.granted
        total = {name: market.per_task(granted[:, r]) for r, name in enumerate(market.resources)}
        absent = np.full(len(market.tasks), -1.0)
        cpu, memory = (total.get(name, absent).astype(np.int64).tolist() for name in ("cpu", "memory"))
        self._notes += self._holding.hold(dict(zip(market.tasks, zip(cpu, memory, strict=True), strict=True)))
        self._allocation = allocation
        self._mark()

    def observe(self) -> Outcome:
        """Tell what was delivered and experienced since the last grant."""
        if self._allocation is None:
            raise BadInput("there is nothing to observe before the first grant.")
        self._supervise()
        if self._holding.enforcer is not self._counts:  # it knows nothing of what was counted before
            self._mark()
        self._notes += self._children.read()
        allocation, market = self._allocation, self._allocation.market
        seconds = max(self.clock.now() - self._since, 1e-6)
        now = {name: self._holding.usage(name) for name in market.tasks}
        told = [(self._children.children[name].reader.told, self._told[name]) for name in market.tasks]
        spoke = np.array([t.lines > before.lines for t, before in told], bool)
        asked = np.array([t.asked - before.asked for t, before in told])
        in_time = np.array([t.in_time - before.in_time for t, before in told])
        granted = allocation.granted
        delivered = np.full(granted.shape, -1, np.int64)
        source = []
        for r, resource in enumerate(market.resources):
            if resource in MEASURED:
                measured = np.array([_rate(resource, self._used[n], now[n], seconds) for n in market.tasks])
                where = self._holding.enforcer.sources[resource]
            else:
                measured = np.array([t.mean(resource, before) for t, before in told])
                where = "program"
            delivered[:, r] = over_pairs(market, granted[:, r], measured)
            source.append(where if (measured >= 0).any() else UNMEASURED)
        notes, self._notes = tuple(dict.fromkeys(self._notes)), []
        return Outcome(
            delivered,
            np.where(spoke, whole_down(np.minimum(asked, MOST_COUNTED)), -1),
            np.where(spoke, whole_down(np.minimum(in_time, MOST_COUNTED)), -1),
            self.enforcer,
            tuple(source),
            notes,
        )

    def close(self) -> None:
        """Stop every program, lift every limit, take away our groups; calling it twice is fine."""
        self._closed = True
        with _uninterrupted():
            self._undo.close()

    def _forget(self) -> None:
        places.state(self.folder).unlink(missing_ok=True)
        places.flag(self.folder).unlink(missing_ok=True)

    # ---- what it takes ----

    def _mark(self) -> None:
        """Remember where this interval begins, and who counts in it."""
        if self._counts is not self._holding.enforcer:
            self._counts = self._holding.enforcer
            self._save()
        self._since = self.clock.now()
        self._used = {name: self._holding.usage(name, memory=False) for name in self._children.children}
        self._told = {name: child.reader.told.copy() for name, child in self._children.children.items()}

    def _supervise(self) -> None:
        self._notes += self._children.supervise(self._holding.ended)
        if not self._guardian.alive:
            self._guardian.dismiss()
            self._guardian = Guardian(self.folder)
            self._notes.append("the guardian had ended and was started again")
        self._notes += self._holding.obey()

    def _took_up(self, task: str, pid: int) -> None:
        """Hold a program that was started or adopted this moment, and write down that it runs."""
        self._notes += self._holding.attach(task, pid)
        self._save()

    def _save(self) -> None:
        """Write down who runs and what holds them, for the guardian and for our successor."""
        groups, runs = self._holding.enforcer.groups()
        state = {
            "format": 1,
            "run": self.run,
            "controller": os.getpid(),
            "enforcer": self._holding.enforcer.name,
            "groups": groups,
            "runs": runs,
            "children": self._children.state(),
        }
        with replacing(places.state(self.folder), sync=False) as part:  # of no use after a power cut
            part.write_text(json.dumps(state, indent=1))


def over_pairs(
    market: Market, granted: Int[np.ndarray, " pair"], measured: Float[np.ndarray, " task"]
) -> Int[np.ndarray, " pair"]:
    """Divide what tasks were measured to get among their pools, pro rata of the grant; -1 where it is not known."""
    total = market.per_task(granted)[market.row]
    pairs = np.diff(market.indptr)[market.row]
    part = np.where(total > 0, granted / np.maximum(total, 1.0), 1.0 / pairs)
    amount = np.nan_to_num(measured, nan=-1.0)[market.row]
    return np.where(amount < 0, -1, whole_down(np.maximum(amount, 0.0) * part))


def _rate(resource: str, before: Usage, now: Usage, seconds: float) -> float:
    """Give what was delivered on average, in base units; -1: not known."""
    if resource == "memory":
        return float(now.memory)
    if resource == "cpu":
        return max(now.cpu - before.cpu, 0) / 1e6 / seconds if min(before.cpu, now.cpu) >= 0 else -1.0
    return max(now.storage - before.storage, 0) / 1e3 / seconds if min(before.storage, now.storage) >= 0 else -1.0


def retire(folder: Path) -> list[str]:
    """Stop what a dead controller left running in this folder, and take away its groups; tells what was stopped.

    Raises BadInput while a living controller holds the folder.
    """
    folder = Path(folder).resolve()
    if not (places.run(folder) / "lock").exists():  # no controller was ever here; a folder `run` may be somebody's own
        return []
    with _lock(folder):
        previous = _previous(folder)
        if previous is None:
            return []
        lift(folder)
        left = {name: (child["pid"], child["start"]) for name, child in previous["children"].items()}
        stopped = [f"stopped {name!r}, left by a controller that died" for name in left if procfs.alive(*left[name])]
        end(left.values())
        stopped += sweep(previous["run"])
        until = time.monotonic() + 2
        while previous["run"] in machine.living() and time.monotonic() < until:
            time.sleep(0.05)  # the dead controller's guardian ends by itself when it has lifted all
        machine.clean(previous["run"])
        places.state(folder).unlink(missing_ok=True)
        return stopped


def _previous(folder: Path) -> dict | None:
    """Give what an earlier controller wrote down; None where there was none or it closed cleanly."""
    try:
        return places.last(folder)
    except ValueError as damaged:
        raise BadInput(str(damaged)) from None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no second Ctrl-C cut short what the first one began: it takes two seconds at most, and leaves nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C goes to the main thread alone
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lock(folder: Path) -> IO[str]:
    """Hold the folder against a second controller; the kernel lets go when we end, however we end."""
    file = (places.run(folder) / "lock").open("a+")
    until = time.monotonic() + 0.5  # one that was just killed may not be gone yet
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > until:
                file.seek(0)
                other = file.read().strip() or "unknown"
                file.close()
                raise BadInput(
                    f"{folder} is in use by another controller (process {other}). End it, or choose another --out."
                ) from None
            time.sleep(0.02)
    with contextlib.suppress(OSError):  # a name for people: a full disk leaves the lock without it
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file
