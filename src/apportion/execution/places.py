"""Where a run keeps what its programs, its controller and its guardian share; standard library only.

<folder>/run/<task>.out, .err    what a program prints        <folder>/run/<task>.load    its load factor
<folder>/run/<task>.data/        what it keeps                <folder>/run/released       limits are lifted
<folder>/run/children.json       who runs, and in which groups
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeGuard

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


def last(folder: Path) -> dict | None:
    """Give what the last controller wrote down of its run; None where there was none or it closed cleanly.

    Raises ValueError where that is damaged: whom it names might be anybody.
    """
    try:
        found = json.loads(state(folder).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not _whole(found):
        raise ValueError(
            f"{state(folder)} is damaged, so programs that may still run cannot be told. "
            "End them by hand, then remove that file."
        )
    return found


def _whole(found: object) -> bool:
    """Tell whether this is what a controller writes: no name leads out of our groups, no number is anything else."""
    kinds = {"run": str, "controller": int, "groups": list, "runs": list, "children": dict}
    known = {"pid": int, "start": int, "port": int, "command": str}
    return (
        _holds(found, kinds)
        and found["run"].isalnum()
        and all(f"/{PREFIX}" in str(group) for group in found["groups"] + found["runs"])
        and all(_holds(child, known) for child in found["children"].values())
    )


def _holds(found: object, kinds: Mapping[str, type]) -> TypeGuard[dict[str, Any]]:
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())


def flag(folder: Path) -> Path:
    return run(folder) / "released"


@lru_cache(4096)  # asked for several times a round
def of(folder: Path, task: str, what: str) -> Path:
    """Give a task's file: out, err, load or data."""
    return run(folder) / f"{label(task)}.{what}"
