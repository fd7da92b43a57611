"""What the programs share: command line, load file, and the probe line, printed once a second.

    {"t": 1700000000.123, "asked": 4000, "in_time": 3991,
     "wanted": {"cpu": cores, "memory": GiB, "bandwidth": Mbit/s, "storage": MB/s},
     "used": {"bandwidth": Mbit/s, "storage": MB/s}, "metrics": {...}}

`asked` counts the operations that were settled one way or the other since the line before, `in_time` those of
them that were finished within their deadline; the quotient is the program's experience. `wanted` is what the
program would use to serve all that was asked: what one operation has been seen to cost, times the operations asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from apportion.workloads.net import Line, Message, Peer, Traffic

CONNECTING = 0.3  # seconds that a program may take to connect its own load before it starts to count

Address = tuple[str, int]
Person = TypeVar("Person")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a program."""

    size: int  # players, members, traders, clients at a load of 1
    load: Path | None  # holds a factor on size; read again four times a second
    listen: Address
    peers: dict[str, Address]  # kind -> where it listens
    data: Path  # what must outlive the program goes here
    seed: int
    seconds: float | None  # end after so long
    more: Mapping[str, Any] = field(default_factory=dict)  # what a program's own flags say


class Meter:
    """Counts operations and what they cost."""

    def __init__(self) -> None:
        self.traffic = Traffic()  # what we send; what our own load sends to us is not counted
        self.cost: dict[str, float] = {}  # of one operation done: core-seconds, Mbit, MB
        self.restart()

    def restart(self) -> None:
        """Begin to count."""
        self.asked = self.in_time = self.worked = 0  # worked: done, in time or not; the rest was shed
        self.delays: list[float] = []  # seconds, of what was done since the last line
        self._since, self._spent = time.monotonic(), self._read()

    def done(self, in_time: bool, delay: float, count: int = 1) -> None:
        """Count operations that were carried out `delay` seconds after they were asked for."""
        self.asked += count
        self.worked += count
        self.in_time += count * in_time
        self.delays.append(delay)

    def shed(self, count: int = 1) -> None:
        """Count operations that were asked for and not carried out."""
        self.asked += count

    def _read(self) -> dict[str, float]:
        return {"cpu": time.process_time(), "bandwidth": self.traffic.sent * 8e-6, "storage": _written() * 1e-6}

    def line(self, metrics: dict[str, int | float]) -> Message:
        """Give the probe line and start counting anew."""
        now, spent = time.monotonic(), self._read()
        seconds = max(now - self._since, 1e-6)
        used = {name: max(0.0, (spent[name] - self._spent[name])) for name in spent}
        if self.worked:
            # A starved second tells little about what an operation costs, so it counts for little.
            weight = 0.3 * self.worked / self.asked if self.cost else 1.0
            for name, amount in used.items():
                known = self.cost.get(name, 0.0)
                self.cost[name] = known + weight * (amount / self.worked - known)
        wanted = {name: max(self.cost.get(name, 0.0) * self.asked, 0.0) / seconds for name in used}
        if not self.cost:
            wanted = {name: amount / seconds for name, amount in used.items()}
        self.delays.sort()
        line: Message = {
            "t": round(time.time(), 3),
            "asked": self.asked,
            "in_time": self.in_time,
            "wanted": _short(wanted | {"memory": resident() / 2**30}),
            "used": _short({name: used[name] / seconds for name in ("bandwidth", "storage")}),
            "metrics": {
                "cpu": round(used["cpu"] / seconds, 4),
                "late": self.worked - self.in_time,
                "shed": self.asked - self.worked,
                "p50_ms": round(1e3 * self.quantile(0.5), 3),
                "p95_ms": round(1e3 * self.quantile(0.95), 3),
                "p99_ms": round(1e3 * self.quantile(0.99), 3),
            }
            | {name: round(value, 4) for name, value in metrics.items()},
        }
        self.asked = self.in_time = self.worked = 0
        self.delays, self._since, self._spent = [], now, spent
        return line

    def quantile(self, part: float) -> float:
        """Give a quantile of the sorted delays."""
        return self.delays[min(int(part * len(self.delays)), len(self.delays) - 1)] if self.delays else 0.0


def _short(amounts: dict[str, float]) -> dict[str, float]:
    return {name: round(amount, 5) for name, amount in amounts.items()}


def resident() -> int:
    """Give the memory that this process holds, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource  # not on every system, and only needed where /proc is not there

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _written() -> int:
    """Give the bytes that this process has sent to its disk; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


class Service(ABC):
    """A program that serves its own load and whoever connects to it."""

    kind = ""
    size_name = ""  # what --size counts
    ordinary = 100  # --size unless told
    flags: Mapping[str, Mapping[str, Any]] = {}  # of its own: flag -> what argparse is told; they come in Options.more

    def __init__(self, options: Options, meter: Meter):
        self.options, self.meter = options, meter
        self.size = options.size  # at the present load; at least 1
        self.rng = random.Random(options.seed)
        self.peers = {kind: Peer(*address, meter.traffic) for kind, address in options.peers.items()}
        self.lines: set[Line] = set()  # connections that others have made to us
        self.address: Address = options.listen
        self.own: set[Address] = set()  # where the connections of our own load come from
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    def hear(self, message: Message, line: Line) -> None:
        """Take a message that came over a socket; LookupError, TypeError and ValueError are told to its sender."""

    async def meet(self, line: Line) -> bool:
        """Connect one of our own to ourselves, as anybody connects; False where there are no more connections."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: line, *self.address)
        except OSError:
            return False
        self.own.add(line.here)
        return True

    def pick(self, people: Sequence[Person]) -> Person | None:
        """Choose one of our own who take part at the present size."""
        return people[self.rng.randrange(min(len(people), self.size))] if people else None

    async def connect(self) -> bool:
        """Let some more of our own in, or out; tell whether there are more to come."""
        return False

    @abstractmethod
    async def load(self) -> None:
        """Make the program's own load, for ever."""

    @abstractmethod
    async def serve(self) -> None:
        """Do the program's work, for ever."""

    def metrics(self) -> dict[str, int | float]:
        """Give what else is worth knowing about the last second."""
        return {}

    def gone(self, line: Line) -> None:
        """Forget a connection."""
        self.lines.discard(line)
        self.own.discard(line.there)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def accept() -> Line:
            line = Line(self.hear, self.gone, self.meter.traffic)
            self.lines.add(line)
            return line

        self._server = await loop.create_server(accept, *self.options.listen, backlog=1024)
        self.address = self._server.sockets[0].getsockname()[:2]
        for peer in self.peers.values():
            peer.start()
        ready = time.monotonic() + CONNECTING
        self._tasks = [loop.create_task(self.serve())]
        while await self.connect() and time.monotonic() < ready:
            pass
        self._tasks.append(loop.create_task(self.load()))
        self.meter.restart()

    async def failed(self) -> None:
        """Return, with the error, when the load or the work has stopped."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._server:
            self._server.close()
        for end in (*self.peers.values(), *self.lines):
            end.close()


def read_load(path: Path | None, last: float) -> float:
    """Give the factor in the load file, or the last one where there is none to be read."""
    if path is None:
        return last
    try:
        factor = float(path.read_text())
    except (OSError, ValueError):
        return last
    return factor if 0 <= factor <= 1e4 else last


def listened_to() -> bool:
    """Tell whether a line could be printed now: a reader that has stopped must not stop us."""
    try:
        return bool(select.select([], [sys.stdout], [], 0)[1])
    except (OSError, ValueError):
        return True  # not a thing that can be waited for


def print_line(message: Message) -> None:
    """Print a probe line; without a reader the program serves on."""
    try:
        print(json.dumps(message, separators=(",", ":")), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _run(service: Service) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows has no handlers on the loop: Ctrl-C still ends us
            loop.add_signal_handler(number, stop.set)
    factor = read_load(service.options.load, 1.0)
    service.size = max(1, round(service.options.size * factor))
    await service.start()
    gc.freeze()  # what start-up made stays: no collection needs to look at it again
    started = time.monotonic()
    tick, next_line = 0.25, started + 0.5
    ending = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(service.failed())]
    try:
        while not any(end.done() for end in ending):
            await asyncio.wait(ending, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
            now = time.monotonic()
            factor = read_load(service.options.load, factor)
            service.size = max(1, round(service.options.size * factor))
            if now >= next_line - 0.005:
                if listened_to():
                    print_line(service.meter.line(service.metrics()))
                next_line = max(next_line + 1, now + 0.5)
            if service.options.seconds is not None and now - started >= service.options.seconds:
                break
            tick = min(0.25, max(next_line - time.monotonic(), 0.01))
        if ending[1].done():
            ending[1].result()
    finally:
        for end in ending:
            end.cancel()
        service.close()


def run(program: type[Service], argv: list[str] | None = None) -> int:
    """Run a program until it is told to end."""
    given = _arguments(program, argv)
    _allow_many_sockets()
    try:
        with contextlib.ExitStack() as at_end:
            data = given.data or Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix=f"{program.kind}-")))
            data.mkdir(parents=True, exist_ok=True)
            peers = dict(given.peer)
            options = Options(given.size, given.load, given.listen, peers, data, given.seed, given.seconds, vars(given))
            asyncio.run(_run(program(options, Meter())))
    except OSError as problem:
        where = "{}:{}".format(*given.listen)
        print(f"{program.kind}: cannot use --listen {where} or --data {given.data}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass  # where there is no signal handler
    return 0


def _allow_many_sockets() -> None:
    """Raise the number of files we may hold open to what the system allows without asking."""
    try:
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536) if hard > 0 else 65536), hard))
    except (ImportError, OSError, ValueError):
        pass


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT. Write for example 127.0.0.1:7000.")
    return host, int(port)


def _peer(text: str) -> tuple[str, Address]:
    kind, equals, where = text.partition("=")
    if not equals or not kind:
        raise argparse.ArgumentTypeError(f"{text!r} is no KIND=HOST:PORT. Write for example assets=127.0.0.1:7000.")
    return kind, _address(where)


def _size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is no size. Write a whole number from 1 to 1000000.")
    return int(text)


def _arguments(program: type[Service], argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m apportion.workloads.{program.kind}", description=program.__doc__)
    parser.add_argument("--size", f"--{program.size_name}", dest="size", type=_size, default=program.ordinary)
    parser.add_argument("--load", type=Path, help="a file with a factor on the size, read again while running")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--peer", type=_peer, action="append", default=[], metavar="KIND=HOST:PORT")
    parser.add_argument("--data", type=Path, help="a folder for what must last; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="end after so many seconds")
    for flag, told in program.flags.items():
        parser.add_argument(flag, **told)
    return parser.parse_args(argv)
