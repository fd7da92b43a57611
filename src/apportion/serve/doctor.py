"""What this machine offers, and what of ours dead runs left on it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from apportion import __version__
from apportion.execution import machine

PACKAGES = ("numpy", "scipy", "pydantic", "cryptography", "duckdb", "python-flint", "torch")


def doctor(clean: bool, form: str) -> None:
    """Print machine, enforcers (each is tried for real) and versions; remove what dead runs left, if asked to."""
    found: dict[str, object] = {
        "apportion": __version__,
        "python": platform.python_version(),
        **machine.describe(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if clean:
        found["removed"] = machine.clean()
    if form == "json":
        print(json.dumps(found))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in found.items():
        for k, line in enumerate(_lines(value)):
            table.add_row(key if k == 0 else "", line)
    Console().print(table, highlight=False)


def _lines(value: object) -> list[str]:
    """Show a value in lines: lists and mappings an item each."""
    if isinstance(value, dict):
        return [f"{k}: {'; '.join(_lines(v))}" for k, v in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [": ".join(map(str, v.values())) if isinstance(v, dict) else str(v) for v in value] or ["none"]
    return [str(value)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
