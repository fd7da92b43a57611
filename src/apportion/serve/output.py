"""Standard output that may fail while a world runs: a full disk or a reader who left breaks no round and no report."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


class Output:
    """A stream whose first failure is kept in `lost` instead of raised; what is printed later is tried again."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)  # its encoding, whether it is a terminal

    @contextlib.contextmanager
    def _kept(self):
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error


def mute(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: Python would try once more on its way out, and complain."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
