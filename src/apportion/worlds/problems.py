"""What is wrong with a world file, in the words of the file: line, key, value, way out.

Pydantic says which key fails and why; here that becomes a line of text. Only a file whose keys all make sense is asked
whether it makes sense as a whole: see `cross.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from apportion.core.errors import BadWorld
from apportion.worlds.accounts import Account, Budget, Reservation
from apportion.worlds.amounts import instead, nearest
from apportion.worlds.cross import cross
from apportion.worlds.file import Event, Metrics, Pool, Task, WorldFile
from apportion.worlds.limits import limits
from apportion.worlds.lines import Place, Problem, Source, dotted, one_line, plain

AT_ONCE = 5  # problems told in one go
MOST = 100  # problems looked into

_MODELS: dict[tuple[str, ...], tuple[str, type[BaseModel]]] = {
    (): ("a world", WorldFile),
    ("pools", "*"): ("a pool", Pool),
    ("accounts", "*"): ("an account", Account),
    ("accounts", "*", "budget"): ("a budget", Budget),
    ("tasks", "*"): ("a task", Task),
    ("tasks", "*", "probe"): ("a probe", Metrics),
    ("events", "*"): ("an event", Event),
    ("reservations", "*"): ("a reservation", Reservation),
}
_NAME = "a name is made of letters, digits, '_' and '-', begins with a letter or digit, and has at most 63 of them."


def checked(source: Source) -> WorldFile:
    """Give the file's contents, or raise one BadWorld that tells up to five problems."""
    if not isinstance(source.value, dict):
        raise BadWorld(
            f"{source.at(())}: a world is a mapping of keys. Begin with 'version: 1'; `apportion schema` tells the rest."
        )
    try:
        file = WorldFile.model_validate(source.value)
    except ValidationError as e:
        raise _told(source, _problems(source, e.errors(include_url=False))) from None
    if problems := list(islice(cross(file), MOST)) or list(limits(file)):
        raise _told(source, problems)
    return file


def _told(source: Source, problems: Iterable[Problem]) -> BadWorld:
    texts = dict.fromkeys(_line(source, place, why) for place, why in problems)
    lines = sorted(texts, key=lambda text: int(text.removeprefix(f"{source.path}:").split(":", 1)[0]))
    left = len(lines) - AT_ONCE
    more = [f"... and {left if len(lines) < MOST else 'many'} more."] if left > 0 else []
    return BadWorld("\n".join(lines[:AT_ONCE] + more))


def _line(source: Source, place: Place, why: str) -> str:
    shown = source.shown(place) if len(place) > 2 or place in source.spelt else ""  # no whole task, no list of accounts
    told = f"{dotted(place) or 'the world'}{f' is {shown}' if shown else ''}: {why}"
    return f"{source.at(place)}: {one_line(told)}"


def _problems(source: Source, errors: Iterable[Any]) -> Iterator[Problem]:
    """Say all of Pydantic's errors, but not that a key is missing where it is there, misspelt."""
    errors = sorted(errors, key=lambda error: source.number(_place(source, error["loc"])))[:MOST]
    unknown = [_place(source, error["loc"]) for error in errors if error["type"] == "extra_forbidden"]
    models = [(place, model[1]) for place in unknown if (model := _model(place[:-1]))]
    meant = {(*place[:-1], nearest(str(place[-1]), _keys(model))) for place, model in models}
    for error in errors:
        if error["type"] != "missing" or _place(source, error["loc"]) not in meant:
            yield _problem(source, error)


def _problem(source: Source, error: Any) -> Problem:
    """Say one of Pydantic's errors in our words."""
    place = _place(source, error["loc"])
    key, kind, ctx = str(place[-1]) if place else "", error["type"], error.get("ctx", {})
    if error["loc"] and error["loc"][-1] == "[key]":
        return place, f"{_NAME} Rename it."
    if kind == "world":
        return place, ctx["why"]
    if kind == "extra_forbidden":
        return place, _unknown_key(place)
    if kind == "missing":
        what, _ = _model(place[:-1]) or ("it", None)
        return place, f"{what} must say its '{key}'. Write for example '{_EXAMPLES[key]}'."
    if kind == "literal_error":
        return place, _choice(str(error["input"]), ctx["expected"])
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        what = model[0] if (model := _model(place)) else "it"
        return place, f"{what} is a mapping of keys. Indent its keys below '{key}:'."
    if kind in ("tuple_type", "list_type"):
        return place, f"it is a list. Write '[{error['input']}]', or each entry on a line of its own after '- '."
    if kind in ("string_type", "string_sub_type"):
        return place, f'it is text. Put it in quotes, for example "{_quoted(error["input"])}".'
    if kind == "string_pattern_mismatch":
        return place, _URL if key == "url" else _PRINTED if place[
            0
        ] == "events" and key == "name" else f"{_NAME} Rename it."
    if kind == "too_short":
        return place, f"there is nothing in it. A world has at least one entry under '{key}'."
    if kind in _LIMITS:
        word, name = _LIMITS[kind]
        return place, f"it must be {word} {ctx[name]:g}."
    if kind in _TYPES:
        bare = isinstance(error["input"], str) and not isinstance(plain(error["input"]), str)
        return place, f"in quotes it is text. Write {error['input']} without them." if bare else _TYPES[kind]
    return place, f"{error['msg'][:1].lower()}{error['msg'][1:]}. `apportion schema` tells what may stand here."


_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
    "string_too_short": ("of a length of at least", "min_length"),
    "string_too_long": ("of a length of at most", "max_length"),
}
_TYPES = {
    "int_type": "it is not a whole number. Write for example '3'.",
    "float_type": "it is not a number. Write for example '1.5'.",
    "bool_type": "it is neither 'true' nor 'false'. Write one of them.",
}
_URL = "it is not the address of a metrics page. Write for example 'http://127.0.0.1:9100/metrics'."
_PRINTED = "it holds a character that cannot be printed. Write it in plain text."
_EXAMPLES = {
    "version": "version: 1",
    "pools": "pools: {this-machine: {capacity: {cpu: 75% of machine}}}",
    "accounts": "accounts: {studio: {entitlement: 100%}}",
    "tasks": "tasks: {arena: {kind: game, account: studio, demand: {cpu: 0.15 cores}}}",
    "capacity": "capacity: {cpu: machine}",
    "entitlement": "entitlement: 40%",
    "per": "per: 24 h",
    "kind": "kind: game",
    "account": "account: studio",
    "demand": "demand: {cpu: 0.15 cores, memory: 96 MiB}",
    "name": "name: opening",
    "at": "at: 15 s",
    "for": "for: 20 s",
    "task": "task: arena",
    "load": "load: x6",
    "floor": "floor: {cpu: 2 cores}",
    "pays": "pays: 12",
    "url": "url: http://127.0.0.1:9100/metrics",
    "asked": "asked: requests_total",
    "in_time": "in_time: requests_in_time_total",
}


def _place(source: Source, loc: tuple[Any, ...]) -> Place:
    """Keep of Pydantic's location what is a place in the file: it also names the branches of unions."""
    place: Place = ()
    value: Any = source.value
    for step, key in enumerate(loc):
        inside = (isinstance(value, dict) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        )
        if inside:
            place, value = (*place, key), value[key]
        elif step == len(loc) - 1 and isinstance(value, dict) and key != "[key]" and _known(place, key):
            place = (*place, key)
    return place


def _known(place: Place, key: Any) -> bool:
    model = _model(place)
    return model is not None and key in _keys(model[1])


def _model(place: Place) -> tuple[str, type[BaseModel]] | None:
    for pattern, model in _MODELS.items():
        if len(pattern) == len(place) and all(p in ("*", k) for p, k in zip(pattern, place, strict=True)):
            return model
    return None


def _keys(model: type[BaseModel]) -> list[str]:
    return [f.alias or name for name, f in model.model_fields.items()]


def _unknown_key(place: Place) -> str:
    what, model = _model(place[:-1]) or ("it", WorldFile)
    return f"{what} has no key '{place[-1]}'. {instead(str(place[-1]), _keys(model))}"


def _choice(written: str, expected: str) -> str:
    near = nearest(written, re.findall(r"'([^']+)'", expected))
    return f"it is not {expected}." + (
        f" Did you mean '{near}'?" if near else "" if " or " in expected else f" Write {expected}."
    )


def _quoted(written: Any) -> str:
    return "yes" if written is True else "no" if written is False else str(written)[:40]
