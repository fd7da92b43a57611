"""If the controller dies, lift every limit of its run and let all programs go on; then end.

A process of its own, in a session of its own, so that neither Ctrl-C nor `kill -9` of the controller takes it along.
It holds one end of a pipe and a handle on the controller and sleeps until either speaks: a full stop in the pipe is
a clean close (nothing is left to do), anything else means that nobody looks after the limits any more.
Everything it needs to know is in `<folder>/run/children.json`, which the controller rewrites whenever it changes.
`release` uses the same `lift`, and so works with or without a controller.

One fault is covered, not two: where controller and guardian are both killed before either replaced the other, programs
run on under their last limits (a governor lets go even then: its pipe closes). `apportion release` lifts them, `up
--resume` puts new ones in their place, `up --fresh` stops the programs; `doctor --clean` takes the groups away once
their programs have ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from apportion.execution import places, procfs

_UNLIMITED = {  # what a group's files say when nothing is limited, v1 and v2
    "cpu.cfs_quota_us": "-1",
    "memory.limit_in_bytes": "-1",
    "cpu.max": "max",
    "memory.max": "max",
}
WEIGHTS = {"cpu.shares": (1024, 262144), "cpu.weight": (100, 10000)}  # the kernel's: what a stranger has, and the most


def lift(folder: Path, controller: int = 0) -> list[str]:
    """Lift every limit of the run in this folder, let its stopped programs go on, and tell what could not be done.

    With `controller`, only while the run is still that process's: a new one may have taken it over meanwhile.
    """
    try:
        state = places.last(folder)
    except ValueError as error:
        return [str(error)]
    if state is None or (controller and state["controller"] != controller):
        return []
    refused = open_up(map(Path, state["groups"]), map(Path, state["runs"]))
    for pid in _programs(state):
        with contextlib.suppress(ProcessLookupError):
            try:
                os.kill(pid, signal.SIGCONT)
            except PermissionError as error:
                refused.append(f"could not continue process {pid}: {error.strerror}")
    return refused


def release(folder: Path) -> list[str]:
    """Lift every limit at once, also with no controller alive; a living one stops enforcing until it is started anew.

    Gives what could not be lifted, a line each.
    """
    folder = Path(folder)
    flag = places.flag(folder)
    if not flag.parent.is_dir():
        return [f"nothing was ever started in {folder}: it has no folder 'run'. Name the --out of the run to release."]
    flag.touch()  # first: a grant that is under way now looks for it when it is done
    return lift(folder)


def open_up(groups: Iterable[Path], runs: Iterable[Path]) -> list[str]:
    """Take away the limits of tasks' groups and the weight of their runs'; what they count stays."""
    refused = []
    for run in runs:  # first: programs without limits and with our weight would leave nothing to anyone else
        with contextlib.suppress(FileNotFoundError):
            programs = sum(task.is_dir() and task.name != places.CONTROLLER for task in run.iterdir())
            for name, (one, most) in WEIGHTS.items():
                refused += _put(run / name, str(min(one * max(programs, 1), most)))  # as if each stood alone
    for group in groups:
        for name, value in _UNLIMITED.items():
            refused += _put(group / name, value)
    return refused


def _put(file: Path, value: str) -> list[str]:
    try:
        if file.exists():
            file.write_text(value)
    except OSError as error:
        return [f"could not lift {file}: {error.strerror}"]
    return []


def _programs(state: dict) -> Iterator[int]:
    for child in state["children"].values():
        if procfs.alive(child["pid"], child["start"]):
            yield from procfs.tree(child["pid"])
    for group in state["groups"]:  # also those that left their parents
        with contextlib.suppress(OSError):
            yield from map(int, (Path(group) / "cgroup.procs").read_text().split())


class Guardian:
    """The controller's handle on its guardian."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._process = isolated("apportion.execution.guardian", str(folder.resolve()), str(os.getpid()))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def dismiss(self) -> None:
        """Say that all is well; it ends without touching anything."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b".")
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def isolated(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one of our own modules with a pipe to it: its own session, no terminal, no inherited files, no site."""
    home = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-S", "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": home},
        start_new_session=True,
        bufsize=0,
    )


def watch(folder: Path, controller: int, pipe: int = 0) -> bool:
    """Sleep until the controller is done (True) or dead (False)."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    with contextlib.suppress(OSError, AttributeError):  # the pipe alone will do, unless a fork holds its other end
        waiting.register(os.pidfd_open(controller), select.POLLIN)
    orphaned = os.getppid() != controller  # it died before we looked
    ready = dict(waiting.poll(0 if orphaned else None))
    return pipe in ready and os.read(pipe, 1) == b"."


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    folder, controller = Path(sys.argv[1]), int(sys.argv[2])
    os.chdir("/")
    if watch(folder, controller):
        return
    for pause in (0, 0.2, 0.5):  # again: the governor may have been about to stop somebody, or a child was just born
        time.sleep(pause)
        lift(folder, controller)


if __name__ == "__main__":
    main()
