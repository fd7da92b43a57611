"""Where a run keeps what its programs, its controller and its guardian share; standard library only.

<folder>/run/<task>.out, .err    what a program prints        <folder>/run/<task>.load    its load factor
<folder>/run/<task>.data/        what it keeps                <folder>/run/released       limits are lifted
<folder>/run/children.json       who runs, and in which groups
"""

from __future__ import annotations

import urllib.parse
from functools import cache, lru_cache
from pathlib import Path

PREFIX = "apportion."  # what the name of every run's control group begins with
CONTROLLER = "@controller"  # a group for the controller itself; no task's group has such a name


@cache
def label(task: str) -> str:
    """Give a name that is safe for a file and a group; different tasks keep different names."""
    quoted = urllib.parse.quote(task, safe="")
    return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted


def run(folder: Path) -> Path:
    return Path(folder) / "run"


def state(folder: Path) -> Path:
    return run(folder) / "children.json"


def flag(folder: Path) -> Path:
    return run(folder) / "released"


@lru_cache(4096)  # asked for several times a round
def of(folder: Path, task: str, what: str) -> Path:
    """Give a task's file: out, err, load or data."""
    return run(folder) / f"{label(task)}.{what}"
