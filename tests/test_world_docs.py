"""docs/world-file.md names every key, with defaults that are the models' and examples that load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from apportion.core.units import RESOURCES
from apportion.worlds.accounts import Account, Budget, Reservation
from apportion.worlds.amounts import exact
from apportion.worlds.file import Event, Metrics, Pool, Task, WorldFile
from apportion.worlds.lines import plain
from apportion.worlds.world import load

PAGE = (Path(__file__).parent.parent / "docs" / "world-file.md").read_text()
GAME = {"kind": "game", "account": "studio", "demand": {"cpu": 1}}
WORLD = {
    "version": 1,
    "pools": {"here": {"capacity": {"cpu": 1}}},
    "accounts": {"studio": {"entitlement": 1}},
    "tasks": {"arena": GAME},
}
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "The whole": (WorldFile, WORLD),
    "A pool": (Pool, {"capacity": {"cpu": 1}}),
    "An account": (Account, {"entitlement": 1}),
    "A budget": (Budget, {"per": 10, "credits": 1}),
    "A task": (Task, GAME),
    "A metrics page": (Metrics, {"url": "http://a/", "asked": "a", "in_time": "b"}),
    "A reservation": (
        Reservation,
        {"account": "studio", "task": "arena", "floor": {"cpu": 1}, "at": 1, "for": 1, "pays": 1},
    ),
    "An event": (Event, {"name": "a", "at": 1, "for": 1, "task": "arena", "load": 2}),
}
PROCESS = {"kind": "process", "account": "studio", "demand": {"cpu": 1}, "command": ["a"]}


def rows(title: str) -> list[list[str]]:
    """The rows of the table below a heading: their cells."""
    section = re.split(r"^## ", PAGE.split(f"## {title}\n")[1], flags=re.M)[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")
    ]


CELLS = [(title, *row) for title in SECTIONS for row in rows(title)]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_is_on_the_page_and_no_other(title: str):
    model, _ = SECTIONS[title]
    keys = [field.alias or name for name, field in model.model_fields.items()]
    assert sorted(row[0].strip("`") for row in rows(title)) == sorted(keys)


@pytest.mark.parametrize(("title", "key", "meaning", "values", "default", "example"), CELLS)
def test_defaults_are_the_models_and_examples_are_accepted(title, key, meaning, values, default, example):
    model, base = SECTIONS[title]
    key = key.strip("`")
    name = next(name for name, field in model.model_fields.items() if key in (name, field.alias))
    field = model.model_fields[name]
    base = PROCESS if model is Task and key in ("command", "probe") else base
    base = {"parent": "studio", "share": 1} if model is Account and key in ("parent", "share") else base
    assert field.is_required() == (default == "required")
    if default.startswith("`") and key != "probe" and re.fullmatch("`[^`]*`", default):
        assert getattr(model.model_validate({**base, key: plain(default.strip("`"))}), name) == field.default
    [(written, value)] = yaml.safe_load(example.strip("`")).items()
    assert written == key
    given = model.model_validate({**base, key: value})
    assert field.is_required() or getattr(given, name) != field.default
    assert "|" not in meaning + values


def test_the_smallest_world_of_the_page_loads(tmp_path: Path):
    (tmp_path / "world.yaml").write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    assert load(tmp_path / "world.yaml").name == "world"


def test_every_unit_is_on_the_page_and_every_amount_on_it_can_be_read():
    spelt = {row[0].strip("`"): row[1:] for row in rows("Quantities")}
    assert set(spelt) == set(RESOURCES)
    for name, (written, bare) in spelt.items():
        amounts = re.findall("`([^`]*)`", written)
        assert all(exact(name, amount) > 0 for amount in amounts)
        assert {amount.split()[1] for amount in amounts} == {unit for unit, _ in RESOURCES[name].spellings} | {bare}
        assert exact(name, 1) == exact(name, f"1 {bare}")
