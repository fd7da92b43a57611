"""Canonical JSON (RFC 8785), read strictly and written in one way, and tables of salted rows.

Entries and rows are objects of strings, integers up to 2^53-1, true, false, null, lists and objects: no
floats, so that no reader can round them. A table is one line per row; the salt in each row keeps the others
secret when one is shown; the root over the rows (RFC 6962) is what an entry commits to.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import rfc8785

from apportion.core.errors import BadInput, Refused
from apportion.ledger import tree

FORMAT = "apportion/1"
LIMIT = 2048  # bytes in an entry
LASTING = frozenset({"roster", "pools", "resources", "accounts"})  # tables that seldom change are stored once
_OURS = frozenset({"format", "type", "tables"})  # fields that a record does not choose
Json = Any  # what JSON can say; a recursive type would be checked to the bottom on every call

_rows = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def dumps(value: Json) -> bytes:
    """Write canonical JSON; refuse floats and anything else an entry may not hold."""
    try:
        ascii_names = _plain(value)
        return _json(value) if ascii_names else rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise BadInput(f"this cannot be written into the log: {error}. Amounts are decimal strings.") from None


def _plain(value: Json) -> bool:
    """Refuse what an entry may not hold; tell whether all names are ASCII, where C's sorting is RFC 8785's."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is dict:
        if not all(type(name) is str for name in value):
            raise BadInput("a name in an entry is not text.")
        ascii_names = all(name.isascii() for name in value)
        for inner in value.values():
            ascii_names &= _plain(inner)
        return ascii_names
    if kind is list:
        ascii_names = True
        for inner in value:
            ascii_names &= _plain(inner)
        return ascii_names
    if kind is int and abs(value) < 2**53:
        return True
    raise BadInput(
        f"{value!r} is a {kind.__name__} that no entry may hold (no float, no integer beyond 2^53-1). Amounts are decimal strings."
    )


def canonicalize(text: str) -> bytes:
    """Give any JSON text in RFC 8785 form, floats included; raise Refused where it has none."""

    def whole(number: str) -> int:
        if abs(int(number)) > 2**53 - 1:
            raise Refused(f"JSON: {number} is beyond 2^53-1, where readers round.")
        return int(number)

    def refuse(number: str) -> Json:
        raise Refused(f"JSON: {number} is no JSON number.")

    try:
        once = lambda pairs: _once(pairs, Refused)  # noqa: E731
        return rfc8785.dumps(json.loads(text, parse_int=whole, parse_constant=refuse, object_pairs_hook=once))
    except (rfc8785.CanonicalizationError, json.JSONDecodeError, UnicodeError, RecursionError) as error:
        raise Refused(f"JSON: {error}.") from None


def loads(data: bytes | str, error: type[Exception] = Refused) -> Json:
    """Read JSON that has no floats, no integers beyond 2^53-1 and no name twice in one object."""
    return _loads(data, error, lambda pairs: _once(pairs, error))


def _loads(data: bytes | str, error: type[Exception], pairs: Callable | None) -> Json:
    def refuse(text: str) -> Json:
        raise error(f"JSON: {text[:40]!r} is a float or no number. Amounts are decimal strings.")

    def whole(text: str) -> int:
        if len(text) > 17 or abs(value := int(text)) > 2**53 - 1 or text == "-0":
            raise error(f"JSON: {text[:40]!r} is no integer up to 2^53-1. Amounts are decimal strings.")
        return value

    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, parse_float=refuse, parse_constant=refuse, parse_int=whole, object_pairs_hook=pairs)
    except (UnicodeError, json.JSONDecodeError, RecursionError) as wrong:
        raise error(f"JSON: {wrong}.") from None


def _once(pairs: list[tuple[str, Json]], error: type[Exception]) -> dict[str, Json]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise error(f"JSON: the name {next(n for n in names if names.count(n) > 1)!r} stands twice in one object.")
    return out


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be written: an entry and the tables that go with it."""

    type: str
    body: Mapping[str, Json]
    tables: Mapping[str, Sequence[Mapping[str, Json]]]

    def seal(self, secret: bytes) -> tuple[bytes, dict[str, bytes]]:
        """Give the entry's bytes, and its tables by their SHA-256; refuse what no reader would take back."""
        if not isinstance(self.type, str) or not _OURS.isdisjoint(self.body):
            raise BadInput(
                f"an entry has a type that is text, and no field of its own named {', '.join(sorted(_OURS))}."
            )
        entry: dict[str, Json] = {"format": FORMAT, "type": self.type, **self.body}
        blobs: dict[str, bytes] = {}
        if self.tables:
            entry["tables"] = {}
        for name, rows in self.tables.items():
            scope = f"{name}\n" if name in LASTING else f"{name}\n{self.type}\n{self.body.get('round', '')}\n"
            reference, blob = seal_table(rows, secret, scope)
            entry["tables"][name] = reference
            blobs[reference["sha256"]] = blob
        data = dumps(entry)
        if len(data) >= LIMIT:
            raise BadInput(f"a {self.type} entry has {len(data)} bytes and must stay under {LIMIT}: use shorter texts.")
        return data, blobs


def seal_table(rows: Sequence[Mapping[str, Json]], secret: bytes, scope: str) -> tuple[dict[str, Json], bytes]:
    """Salt rows and write them down; give what an entry says of them, and the bytes.

    A salt is an HMAC of the whole table and the row's place, so equal runs give equal bytes, and whoever does not
    hold the secret can neither guess a row from its hash nor tell a salt from chance; other content, other salts.
    """
    content = _json(rows)
    if not all(type(row) is dict for row in _loads(content, BadInput, None)):  # what no reader takes back is not signed
        raise BadInput(f"a row of a table is an object, in {scope.split()[0]!r} as elsewhere.")
    place = scope.encode() + sha256(content).digest()
    lines = []
    for i, row in enumerate(rows):
        salt = hmac.digest(secret, place + i.to_bytes(8, "big"), "sha256")[:16].hex()
        lines.append(_json({**row, "salt": salt}))
    blob = b"".join([line + b"\n" for line in lines])
    root = tree.root([tree.leaf(line) for line in lines])
    return {"sha256": sha256(blob).hexdigest(), "root": root.hex(), "rows": len(lines)}, blob


def _json(row: Json) -> bytes:
    # The names in a row are ASCII, where sorting by code point is RFC 8785's sorting; a test pins this to rfc8785.
    try:
        return _rows(row).encode()
    except (UnicodeError, TypeError, ValueError) as error:
        raise BadInput(f"this row cannot be written into the log: {error}.") from None


def open_table(reference: Json, blob: bytes, *, hashed: bool = False) -> list[dict[str, Json]]:
    """Read a table against what an entry says of it; raise Refused where they differ in anything.

    hashed: the caller has held these bytes against the entry already.
    """
    lines = blob.split(b"\n")[:-1] if hashed else table_lines(reference, blob)
    text = b"[" + b",".join(lines) + b"]"
    rows = _loads(text, Refused, None)  # a name that stands twice would not be written again
    try:
        same = len(rows) == len(lines) and all(type(row) is dict for row in rows) and _rows(rows).encode() == text
    except UnicodeError:
        same = False
    if not same:
        raise Refused(f"table {reference['sha256']}: its rows are not canonical JSON.")
    return rows


def table_lines(reference: Json, blob: bytes) -> list[bytes]:
    """Give a table's rows as bytes, checked against the digest, root and count of its entry."""
    if not isinstance(reference, dict) or reference.keys() != {"sha256", "root", "rows"}:
        raise Refused("an entry names a table without its sha256, root and rows.")
    if sha256(blob).hexdigest() != reference["sha256"]:
        raise Refused(f"table {reference['sha256']}: its bytes have another SHA-256.")
    lines = blob.split(b"\n")
    if lines.pop() != b"" or len(lines) != reference["rows"]:
        raise Refused(f"table {reference['sha256']}: it has {len(lines)} rows, not {reference['rows']}.")
    if tree.root([tree.leaf(line) for line in lines]).hex() != reference["root"]:
        raise Refused(f"table {reference['sha256']}: its rows have another root.")
    return lines


def read_entry(data: bytes) -> dict[str, Json]:
    """Read one entry's bytes; raise Refused where they are not what this log may hold."""
    if len(data) >= LIMIT:
        raise Refused(f"an entry has {len(data)} bytes; it must stay under {LIMIT}.")
    out = loads(data)
    if not isinstance(out, dict) or out.get("format") != FORMAT or not isinstance(out.get("type"), str):
        raise Refused(f"an entry must be an object with format {FORMAT!r} and a type.")
    try:
        same = dumps(out) == data
    except BadInput:
        same = False
    if not same:
        raise Refused(f"a {out['type']} entry is not in canonical JSON.")
    return out
