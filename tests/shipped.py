"""The shipped programs as tests run them: started, starved, spoken to and looked through."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apportion.workloads.assets import Assets, Store
from apportion.workloads.commerce import Commerce
from apportion.workloads.game import Game
from apportion.workloads.probe import Options, Service
from apportion.workloads.social import Social

KINDS: dict[str, type[Service]] = {"game": Game, "social": Social, "commerce": Commerce, "assets": Assets}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="linux: reads another process's CPU clock")


@dataclass
class Running:
    """A program under test, and what it has said so far."""

    kind: str
    child: subprocess.Popen[str]
    port: int
    started: float = field(default_factory=time.monotonic)
    said: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # when, what
    cores: float | None = None  # what the governor below leaves it
    ended: bool = False

    def listen(self) -> None:
        for line in self.child.stdout or ():
            self.said.append((time.monotonic(), json.loads(line)))

    def govern(self) -> None:
        """Stop the program whenever it is ahead of what it may use, until it no longer is: that needs no rights."""
        prefer(threading.get_native_id())
        clock, since, cores = (~self.child.pid << 3) | 2, 0.0, None  # Linux: the CPU clock of another process
        with contextlib.suppress(OSError):
            while not self.ended:
                now, used = time.monotonic(), time.clock_gettime(clock)
                if self.cores != cores or cores is None or used < spent + (now - since - 0.05) * cores:
                    since, spent, cores = now, used, self.cores  # what is not used is not saved up
                elif (ahead := (used - spent) / cores - (now - since)) > 0:
                    self.child.send_signal(signal.SIGSTOP)
                    time.sleep(min(ahead, 0.2))
                    self.child.send_signal(signal.SIGCONT)
                time.sleep(0.002)

    def between(self, start: float, end: float) -> list[dict[str, Any]]:
        return [line for when, line in self.said if start < when <= end]

    def experience(self, start: float, end: float) -> float:
        lines = self.between(start, end)
        asked = sum(line["asked"] for line in lines)
        assert asked, f"{self.kind} said nothing in {end - start:.1f} s"
        return sum(line["in_time"] for line in lines) / asked

    def queued(self) -> float:
        """Give the seconds for which it was ready to run and the machine had no core for it."""
        return int(Path(f"/proc/{self.child.pid}/schedstat").read_text().split()[1]) * 1e-9

    def wait_for_lines(self, count: int, seconds: float = 15) -> None:
        """Wait until the program has said so many lines in all."""
        until = time.monotonic() + seconds
        while len(self.said) < count and time.monotonic() < until:
            time.sleep(0.02)
        assert len(self.said) >= count, f"{self.kind} fell silent; exit code {self.child.poll()}"

    def end(self, number: int = signal.SIGTERM) -> float:
        """Tell it to end; give the seconds that took."""
        self.cores, self.ended = None, True
        self.child.send_signal(signal.SIGCONT)
        told = time.monotonic()
        self.child.send_signal(number)
        try:
            self.child.wait(5)
        finally:
            self.child.kill()
        return time.monotonic() - told


@contextlib.contextmanager
def running(kind: str, size: int, *more: str, peers: dict[str, int] | None = None) -> Iterator[Running]:
    """Start a program, governed by nobody yet; end it at the end."""
    port = free_port()
    command = [sys.executable, "-m", f"apportion.workloads.{kind}", "--size", str(size)]
    command += ["--listen", f"127.0.0.1:{port}", *more]
    for name, at in (peers or {}).items():
        command += ["--peer", f"{name}=127.0.0.1:{at}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        prefer(child.pid)
        with contextlib.suppress(OSError):  # Linux weighs sessions first, then what is in them
            Path(f"/proc/{child.pid}/autogroup").write_text("-15")
        program = Running(kind, child, port)
        threads = [threading.Thread(target=work, daemon=True) for work in (program.listen, program.govern)]
        for thread in threads:
            thread.start()
        try:
            yield program
        finally:
            if child.poll() is None:
                program.end(signal.SIGKILL)
            program.ended = True
            for thread in threads:
                thread.join()


def prefer(thread: int) -> None:
    """Let a thread go before others where that is allowed: what is measured should not depend on the neighbours."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, -15)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Caller:
    """Somebody at the other end of a socket."""

    def __init__(self, port: int):
        until = time.monotonic() + 5
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
                break
            except ConnectionRefusedError:  # it is still starting
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request with more time than usual and wait for its answer."""
        message = {"id": "mine", "due": time.time() + 30, **message}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while line := self.lines.readline():
            if (answer := json.loads(line)).get("id") == message["id"]:
                return answer
        raise ConnectionError("the other end has hung up")


def options(folder: Path) -> Options:
    return Options(10, None, ("127.0.0.1", 0), {}, folder, 0, None)


def owners(store: Store) -> dict[str, str]:
    """Give the owner of every item."""
    return dict(store.db.execute("SELECT name, owner FROM item"))


def faults(store: Store) -> list[str]:
    """Look at everything; give what is wrong with the store, which should be nothing."""
    found = [line for (line,) in store.db.execute("PRAGMA integrity_check") if line != "ok"]
    used = dict(store.db.execute("SELECT blob, count(*) FROM item GROUP BY blob"))
    for row, digest, refs, content in store.db.execute("SELECT id, hash, refs, data FROM blob"):
        if hashlib.sha256(content).digest() != digest:
            found.append(f"blob {row} does not match its hash")
        if refs != used.pop(row, 0):
            found.append(f"blob {row} counts {refs} items wrongly")
    return found + [f"{count} items have lost blob {row}" for row, count in used.items()]
