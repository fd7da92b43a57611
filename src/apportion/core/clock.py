"""Time is passed in: the wall for real worlds, a virtual one for simulated worlds and tests."""

from __future__ import annotations

import threading
import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Seconds that only go forward."""

    def now(self) -> float: ...

    def sleep_until(self, moment: float) -> None: ...

    def stamp(self) -> str:
        """Give the moment as written into the log, in seconds with three decimals."""
        ...


class WallClock:
    """The machine's monotonic clock; stamps are Unix time.

    `stop` may be called from a signal handler: the next sleep, or the present one, ends in KeyboardInterrupt.
    So a world stops while it waits and at no other place: no entry, grant or bill is cut in half.
    """

    def __init__(self):
        self._stopped = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        if self._stopped.wait(max(0.0, moment - time.monotonic())):
            raise KeyboardInterrupt

    def stop(self) -> None:
        self._stopped.set()

    def stamp(self) -> str:
        return f"{time.time():.3f}"


class VirtualClock:
    """A clock that jumps: the same world, seed and key give the same bytes."""

    def __init__(self, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, moment: float) -> None:
        self._now = max(self._now, moment)

    def stamp(self) -> str:
        return f"{self._now:.3f}"
