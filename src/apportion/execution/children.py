"""Programs as child processes that outlive their controller: started, adopted, restarted, stopped.

Output goes to files, so a program whose controller was killed runs on and its next controller can read on. Who
runs is written to `children.json` after every start. A crash in between leaves a program that nobody knows; but each
carries its run's name in its environment (APPORTION_RUN), and so do all that descend from it: `sweep` finds those that
nobody looks after. Each program leads a session of its own: Ctrl-C is the controller's affair, and its whole process
group is stopped with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apportion.core.clock import Clock
from apportion.core.errors import BadInput
from apportion.execution import places, procfs
from apportion.execution.probes import ROTATE_BYTES, LineReader, PageReader, Reader, printable, rotate
from apportion.execution.programs import Program

FIRST_PAUSE = 0.5  # seconds before a program that ended is started again; doubled each time
LONGEST_PAUSE = 30.0
STEADY = 20.0  # seconds after which a program that runs has put its past behind it
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
PORTS = range(15000, 32000)  # below those that the kernel gives to whoever connects


@dataclass(slots=True)
class Child:
    """One program and the process it runs as."""

    program: Program
    port: int
    reader: Reader
    process: subprocess.Popen[bytes] | None = None  # None: adopted, or not running
    pid: int = 0  # 0: not running
    start: int = 0
    begun: float = 0.0
    failures: int = 0  # in a row
    due: float = 0.0  # when to start it again


class Children:
    """All programs of a run."""

    def __init__(
        self,
        programs: Sequence[Program],
        run: str,
        folder: Path,
        clock: Clock,
        known: Mapping[str, dict] | None = None,
        runs: Callable[[str, int], None] = lambda name, pid: None,
    ):
        """run: its name, by which its processes are known; known: the children that `children.json` tells of.

        runs: called with task and pid at once when a program was started or adopted: memory is charged to the group
        it is first used in, and a start that is not written down is one that nobody knows.
        """
        self.run, self.folder, self.clock, self._runs = run, folder, clock, runs
        places.run(folder).mkdir(parents=True, exist_ok=True)
        self._known = dict(known or {})
        self._opened = False
        ports = {name: entry["port"] for name, entry in self._known.items()}
        ports = _ports([p.name for p in programs if p.served], ports)
        self.children = {p.name: Child(p, ports.get(p.name, 0), self._reader(p)) for p in programs}

    def _reader(self, program: Program) -> Reader:
        probe = program.probe
        return PageReader(probe) if probe.url else LineReader(places.of(self.folder, program.name, "out"))

    def open(self) -> list[str]:
        """Adopt what still runs, stop what is not wanted or not known, start the rest; tells what was found."""
        notes, unwanted = [], []
        for name, entry in self._known.items():
            child, pid, start = self.children.get(name), entry["pid"], entry["start"]
            if not procfs.alive(pid, start):
                if child:
                    notes.append(f"{name!r} was not running any more and was started anew")
                continue
            if child and entry["command"] == self._digest(child):
                child.pid, child.start, child.begun = pid, start, self.clock.now()
                notes.append(f"{name!r} still ran as process {pid} and was adopted")
                continue
            why = "its command changed, and it was started anew" if child else "this world has no such task"
            notes.append(f"{name!r} still ran as process {pid} and was stopped: {why}")
            unwanted.append((pid, start))
        end(unwanted)
        adopted = [name for name, child in self.children.items() if child.pid]
        notes += sweep(self.run, adopted)
        self._opened = True
        for name in adopted:
            self._runs(name, self.children[name].pid)
        for child in self.children.values():
            if not child.pid:
                self._start(child)
        return notes

    def _start(self, child: Child) -> None:
        program = child.program
        out, err = (places.of(self.folder, program.name, what) for what in ("out", "err"))
        load = str(places.of(self.folder, program.name, "load").resolve())
        mark = {"APPORTION_RUN": self.run, "APPORTION_TASK": program.name}
        environment = os.environ | {"APPORTION_LOAD": load} | dict(program.env) | mark
        with out.open("ab") as stdout, err.open("ab") as stderr:
            child.begun = self.clock.now()
            try:
                child.process = subprocess.Popen(
                    self._argv(child),
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                if child.failures:  # it ran before: perhaps it is being replaced
                    return self._failed(child)
                raise BadInput(
                    f"task {program.name!r}: its command {program.argv[0]!r} cannot be started: {error.strerror}. "
                    "Name a program that is there and may be run."
                ) from None
        child.pid = child.process.pid
        child.start = procfs.started(child.pid)
        self._runs(program.name, child.pid)
        return None

    def _argv(self, child: Child) -> list[str]:
        program = child.program
        argv = list(program.argv)
        if program.served:
            load, data = (str(places.of(self.folder, program.name, what).resolve()) for what in ("load", "data"))
            argv += ["--load", load, "--data", data, "--listen", f"127.0.0.1:{child.port}"]
            for name in program.needs:
                needed = self.children.get(name)
                if needed and needed.program.served:
                    argv += ["--peer", f"{needed.program.kind}=127.0.0.1:{needed.port}"]
        return argv

    def _digest(self, child: Child) -> str:
        """Tell one command from another, without writing down what may be in its environment."""
        said = json.dumps([self._argv(child), sorted(child.program.env.items())])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def supervise(self, ended: Callable[[str], str]) -> list[str]:
        """Notice what ended and start it again when its time has come; tells of both.

        ended: called with a task whose program has ended; gives what the enforcer knows about that.
        """
        notes = []
        now = self.clock.now()
        for name, child in self.children.items():
            if child.pid:
                status = self._status(child)
                if status is None:
                    if child.failures and now - child.begun > STEADY:
                        child.failures = 0
                    continue
                _signal(-child.pid, signal.SIGKILL)  # what it left behind would be in its successor's way
                self._failed(child)
                notes.append(
                    f"{name!r} ended ({status}{ended(name)}); start {child.failures + 1} in {child.due - now:.1f} s"
                )
            elif now >= child.due:
                self._start(child)
                if child.pid:
                    notes.append(f"{name!r} was started again as process {child.pid}")
        return notes

    def _failed(self, child: Child) -> None:
        child.pid, child.process = 0, None
        child.due = self.clock.now() + min(FIRST_PAUSE * 2**child.failures, LONGEST_PAUSE)
        child.failures += 1

    def _status(self, child: Child) -> str | None:
        """Say how a process ended, in words; None while it runs."""
        if child.process is None:
            return None if procfs.alive(child.pid, child.start) else "nobody was there to see how"
        status = child.process.poll()
        if status is None:
            return None
        if status < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-status).name
        last = _last_line(places.of(self.folder, child.program.name, "err"))
        return f"exit status {status}" + (f": {last}" if last else "")

    def read(self) -> list[str]:
        """Take in what programs have told since; gives what could not be understood."""
        notes = []
        for name, child in self.children.items():
            if wrong := child.reader.read():
                notes.append(f"{name!r} {printable(wrong)}")
            for what in ("err", "out"):  # a program with a metrics page prints for nobody
                path = places.of(self.folder, name, what)
                with contextlib.suppress(OSError):
                    if path.stat().st_size > 2 * ROTATE_BYTES:
                        rotate(path)
        return notes

    def state(self) -> dict:
        """Give what the next controller needs to adopt them."""
        if not self._opened:  # nothing has been adopted yet: what the last controller knew is still true
            return self._known
        return {
            name: {"pid": child.pid, "start": child.start, "port": child.port, "command": self._digest(child)}
            for name, child in self.children.items()
        }

    def close(self) -> None:
        """Stop every program and all that descends from it: SIGTERM, and SIGKILL for those that still run after the grace."""
        end([(child.pid, child.start) for child in self.children.values()])
        sweep(self.run)
        for child in self.children.values():
            child.reader.close()
            if child.process:
                child.process.poll()  # one that even SIGKILL does not end hangs in the kernel: we do not hang with it
            child.pid, child.process = 0, None


def sweep(run: str, but: Collection[str] = ()) -> list[str]:
    """Stop the processes that carry this run's name, but for those of some tasks; tells whom it stopped.

    They are what a controller had just started when it was killed, and what left a program that has ended.
    """
    found: dict[str, list[int]] = {}
    for pid in procfs.own():
        said = procfs.environment(pid)
        if said.get("APPORTION_RUN") == run and (task := said.get("APPORTION_TASK", "")) not in but:
            found.setdefault(task, []).append(pid)
    end([(pid, procfs.started(pid)) for pids in found.values() for pid in pids])
    return [
        f"{task!r}: stopped process {', '.join(map(str, pids))}, which nobody looked after"
        for task, pids in found.items()
    ]


def end(processes: Iterable[tuple[int, int]]) -> None:
    """End processes with all that descends from them, known by pid and start time."""
    leaders = [pid for pid, start in processes if procfs.alive(pid, start)]
    family = {pid: procfs.started(pid) for leader in leaders for pid in procfs.tree(leader)}
    groups = {pid: _group(pid) for pid in family}
    target = {pid: -groups[pid] if groups[pid] in family else pid for pid in family}  # whole groups that are ours
    for number in (signal.SIGTERM, signal.SIGCONT):  # who is held cannot hear
        for each in set(target.values()):
            _signal(each, number)
    for number in (signal.SIGKILL, 0):
        until = time.monotonic() + GRACE
        while (left := [p for p, start in family.items() if procfs.alive(p, start)]) and time.monotonic() < until:
            time.sleep(0.01)
        for each in {target[pid] for pid in left}:
            _signal(each, number)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return pid


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process, or, with a negative number, to its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _last_line(path: Path) -> str:
    """Give the last line of a file, shortened: usually what went wrong."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 2000, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1].strip()) if lines else ""
    return ""


def _ports(names: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    """Give each name a loopback port: the one it has, else a free one that no other of them gets."""
    ports = {name: known[name] for name in names if known.get(name)}
    with contextlib.ExitStack() as held:
        for name in names:
            while name not in ports:
                probe = held.enter_context(socket.socket())
                port = random.choice(PORTS)
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    if port not in ports.values():
                        ports[name] = port
    return ports
