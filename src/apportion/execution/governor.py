"""No rights at all: a process of ours stops and continues programs so that each gets its CPU time.

A token bucket for each task: it fills at the rate of the grant and is emptied by the CPU time that its processes' clocks
report. An empty one stops the whole tree (SIGSTOP); one worth a turn again lets it go on (SIGCONT). What a turn ran
over is owed, so the mean is the grant whatever the timing of single signals. A bucket holds two turns, and owes a second, at most.

The lower half of this file is that process (standard library only: it starts in some ms and is never held up by the
controller's arithmetic); the upper half is the controller's handle on it. When the pipe between them closes, or
`release` leaves its flag, it lets everybody go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.execution import places, procfs
from apportion.execution.enforcers import Metered, turns
from apportion.execution.guardian import isolated


class Governor(Metered):
    """Holds CPU by duty cycle; memory is measured, not held."""

    name = "governor"

    def __init__(self, folder: Path):
        if sys.platform != "linux":
            raise EnforcerRefused(f"governor: it reads other processes' clocks as Linux does; this is {sys.platform}.")
        super().__init__()
        self._flag = places.flag(folder.resolve())
        self._said: dict[str, dict[str, int]] = {}  # task -> pid and cpu as last told, to tell a new one
        self._process = isolated("apportion.execution.governor", str(self._flag))
        self._closed = False

    def attach(self, task: str, pid: int) -> None:
        super().attach(task, pid)
        self._said[task] = {"pid": pid, "cpu": self._said.get(task, {}).get("cpu", -1)}
        self._tell(task)

    def detach(self, task: str) -> None:
        super().detach(task)
        self._said[task] = {"pid": 0, "cpu": -1}
        self._tell(task)
        del self._said[task]

    def limit(self, task: str, cpu: int, memory: int, weight: int) -> str:
        if self._process.poll() is not None:
            self._said[task]["cpu"] = cpu
            return self._revive()
        if self._said[task]["cpu"] != cpu:
            self._said[task]["cpu"] = cpu
            return self._tell(task)
        return ""

    def _tell(self, task: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, **self._said[task]}).encode() + b"\n")
        except OSError:
            return self._revive()
        return ""

    def _revive(self) -> str:
        """Start the process again after somebody ended it; whom it held is let go and then held anew."""
        status = self._process.wait()
        self._hang_up()
        for said in self._said.values():
            _continue(said["pid"])
        self._process = isolated("apportion.execution.governor", str(self._flag))
        assert self._process.stdin is not None
        lines = [json.dumps({"task": task, **said}) for task, said in self._said.items()]
        try:
            self._process.stdin.write("".join(line + "\n" for line in lines).encode())
        except OSError as error:
            raise EnforcerRefused(f"governor: it ends as soon as it is started (status {status}): {error}.") from None
        return f"the governor had ended (status {status}) and was started again"

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def lift(self) -> None:
        for task, said in self._said.items():
            said["cpu"] = -1
            self._tell(task)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._hang_up()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for said in self._said.values():
            _continue(said["pid"])


def _continue(pid: int) -> None:
    for each in procfs.tree(pid) if pid else ():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGCONT)


# ---- the process ----

RESCAN_SECONDS = 0.25  # how long a newly forked process can run unseen; what it used is then owed
SHORTEST_SECONDS = 0.001
MOST_OWED_SECONDS = 1.0  # what ran unseen is paid back, but nobody stands still for longer than this


class Bucket:
    """One task's tokens: seconds of CPU time that it may still run."""

    def __init__(self, pid: int, now: float):
        self.pid = pid
        self.rate = -1.0  # cores; below 0: not held
        self.speed = 1.0  # cores it uses while it runs, as last seen; at least 1, to look in time
        self.tokens = 0.0
        self.held = False
        self.due = now
        self._handles: dict[int, int] = {}  # pid -> a handle that never comes to mean another process
        self._clocks: dict[int, int] = {}
        self._looked = self._counted = now
        self.look(now)

    def look(self, now: float) -> None:
        """Find the tree as it is now."""
        self._looked = now
        pids = procfs.tree(self.pid)
        for pid in set(self._handles) - set(pids):
            os.close(self._handles.pop(pid))
            self._clocks.pop(pid)
        for pid in set(pids) - set(self._handles):
            with contextlib.suppress(ProcessLookupError):
                self._handles[pid] = os.pidfd_open(pid)
                self._clocks[pid] = 0 if self._clocks else procfs.cpu_ns(pid)  # what a newcomer ran is owed
                if self.held:
                    self._signal(pid, signal.SIGSTOP)

    def grant(self, cpu: int, now: float) -> None:
        self.rate = cpu / 1000 if cpu >= 0 else -1.0
        self.due = now
        if self.rate < 0:
            self.release()
        else:
            self.tokens = min(self.tokens, 2 * turns(cpu)[0] / 1e6)

    def release(self) -> None:
        self.held = False
        for pid in self._handles:
            self._signal(pid, signal.SIGCONT)

    def step(self, now: float) -> None:
        """Settle the account, stop or continue, and say when to look again."""
        if now - self._looked > RESCAN_SECONDS:
            self.look(now)
        used = 0
        for pid, before in self._clocks.items():
            self._clocks[pid] = max(procfs.cpu_ns(pid), before)
            used += self._clocks[pid] - before
        passed, self._counted = now - self._counted, now
        if self.rate < 0:
            self.due = now + RESCAN_SECONDS
            return
        turn = turns(round(self.rate * 1000))[0] / 1e6
        self.tokens = min(self.tokens + self.rate * passed - used / 1e9, 2 * turn)
        self.tokens = max(self.tokens, -self.rate * MOST_OWED_SECONDS)
        if not self.held and passed > 0:
            self.speed = max(used / 1e9 / passed, 1.0)
        worth = turn * max(1 - self.rate / self.speed, 0.1)  # what it must save up to run for a turn from then on
        if not self.held and self.tokens <= 0:
            self.held = True
            for pid in self._handles:
                self._signal(pid, signal.SIGSTOP)
        elif self.held and self.tokens >= worth:
            self.release()
        if self.held:
            self.due = now + max((worth - self.tokens) / self.rate, SHORTEST_SECONDS)
        else:
            self.due = now + max(self.tokens / self.speed, SHORTEST_SECONDS)
        self.due = min(self.due, self._looked + RESCAN_SECONDS)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._handles[pid], number)

    def forget(self) -> None:
        self.release()
        for handle in self._handles.values():
            os.close(handle)


def govern(flag: Path, pipe: int = 0) -> None:
    """Hold everybody to their grants until the pipe closes."""
    buckets: dict[str, Bucket] = {}
    rest, asked_flag, released = b"", 0.0, False
    try:
        while True:
            now = time.monotonic()
            wait = min([bucket.due - now for bucket in buckets.values()], default=RESCAN_SECONDS)
            if select.select([pipe], [], [], max(min(wait, 0.1), 0))[0]:
                got = os.read(pipe, 65536)
                if not got:
                    return
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    _hear(json.loads(line), buckets)
            now = time.monotonic()
            if now - asked_flag > 0.1:
                asked_flag, before, released = now, released, flag.exists()
                if released and not before:
                    for bucket in buckets.values():
                        bucket.release()
            if not released:
                for bucket in buckets.values():
                    if bucket.due <= now:
                        bucket.step(now)
    finally:
        for bucket in buckets.values():
            bucket.forget()


def _hear(said: dict, buckets: dict[str, Bucket]) -> None:
    now = time.monotonic()
    task, pid = said["task"], said["pid"]
    known = buckets.get(task)
    if known and known.pid != pid:
        buckets.pop(task).forget()
    if not pid:
        return
    if task not in buckets:
        buckets[task] = Bucket(pid, now)
    buckets[task].grant(said["cpu"], now)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # by way of `finally`: nobody is left standing
    govern(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
