"""How numbers are spelled in the log, each in one way: decimal strings there, arrays here.

A whole number is its decimal; a real is the shortest decimal that gives the same IEEE 754 double again, without an
exponent. Reading refuses every other spelling, so that equal numbers are equal bytes.
"""

from __future__ import annotations

from decimal import Decimal
from math import isfinite

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput, Refused
from apportion.ledger.canonical import Json

_NO_WHOLE = "is no whole number as a decimal string."
_SPECIAL = {"inf": np.inf, "-inf": -np.inf, "nan": np.nan}


def real(x: float) -> str:
    """Write a double as the shortest decimal that reads back as the same double."""
    text = repr(float(x))
    return f"{Decimal(text):f}" if "e" in text else text.removesuffix(".0")  # inf, -inf and nan stay as they are


def whole(name: str, amount: np.ndarray, scale: int = 1) -> np.ndarray:
    """Count an array in whole parts of 1/scale; refuse what is between two."""
    amount = np.asarray(amount, float)
    parts = np.rint(amount * scale)
    if (wrong := ~(np.abs(amount * scale - parts) <= 1e-6 + 4e-16 * np.abs(parts)) | (np.abs(parts) > 2**53)).any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise BadInput(f"{name}{list(at)} is {amount[at]}: the log holds whole numbers of 1/{scale}. Round it first.")
    return parts.astype(np.int64)


def texts(numbers: np.ndarray) -> list:
    return [texts(n) for n in numbers] if numbers.ndim > 1 else [str(n) for n in numbers.tolist()]


def reals(numbers: np.ndarray) -> list[str]:
    return [real(x) for x in np.asarray(numbers, float).tolist()]


def count(x: np.integer | int) -> int | None:
    """Write a counter; below 0 it was not measured."""
    if x > 2**53 - 1:
        raise BadInput(f"a counter of {x} is more than the log can hold: 2^53 - 1.")
    return None if x < 0 else int(x)


def to_text(x: Json) -> str:
    if not isinstance(x, str):
        raise Refused(f"{x!r} should be text.")
    return x


def to_int(x: Json) -> int:
    """A whole number as a decimal string, in its one spelling."""
    if not isinstance(x, str) or len(x) > 19 or str(value := int(x)) != x or abs(value) >= 2**63:
        raise Refused(f"{x!r} {_NO_WHOLE}")
    return value


def to_ints(texts: list[Json]) -> Int[np.ndarray, " number"]:
    values = [int(t) for t in texts]
    if [str(v) for v in values] != texts:
        raise Refused(f"{next(t for t, v in zip(texts, values, strict=True) if str(v) != t)!r} {_NO_WHOLE}")
    return np.array(values, np.int64)  # raises where one is beyond 63 bits


def to_counter(x: Json) -> int:
    if type(x) is not int:
        raise Refused(f"{x!r} is no counter.")
    return x


def to_index(x: Json) -> int:
    if type(x) is not int or x < 0:
        raise Refused(f"{x!r} is no counter of 0 or more.")
    return x


def to_maybe(x: Json) -> int:
    return -1 if x is None else to_index(x)


def to_real(x: Json) -> float:
    if not isinstance(x, str) or real(value := float(x)) != x or not isfinite(value):
        raise Refused(f"{x!r} is no decimal in its shortest form.")
    return value


def to_special(x: Json) -> float:
    return _SPECIAL[x] if isinstance(x, str) and x in _SPECIAL else to_real(x)


def to_vector(texts: list[Json]) -> Float[np.ndarray, " number"]:
    values = [float(t) for t in texts]
    plain = [repr(v).removesuffix(".0") for v in values] == texts
    if not plain or any(c in "".join(texts) for c in "en"):  # an exponent, inf or nan
        values = [to_real(t) for t in texts]
    return np.array(values, float)


def to_matrix(rows: list[list[Json]], width: int) -> Float[np.ndarray, "row column"]:
    if any(len(row) != width for row in rows):
        raise Refused(f"a row has not {width} numbers, one per resource.")
    flat = to_ints([x for row in rows for x in row])
    if (np.abs(flat) > 2**53).any():
        raise Refused("an amount is beyond 2^53.")
    return flat.astype(float).reshape(len(rows), width)


def to_balances(rows: list[dict[str, Json]], accounts: int) -> Int[np.ndarray, " account"]:
    if [row["account"] for row in rows] != list(range(accounts)):
        raise Refused("tables.balances: not one row for each account of genesis, in order.")
    return to_ints([row["balance"] for row in rows])
