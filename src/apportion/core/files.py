"""Files that are there whole or not at all, and files of others that are not read without end."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give the path of a file to write, which then takes the place of `path`; what fails or is killed leaves the old one.

    sync: on the disk before it takes the place, so that a power cut leaves the old one or the new one as well; without it
    perhaps an empty one. A device or a pipe is written to as it is, and never replaced. Raises OSError.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if sync:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_whole(path: str | Path, most: int = 1 << 26) -> bytes:
    """Read a file that should be small: a device or a stranger's file may never end. Raises OSError, also above `most` bytes."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return data


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process that asks for the same changes files of a folder; the system lets go of it with us."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
