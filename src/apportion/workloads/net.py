"""Newline-delimited JSON over TCP: connections that outlive bad input, and a client that reconnects.

A request is one line, `{"op": "get", "id": 7, "due": 1700000000.25, ...}`; whoever gives an `id` gets one line back,
`{"id": 7, "ok": true, ...}` or `{"id": 7, "ok": false, "error": "..."}`. `due` is the Unix time by which an answer
is of use: a server that cannot make it refuses at once with the error "late" and has then changed nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any

MAX_LINE = 1 << 20  # bytes; whoever sends a longer line is cut off
MAX_UNREAD = 1 << 20  # bytes; whoever leaves more than this unread is cut off
LATE = "late"  # the error of a request that was refused because its time had passed

_UNIX = time.time() - time.monotonic()  # inside we count monotonic seconds, on the wire Unix time

Message = dict[str, Any]


class Traffic:
    """Counts the bytes handed to the network."""

    def __init__(self) -> None:
        self.sent = 0


def on_wire(due: float) -> float:
    """Give a monotonic moment as the Unix time that goes into a message."""
    return due + _UNIX


def due_of(message: Message, now: float, deadline: float, patience: float) -> float:
    """Give the monotonic moment by which a request is due: what it says, at most `patience` seconds from now.

    One that does not say is due `deadline` seconds from now.
    """
    due = message.get("due")
    if isinstance(due, bool) or not isinstance(due, int | float) or not math.isfinite(due):
        return now + deadline
    return min(due - _UNIX, now + patience)


class Line(asyncio.Protocol):
    """One end of a connection: bytes come in, messages go to `hear`, `gone` is told when it is over."""

    def __init__(
        self,
        hear: Callable[[Message, Line], None],
        gone: Callable[[Line], None] | None = None,
        traffic: Traffic | None = None,
    ):
        self.hear, self.gone, self.traffic = hear, gone, traffic or Traffic()
        self.transport: Any = None
        self.open = False
        self.here: tuple[str, int] = ("", 0)  # the addresses of the two ends
        self.there: tuple[str, int] = ("", 0)
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = transport, True
        self.here = transport.get_extra_info("sockname")[:2]
        self.there = transport.get_extra_info("peername")[:2]

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.gone:
            self.gone(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line and not line.isspace():
                self._read(line)
        if len(self._rest) > MAX_LINE:
            self.send({"ok": False, "error": f"a line is longer than {MAX_LINE} bytes: send less at a time"})
            self._rest = b""
            self.close()

    def _read(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self.send({"ok": False, "error": "not a JSON object: send one object per line"})
            return
        try:
            self.hear(message, self)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as problem:
            self.answer(message, error=f"{type(problem).__name__}: {problem}")

    def send(self, message: Message) -> bool:
        """Send a message; False where nobody reads at the other end."""
        return self.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def write(self, lines: bytes) -> bool:
        """Send lines that are already encoded."""
        if not self.open or self.transport.is_closing():
            return False
        if self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.transport.abort()
            return False
        self.transport.write(lines)
        self.traffic.sent += len(lines)
        return True

    def answer(self, request: Message, *, error: str | None = None, **fields: Any) -> bool:
        """Answer a request, if it wants an answer."""
        if "id" not in request:
            return True
        head: Message = {"id": request["id"], "ok": error is None}
        return self.send(head | ({"error": error} if error is not None else fields))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Peer:
    """Another program, which may be slow, away or back again: every question gets an answer or None in time."""

    RETRY = 0.25  # seconds between attempts to connect

    def __init__(self, host: str, port: int, traffic: Traffic | None = None):
        self.host, self.port, self.traffic = host, port, traffic or Traffic()
        self._line: Line | None = None
        self._waiting: dict[int, tuple[Callable[[Message | None], None], asyncio.TimerHandle]] = {}
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    def ask(self, message: Message, due: float, then: Callable[[Message | None], None]) -> None:
        """Send a request; call `then` once, with the answer, or with None where none came by `due`."""
        loop, self._next = asyncio.get_running_loop(), self._next + 1
        number, wait = self._next, due - time.monotonic()
        line = json.dumps(message | {"id": number, "due": on_wire(due)}, separators=(",", ":")).encode() + b"\n"
        if wait <= 0 or self._line is None or not self._line.write(line):
            loop.call_soon(then, None)
            return
        self._waiting[number] = then, loop.call_later(wait, self._give_up, number)

    def _hear(self, message: Message, _: Line) -> None:
        number = message.get("id")
        if isinstance(number, int) and (entry := self._waiting.pop(number, None)):
            entry[1].cancel()
            entry[0](message)

    def _give_up(self, number: int) -> None:
        if entry := self._waiting.pop(number, None):
            entry[0](None)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lost: asyncio.Future[None] = loop.create_future()

            def gone(_: Line, lost: asyncio.Future[None] = lost) -> None:
                if not lost.done():
                    lost.set_result(None)

            try:
                _, self._line = await asyncio.wait_for(
                    loop.create_connection(
                        lambda gone=gone: Line(self._hear, gone, self.traffic), self.host, self.port
                    ),
                    timeout=2,
                )
                await lost
            except (TimeoutError, OSError):
                pass
            self._line = None
            await asyncio.sleep(self.RETRY)

    def close(self) -> None:
        if self._task:
            self._task.cancel()
        if self._line:
            self._line.close()
        for number in list(self._waiting):
            entry = self._waiting.pop(number)
            entry[1].cancel()
