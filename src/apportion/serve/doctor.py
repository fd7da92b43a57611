"""What this machine offers, and what of ours dead runs left on it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apportion import __version__
from apportion.core.units import resource
from apportion.execution import machine

PACKAGES = ("numpy", "scipy", "pydantic", "cryptography", "duckdb", "python-flint", "torch")
HOLDS = {
    "cgroup2": "holds CPU and memory",
    "cgroup1": "holds CPU and memory",
    "governor": "holds CPU by stopping and continuing programs; memory is measured",
    "none": "holds nothing, measures everything",
}


def doctor(clean: bool, form: str) -> None:
    """Print machine, enforcers (each is tried for real) and versions; remove what dead runs left, if asked to."""
    found: dict[str, Any] = {
        "apportion": __version__,
        "python": platform.python_version(),
        **machine.describe(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    found["enforcer"] = next((e["name"] for e in found["enforcers"] if e["works"]), "")
    if clean:
        found["removed"] = machine.clean()
    if form == "json":
        print(json.dumps(found))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, lines in told(found).items():
        for k, line in enumerate(lines):
            table.add_row(key if k == 0 else "", Text(line))
    Console().print(table, highlight=False)


def told(found: dict[str, Any]) -> dict[str, list[str]]:
    """Give the lines that people read, by what they are about."""
    out = {name: [str(found[name])] for name in ("apportion", "python", "machine", "kernel")}
    for_sale = [f"{resource(name).show(float(amount))} of {name}" for name, amount in found["capacity"].items()]
    cores = found["cores"]
    out["cores"] = [f"{cores} {'core' if cores == 1 else 'cores'}"]
    out["for sale"] = [*for_sale, "bandwidth and storage are assumed: write what you have into the world file"]
    out["enforcers"] = [_enforcer(e["name"], e["works"], e["why"], found["enforcer"]) for e in found["enforcers"]]
    out["cgroups"] = [f"{name} at {path}" for name, path in found["cgroups"].items()] or ["none are mounted"]
    out["packages"] = [f"{name} {version}" for name, version in found["packages"].items()]
    if "removed" in found:
        out["removed"] = [f"the groups of run {run}" for run in found["removed"]] or ["nothing: no dead run left any"]
    return out


def _enforcer(name: str, works: bool, why: str, used: str) -> str:
    if not works:
        return f"{name}: cannot be used here. {why}"
    return f"{name}: {'WILL BE USED' if name == used else 'works too'}, {HOLDS[name]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
