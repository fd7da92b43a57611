"""What a plain install brings: no more than the package imports, no less, and nothing heavy until it is asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

EXTRA = {"learning": "learn", "execution/ray.py": "ray"}  # what may import an extra's packages, and which extra
COMPANION = {"pydantic-core": "pydantic"}  # always comes with the other, in the one version that fits


def plain(requirement: str) -> str:
    """Give the name of a required distribution as everyone spells it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def loaded_by(modules: list[str]) -> set[str]:
    """Import modules in a Python of its own; give the top names of all that is then there."""
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.fixture(scope="module")
def declared(root: Path) -> dict[str, set[str]]:
    """What pyproject.toml asks for: 'base' and each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = {"base": project["dependencies"], **project["optional-dependencies"]}
    return {name: {plain(text) for text in texts} for name, texts in asked.items()}


@pytest.fixture(scope="module")
def imported(root: Path) -> dict[str, set[str]]:
    """What the package imports from others, by file: names of distributions."""
    homes = packages_distributions()
    package = root / "src" / "apportion"
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        tops = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                tops.add(node.module.partition(".")[0])
        others = tops - set(sys.stdlib_module_names) - {"apportion"}
        names = {plain(home) for top in others for home in homes.get(top, [top])}
        found[path.relative_to(package).as_posix()] = {COMPANION.get(name, name) for name in names}
    return found


def test_every_import_is_declared(declared: dict[str, set[str]], imported: dict[str, set[str]]):
    for file, names in imported.items():
        extra = next((extra for place, extra in EXTRA.items() if file.startswith(place)), "base")
        missing = names - declared["base"] - declared.get(extra, set())
        assert not missing, f"{file} imports {missing}, which pyproject.toml does not ask for"


def test_every_dependency_is_imported(declared: dict[str, set[str]], imported: dict[str, set[str]]):
    assert declared["base"] - set().union(*imported.values()) == set(), "asked for in pyproject.toml, imported nowhere"


def test_the_base_never_needs_an_extra(root: Path, declared: dict[str, set[str]]):
    """Every module but those of the extras, in a Python of its own: this one has the test tools in it."""
    extras = set().union(*declared.values()) - declared["base"]
    names = {top for top, homes in packages_distributions().items() if {plain(home) for home in homes} & extras}
    package = root / "src" / "apportion"
    places = [path.relative_to(package).as_posix() for path in package.rglob("*.py")]
    modules = [
        "apportion." + re.sub(r"(/__init__)?\.py$", "", place).replace("/", ".")
        for place in sorted(places)
        if not place.startswith(tuple(EXTRA)) and place not in ("__init__.py", "__main__.py")
    ]
    assert len(modules) > 10
    assert not loaded_by(modules) & (names | {"torch", "ray"})


def test_the_door_opens_without_heavy_rooms(root: Path):
    """What `apportion --help` needs: the names, the nouns and the command line."""
    core = [f"apportion.core.{path.stem}" for path in (root / "src" / "apportion" / "core").glob("[a-z]*.py")]
    assert not loaded_by(["apportion", *core, "apportion.serve.cli"]) & {"torch", "ray", "numba"}


def test_importing_apportion_imports_nothing_else():
    loaded = loaded_by(["apportion"])
    assert "apportion" in loaded
    assert loaded <= set(sys.stdlib_module_names) | {"apportion", "__main__"} | loaded_by([])


def test_a_wrong_shape_is_refused_under_test():
    """The hook of conftest.py is at work: in production this would pass unseen."""
    from apportion.core.market import Pools

    with pytest.raises(Exception, match="capacity"):
        Pools(("this machine",), ("cpu", "memory"), np.zeros(2))
