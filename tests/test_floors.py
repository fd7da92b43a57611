"""The house stands on its floors: imports point down, and neighbours on a floor do not know each other."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = (
    "core",
    "intake valuing clearing placement execution settlement ledger",  # what a round does, in order
    "engine audit learning worlds study chain",  # what loops over rounds
    "serve",  # the doors
    "__init__",  # the face: hands names on
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms.split()}
ONLY = {"torch": ("learning/",), "ray": ("execution/ray.py",), "pydantic": ("worlds/", "serve/")}
ONLY["pydantic_core"] = ONLY["pydantic"]
SHARED = ("apportion.core.errors.", "apportion.settlement.pool.")  # plain rules that a workload may take from the house


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Give line and full name of everything a file imports, wherever in the file it does."""
    inside = ["apportion", *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def broken(package: Path) -> list[str]:
    """Give each import that breaks the law, as `file:line: why`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).as_posix()
        room = here.partition("/")[0].removesuffix(".py")
        for line, name in imports(path, package):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top in ONLY and not here.startswith(ONLY[top]):
                why = f"{top} belongs in {' and '.join(ONLY[top])}"
            elif top != "apportion" or target in (room, "__version__"):
                continue
            elif room == "workloads" and name.startswith(SHARED):
                continue
            elif "workloads" in (room, target):
                why = f"the workloads stand beside the house: {room} and {target} do not know each other"
            elif room not in FLOOR or target not in FLOOR:
                nameless = room if room not in FLOOR else target or "apportion itself"
                why = f"{nameless} has no floor: import from a room by its name, or give the room a floor in this test"
            elif FLOOR[target] >= FLOOR[room]:
                why = f"{room} (floor {FLOOR[room]}) may not know {target} (floor {FLOOR[target]})"
            else:
                continue
            found.append(f"{here}:{line}: {why}")
    return found


def test_imports_point_down(root: Path):
    assert broken(root / "src" / "apportion") == []


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("core/planted.py", "from apportion.clearing import clear", "core (floor 0) may not know clearing (floor 1)"),
        ("settlement/planted.py", "import apportion.ledger.log", "settlement (floor 1) may not know ledger (floor 1)"),
        ("ledger/planted.py", "from ..execution import local", "ledger (floor 1) may not know execution (floor 1)"),
        ("engine.py", "def late():\n    from apportion import serve", "engine (floor 2) may not know serve (floor 3)"),
        ("intake/planted.py", "from apportion import Market", "Market has no floor"),
        ("intake/planted.py", "import apportion", "apportion itself has no floor"),
        ("serve/planted.py", "import torch.nn", "torch belongs in learning/"),
        ("execution/local.py", "import ray", "ray belongs in execution/ray.py"),
        ("clearing/planted.py", "from pydantic import BaseModel", "pydantic belongs in worlds/ and serve/"),
        ("workloads/planted.py", "from apportion.core import units", "workloads and core do not know each other"),
        ("serve/planted.py", "from apportion.workloads import game", "serve and workloads do not know each other"),
        ("attic/planted.py", "from apportion.core import units", "attic has no floor"),
    ],
)
def test_a_planted_import_is_found(root: Path, tmp_path: Path, file: str, line: str, why: str):
    package = shutil.copytree(root / "src" / "apportion", tmp_path / "apportion")
    planted = package / file
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f'"""Planted."""\n{line}\n')
    assert any(told.startswith(f"{file}:") and why in told for told in broken(package))
