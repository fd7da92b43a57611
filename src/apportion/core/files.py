"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give the path of a file to write, which then takes the place of `path`; what fails or is killed leaves the old one.

    sync: on the disk before it takes the place, so that a power cut leaves the old one or the new one as well; without it
    perhaps an empty one. Raises OSError.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if sync:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
