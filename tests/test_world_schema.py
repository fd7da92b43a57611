"""The schema of world files says what the loader does, and the examples obey both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from small_world import EXAMPLES, MACHINE, SMALL

from apportion.execution.programs import KINDS
from apportion.worlds.world import World, load


def conforms(value, schema: dict, root: dict) -> bool:
    """As much of JSON Schema (2020-12) as world files need."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not conforms(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root):
        return False
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    types = {
        "object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str), "number": number,
        "integer": number and value == int(value), "boolean": isinstance(value, bool), "null": value is None,
    }  # fmt: skip
    checks = [
        "type" not in schema or types[schema["type"]],
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(conforms(value, s, root) for s in schema["anyOf"]),
        not number or value >= schema.get("minimum", value),
        not number or value <= schema.get("maximum", value),
        not number or value > schema.get("exclusiveMinimum", value - 1),
        not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None,
    ]
    if isinstance(value, list) and "items" in schema:
        checks += [conforms(v, schema["items"], root) for v in value]
    if isinstance(value, dict):
        checks += [all(key in value for key in schema.get("required", []))]
        for key, inner in value.items():
            known = [schema.get("properties", {})[key]] if key in schema.get("properties", {}) else []
            known += [s for p, s in schema.get("patternProperties", {}).items() if re.search(p, key)]
            checks += [conforms(inner, s, root) for s in known or [schema.get("additionalProperties", True)]]
        if "if" in schema:
            checks.append(conforms(value, schema["then" if conforms(value, schema["if"], root) else "else"], root))
    return all(checks)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_load_fit_and_obey_the_schema(path):
    world = load(path)
    world.check(MACHINE)
    tasks = world.tasks(0)
    assert (tasks.demand == tasks.base).all()
    schema = World.schema()
    assert conforms(yaml.safe_load(path.read_text()), schema, schema)


SLIPS = [
    ("kind: game", "kind: gane"),
    ("account: studio", "acount: studio"),
    ("cpu: 0.15\n", "cpu: 1 apple\n"),
    ("cpu: 0.15\n", "cpu: -1\n"),
    ("memory: machine", "memory: machin"),
    ("at: 15 s", "at: soon"),
    ("load: x6", "load: six"),
    ("entitlement: 0.4", "entitlement: lots"),
    ("kind: game", "kind: process"),
    ("size: 200", "size: 0"),
    ("alpha: 0.5", "alpha: 2"),
    ("  arena:\n", "  a/b:\n"),
]


@pytest.mark.parametrize(("old", "new"), SLIPS)
def test_the_schema_sees_what_an_editor_should_underline(old, new):
    schema = World.schema()
    assert conforms(yaml.safe_load(SMALL), schema, schema)
    assert not conforms(yaml.safe_load(SMALL.replace(old, new, 1)), schema, schema)


def test_the_schema_beside_the_examples_is_the_current_one():
    """After a change of the models: apportion schema > examples/world.schema.json."""
    assert json.loads((EXAMPLES[0].parent / "world.schema.json").read_text()) == World.schema()


def test_every_key_is_described():
    schema = World.schema()
    models = [schema, *schema["$defs"].values()]
    silent = [
        f"{m['title']}.{key}"
        for m in models
        for key, value in m.get("properties", {}).items()
        if not value.get("description")
    ]
    assert silent == []


def test_kinds_are_those_that_execution_can_start():
    assert World.schema()["$defs"]["Task"]["properties"]["kind"]["enum"] == list(KINDS)


def test_the_demo_ships_with_the_package():
    """`apportion demo` finds its world wherever apportion is installed: the same file as the example."""
    import apportion.worlds

    packaged = Path(apportion.worlds.__file__).parent / "launch-day.yaml"
    assert packaged.read_bytes() == (EXAMPLES[0].parent / "launch-day.yaml").read_bytes()


def test_launch_day_is_slack_before_the_opening_and_scarce_during_it():
    world = load(EXAMPLES[0].parent / "launch-day.yaml")
    capacity = world.pools(MACHINE).capacity[0, 0]
    opening = world.events[0]
    wanted = [world.tasks(n).demand[:, 0].sum() / capacity for n in range(world.rounds)]
    assert max(wanted[: int(opening.at)]) < 0.95
    assert min(wanted[int(opening.at) : int(opening.at + opening.lasts)]) > 1.2
    assert wanted[-1] < 0.95
