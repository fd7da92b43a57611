"""Quantities as people write them in a world file, and the numbers they stand for.

    amount     0.15 | '0.15 cores' | '96 MiB'        whole base units, rounded up (what is there: down)
    capacity   an amount | machine | 75% of machine
    hours      12 | '12 core-hours' | '2 GiB-hours'      base units x seconds
    share      0.4 | '40%'
    seconds    20 | '20 s' | '2 min' | '1 h' | '30 d' | '500 ms'
    factor     6 | 'x6'

Each type validates for Pydantic and describes itself to JSON Schema, so that an editor knows what the loader does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from apportion.core.errors import BadInput
from apportion.core.units import RESOURCES, resource

_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_FOREVER = 1e9  # seconds
_DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


def wrong(why: str) -> PydanticCustomError:
    """Say what is wrong with a value, and the way out; whoever reports it puts the place and the value in front."""
    return PydanticCustomError("world", "{why}", {"why": why})


def wrong_entries(problems: dict[str, str], mapping: Any) -> ValidationError:
    """Blame entries of a mapping, not the whole of it."""
    lines = [InitErrorDetails(type=wrong(why), loc=(key,), input=mapping[key]) for key, why in problems.items()]
    return ValidationError.from_exception_data("world", lines)


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Give the name that was probably meant, among the first thousand."""
    return next(iter(get_close_matches(given[:100], islice(known, 1000), 1, 0.6)), None)


def instead(given: str, known: Iterable[str]) -> str:
    """Offer the nearest name there is, or all of them."""
    known = list(known)
    if near := nearest(given, known):
        return f"Did you mean '{near}'?"
    return f"Known: {', '.join(known[:24])}{', ...' if len(known) > 24 else ''}."


@dataclass(frozen=True, slots=True)
class OfMachine:
    """A part of whatever this machine has."""

    part: Decimal  # of the whole

    def __str__(self) -> str:
        return "machine" if self.part == 1 else f"{self.part * 100:f}% of machine"


def exact(name: str, written: Any) -> Decimal:
    """Give an amount of a resource in base units, not yet whole."""
    kind = resource(name)
    example = f"Write for example '{_EXAMPLE.get(name, f'1.5 {kind.unit}')}'."
    if written is None or isinstance(written, (dict, list, bool)):
        raise wrong(f"it is not an amount of {name}. {example}")
    try:
        return kind.parse(written)
    except BadInput as e:
        why = str(e).removeprefix(f"{name}: {written!r} ")
        raise wrong(
            f"it {why}" if "Write for example" in why else f"it {why} {example}"
        ) from None  # one example is enough


_EXAMPLE = {
    "cpu": "0.15 cores",
    "gpu": "0.5 devices",
    "memory": "96 MiB",
    "bandwidth": "4 Mbit/s",
    "storage": "0.2 MB/s",
}


def _amounts(written: Any, rounding: str = ROUND_CEILING) -> dict[str, int]:
    out, problems = {}, {}
    for name, amount in _named(written).items():
        try:
            out[name] = int(exact(name, amount).to_integral_value(rounding))
        except PydanticCustomError as e:
            problems[name] = e.message()
    if problems:
        raise wrong_entries(problems, written)
    return out


def _capacities(written: Any) -> dict[str, int | OfMachine]:
    out: dict[str, int | OfMachine] = {}
    problems = {}
    if written == {}:
        raise wrong("the pool has nothing to share. Write for example '{cpu: 75% of machine}'.")
    for name, amount in _named(written).items():
        try:
            out[name] = _capacity(name, amount)
        except PydanticCustomError as e:
            problems[name] = e.message()
    if problems:
        raise wrong_entries(problems, written)
    return out


def _capacity(name: str, written: Any) -> int | OfMachine:
    if isinstance(written, str) and (m := re.fullmatch(rf"\s*(?:({_DIGITS})\s*%(?:\s*of)?\s*)?machine\s*", written)):
        part = Decimal(m[1]) / 100 if m[1] else Decimal(1)
        if not 0 < part <= 1:
            raise wrong("a pool has more than 0% and at most 100% of the machine. Write for example '75% of machine'.")
        return OfMachine(part)
    try:
        amount = exact(name, written)
    except PydanticCustomError as e:
        raise wrong(f"{e.message()} Or write 'machine' or '75% of machine'.") from None
    if amount < 1:
        base = resource(name).base
        raise wrong(f"a pool with less than one {base} of {name} has nothing to share. Leave {name} out, or give more.")
    return int(amount.to_integral_value(ROUND_FLOOR))


def _hours(written: Any) -> dict[str, int]:
    out, problems = {}, {}
    for name, amount in _named(written).items():
        text = re.fullmatch(r"(.*)-hours?", amount.strip()) if isinstance(amount, str) else None
        example = f"Write for example '12 {resource(name).one}-hours'."
        if isinstance(amount, str) and not text and not re.fullmatch(rf"\s*{_DIGITS}\s*", amount):
            problems[name] = f"it is not an amount of {name} over time. {example}"
            continue
        try:
            out[name] = int(exact(name, text[1] if text else amount) * 3600)
        except PydanticCustomError as e:
            problems[name] = e.message().replace(f"'{_EXAMPLE.get(name, '')}'", f"'12 {resource(name).one}-hours'")
    if problems:
        raise wrong_entries(problems, written)
    return out


def _floor(written: Any) -> float | dict[str, int]:
    if isinstance(written, dict):
        return _amounts(written)
    try:
        return _share(written)
    except PydanticCustomError as e:
        raise wrong(f"{e.message()} Or name amounts: '{{cpu: 0.1 cores}}'.") from None


def _named(written: Any) -> dict[str, Any]:
    if not isinstance(written, dict):
        raise wrong("amounts are named by resource. Write for example '{cpu: 0.15 cores, memory: 96 MiB}'.")
    bad = {
        name: "a resource is named by letters, digits, '_' and '-'. Write for example 'cpu'."
        for name in written
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,62}", name)
    }
    if bad:
        raise wrong_entries(bad, written)
    return written


def _share(written: Any) -> float:
    number = _number(written, r"\s*({})\s*(%)?\s*", {None: 1.0, "%": 0.01})
    if number is None or not 0 <= number <= 1:
        raise wrong("it is not a share from 0 to 1. Write for example '0.4' or '40%'.")
    return number


def _seconds(written: Any) -> float:
    number = _number(written, r"\s*({})\s*(ms|s|min|h|d)?\s*", _SECONDS | {None: 1.0})
    if number is not None and number > _FOREVER:
        raise wrong(f"it is more than {_FOREVER:g} s, some thirty years. Write for example '20 s', '2 min' or '24 h'.")
    if number is None:
        raise wrong("it is not a time. Write for example '20 s', '2 min' or plain seconds.")
    return number


def _factor(written: Any) -> float:
    if isinstance(written, str):
        written = re.sub(r"^\s*[x×]\s*(?=[0-9.])", "", written)
    number = _number(written, r"\s*({})\s*()", {"": 1.0, None: 1.0})
    if number is None or number == 0:
        raise wrong("it is not a factor above 0. Write for example 'x6'.")
    if not 1e-6 <= number <= 1e6:
        raise wrong("a factor lies between x0.000001 and x1000000. Write for example 'x6'.")
    return number


def _number(written: Any, pattern: str, units: dict[str | None, float]) -> float | None:
    """Give what was written, or None: a finite number of at least 0 with one of these units."""
    if isinstance(written, str) and (m := re.fullmatch(pattern.format(_DIGITS), written)):
        factor = Decimal(str(units[m[2]]))
        number = float(Decimal(m[1]) * factor)  # 40% is .4, not .4000000000000001
    elif isinstance(written, (int, float)) and not isinstance(written, bool):
        number = float(written)
    else:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _amount_schema(name: str, extra: str = "") -> dict[str, Any]:
    kind = resource(name)
    units = "|".join(re.escape(u) for u in dict.fromkeys([kind.unit, *(u for u, _ in kind.spellings)]))
    return {
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": f"^ *[0-9.]+(e[+-]?[0-9]+)? *({units})? *$"},
        ],
        "description": f"{name}: a number with its unit ({', '.join([kind.unit, *(u for u, _ in kind.spellings if u != kind.unit)])}); a bare number means {kind.unit}{extra}.",
        "examples": [_EXAMPLE.get(name, f"1.5 {kind.unit}")],
    }


_ANY_AMOUNT = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": "^ *[0-9.]"}]}
_AMOUNTS_SCHEMA = {
    "type": "object",
    "properties": {name: _amount_schema(name) for name in RESOURCES},
    "additionalProperties": _ANY_AMOUNT,
}


def _capacity_schema(name: str) -> dict[str, Any]:
    amount = _amount_schema(name, ", 'machine' means all that this machine has")
    machine = {"type": "string", "pattern": "^ *([0-9.]+ *%( *of)? *)?machine *$"}
    return amount | {
        "anyOf": [*amount["anyOf"], machine],
        "examples": [*amount["examples"], "machine", "75% of machine"],
    }


_CAPACITIES_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "properties": {name: _capacity_schema(name) for name in RESOURCES},
    "additionalProperties": {"anyOf": [*_ANY_AMOUNT["anyOf"], {"type": "string", "pattern": "machine *$"}]},
}
_HOURS_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": "^ *[0-9.]+ *([A-Za-z/_]+-hours?)? *$"},
        ],
        "examples": ["12 core-hours", "2 GiB-hours"],
    },
}
_SHARE_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "^ *[0-9.]+ *%? *$"}],
    "examples": [0.4, "40%"],
}
_SECONDS_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": "^ *[0-9.]+ *(ms|s|min|h|d)? *$"}],
    "examples": ["20 s", "2 min"],
}
_FACTOR_SCHEMA = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": "^ *[x×]? *[0-9.]+ *$"}],
    "examples": ["x6"],
}

Amounts = Annotated[dict[str, int], BeforeValidator(_amounts), WithJsonSchema(_AMOUNTS_SCHEMA)]
Limits = Annotated[dict[str, int], BeforeValidator(lambda x: _amounts(x, ROUND_FLOOR)), WithJsonSchema(_AMOUNTS_SCHEMA)]
Capacities = Annotated[dict[str, int | OfMachine], BeforeValidator(_capacities), WithJsonSchema(_CAPACITIES_SCHEMA)]
Hours = Annotated[dict[str, int], BeforeValidator(_hours), WithJsonSchema(_HOURS_SCHEMA)]
Share = Annotated[float, BeforeValidator(_share), WithJsonSchema(_SHARE_SCHEMA)]
Floor = Annotated[
    float | dict[str, int],
    BeforeValidator(_floor),
    WithJsonSchema({"anyOf": [*_SHARE_SCHEMA["anyOf"], _AMOUNTS_SCHEMA], "examples": [{"cpu": "0.1 cores"}, "40%"]}),
]
Seconds = Annotated[float, BeforeValidator(_seconds), WithJsonSchema(_SECONDS_SCHEMA)]
Factor = Annotated[float, BeforeValidator(_factor), WithJsonSchema(_FACTOR_SCHEMA)]
