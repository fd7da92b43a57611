"""Load that does not wait for the server, and work that is dropped when it can no longer be in time.

Operations fall due by the clock, not when the last one is finished; so a program that is held up still knows how
much was asked of it meanwhile. What is too late already is shed at once, and only so many operations are under way
at a time as have lately come through in time: a program that gets half of its CPU then finishes about half of its
work in time, where it would else begin all of it and finish none. When the CPU is back, no backlog is in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

Work = TypeVar("Work")

PAUSE = 0.01  # seconds between two looks at what is due
HALVE_EVERY = 0.05  # seconds
SLICE = 0.004  # seconds of work between two looks at the sockets


class Pace:
    """Tells at which moments operations fell due, at so many a second."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def due(self, rate: float) -> list[float]:
        """Give the moments that have come since the last call."""
        now, out = time.monotonic(), []
        if rate <= 0:
            self._next = now
            return out
        while self._next <= now:
            out.append(self._next)
            self._next += 1 / rate
        self._next = min(self._next, now + 1 / rate)  # a rate that rises takes effect at once
        return out


class Window:
    """How many operations may be under way: some more while all are in time, half with a late one."""

    LEAST = 2.0

    def __init__(self, most: int):
        self.most, self.size, self.flying = most, most / 2, 0
        self._room, self._halved = asyncio.Event(), 0.0

    def back(self, in_time: bool, count: int = 1) -> None:
        """Note that operations have come through."""
        self.flying = max(0, self.flying - count)
        now = time.monotonic()
        if in_time:
            self.size = min(self.most, self.size + 0.5 / self.size)
        elif now > self._halved + HALVE_EVERY:  # all that is late by now is late for one reason
            self.size, self._halved = max(self.LEAST, self.size / 2), now
        if self.flying <= self.size / 2:  # half empty: it costs less to fill it now and then than one by one
            self._room.set()

    async def wait(self, seconds: float) -> None:
        """Return when there is room for some more, or after so many seconds."""
        self._room.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._room.wait()


class Gate:
    """Where operations wait until the window has room for them: our own as they fall due, others' as they arrive.

    All wait in one row, so that when there is too much of it nobody's work is preferred, and those who have waited for
    `patience` seconds are sent away: what is begun shall have time enough to be finished.
    """

    def __init__(self, window: Window, patience: float, act: Callable[[float], None], drop: Callable[[], None]):
        self.window, self.patience = window, patience
        self.act, self.drop = act, drop  # of our own; act takes the moment at which the operation fell due
        self._pace = Pace()
        self._row: deque[tuple[float, Callable[[], None], Callable[[], None]]] = deque()  # since when, go, be dropped

    def enter(self, go: Callable[[], None], drop: Callable[[], None]) -> None:
        """Take somebody else's operation: sooner or later one of the two is called."""
        if not self._row and self.window.flying < self.window.size:
            go()
        else:
            self._row.append((time.monotonic(), go, drop))

    async def play(self, rate: float) -> None:
        """Let in what there is room for, our own at so many a second; return when it is time to look again."""
        self._row.extend((moment, partial(self.act, moment), self.drop) for moment in self._pace.due(rate))
        while self._row and time.monotonic() > self._row[0][0] + self.patience:
            self._row.popleft()[2]()
        while self._row and self.window.flying < self.window.size:
            self._row.popleft()[1]()
        await (self.window.wait(PAUSE) if self._row else asyncio.sleep(PAUSE))


class Backlog(Generic[Work]):
    """Work in the order in which it is due; what cannot be done `margin` seconds before its time is shed."""

    def __init__(self, margin: float, shed: Callable[[Work], None]):
        self.margin, self.shed = margin, shed
        self._queue: deque[tuple[float, Work]] = deque()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, due: float, work: Work) -> None:
        self._queue.append((due, work))
        self._news.set()

    def take(self) -> tuple[float, Work] | None:
        """Give the next piece of work that still makes sense."""
        latest = time.monotonic() + self.margin
        while self._queue:
            due, work = self._queue.popleft()
            if due > latest:
                return due, work
            self.shed(work)
        return None

    async def wait(self) -> None:
        """Return once there is work."""
        if not self._queue:
            self._news.clear()
            await self._news.wait()

    async def work(self, do: Callable[[float, Work], None], flush: Callable[[], None] = lambda: None) -> None:
        """Do the work for ever, a slice at a time, with a look at the sockets in between."""
        while True:
            await self.wait()
            until = time.monotonic() + SLICE
            while time.monotonic() < until and (next_one := self.take()):
                do(*next_one)
            flush()
            await asyncio.sleep(0)
