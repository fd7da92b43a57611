"""The door of the audit: opens a log, hashes every byte of it, and has the economics done again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apportion.audit.economics import Economics
from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.ledger import tree
from apportion.ledger.canonical import read_entry, table_lines
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Verifier, read_verifier
from apportion.ledger.reading import Reader


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted: what was checked, and what was not. Everything else is an exception."""

    level: int
    head: Head
    rounds: int = 0
    aborted: int = 0
    gap: float = math.nan  # the widest proven, over all rounds
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()  # true, and yet worth a reader's eye

    def __str__(self) -> str:
        lines = [f"accepted at level {self.level}: {self.head.size} entries of {self.head.origin}"]
        lines += [f"  checked      {line}" for line in self.checked]
        lines += [f"  NOT checked  {line}" for line in self.unchecked]
        lines += [f"  note         {line}" for line in self.findings]
        return "\n".join(lines)


def verify(path: str | Path, key: str | Path | Verifier, level: int = 2) -> Verdict:
    """Check a log against its verifier key (or the file that holds it)."""
    if level not in range(4):
        raise BadInput(f"level {level}: levels are 0, 1, 2 and 3.")
    try:
        verifier = key if isinstance(key, Verifier) else read_verifier(key)
        log = Log.open(path)
    except (BadInput, LogUnavailable) as error:
        raise Unverifiable(str(error)) from None
    with log:
        try:
            with log.snapshot():
                return _verify(log, verifier, level)
        except LogUnavailable as error:
            raise Unverifiable(str(error)) from None


def _verify(log: Log, verifier: Verifier, level: int) -> Verdict:
    if log.verifier != verifier:
        raise Refused(f"{log.path} says that its key is {log.verifier.text}; it is to be checked with {verifier.text}.")
    head, checked = _hash_everything(log, verifier)
    unchecked = ["append-only against heads seen elsewhere: none were given"]
    if level < 2:
        unchecked.append(f"the economics: level {level} was asked for")
        return Verdict(level, head, checked=checked, unchecked=tuple(unchecked))
    sums = Economics()
    reader = Reader(log.blob, hashed=True)
    for data in log.entries():
        closed = reader.read(data)
        if closed and reader.genesis:
            sums.check(reader.genesis, closed)
    sums.end(reader)
    if level == 3:
        unchecked.append("the model: no entry of this log names one to replay")
    return Verdict(
        min(level, 2),
        head,
        rounds=sums.rounds,
        aborted=sums.aborted,
        gap=sums.gap,
        checked=(*checked, *sums.checked()),
        unchecked=(*unchecked, *sums.unchecked()),
        findings=sums.findings(),
    )


def _hash_everything(log: Log, verifier: Verifier) -> tuple[Head, tuple[str, ...]]:
    """Hash every entry, table and row, and hold every head against them."""
    heads = _heads(log, verifier)
    frontier, head, count, due = tree.Frontier(), None, 0, next(heads, None)
    named: dict[str, tuple] = {}
    for index, data in enumerate(log.entries()):
        try:
            tables = read_entry(data).get("tables", {})
            for name, reference in tables.items():
                key = tuple(reference[k] for k in ("root", "rows"))
                if named.setdefault(reference["sha256"], key) != key:
                    raise Refused(f"tables.{name}: the same bytes cannot have another root or count.")
                if len(reference) != 3:
                    raise Refused(f"tables.{name}: a table is named by its sha256, root and rows.")
        except (KeyError, TypeError, AttributeError):
            raise Refused(f"entry {index}: tables: a table is named by its sha256, root and rows.") from None
        except Refused as error:
            raise Refused(f"entry {index}: {error}") from None
        frontier.extend([tree.leaf(data)])
        if due and due.size == frontier.size:
            if due.root != frontier.root():
                raise Refused(f"entry {index}: the first {due.size} entries do not hash to the head of that size.")
            head, count, due = due, count + 1, next(heads, None)
    if due:
        raise Refused(f"entry {frontier.size}: missing; a head of {due.size} entries was signed.")
    if head is None and not frontier.size:
        raise Unverifiable(f"{log.path}: no head is signed yet, so there is nothing to check.")
    if head is None or head.size != frontier.size:
        raise Refused(f"entry {head.size if head else 0}: no signed head covers it.")
    stored = log.frontier()
    if (stored.size, stored.peaks) != (frontier.size, frontier.peaks):
        raise Refused(f"{log.path}: the stored tree state is not that of its entries.")
    rows = _tables(log, named)
    return head, (
        f"{head.size} entries, {len(named)} tables with {rows} rows, {count} heads: hashes, signatures, prefixes",
    )


def _heads(log: Log, verifier: Verifier) -> Iterator[Head]:
    last = 0
    for size, note in log.heads():
        try:
            head = open_head(note, verifier)[0]
        except (Refused, TypeError, AttributeError) as error:
            raise Refused(f"head of size {size}: {error}") from None
        if head.size != size or size <= last:
            raise Refused(f"head of size {size}: it says {head.size}, after one of {last}.")
        last = size
        yield head


def _tables(log: Log, named: dict[str, tuple]) -> int:
    """Check every stored table; give the number of rows."""
    rows, seen = 0, set()
    for digest, data in log.blobs():
        if digest not in named or not isinstance(data, bytes):
            raise Refused(f"table {digest}: no entry names it.")
        root, count = named[digest]
        rows += len(table_lines({"sha256": digest, "root": root, "rows": count}, data))
        seen.add(digest)
    if missing := named.keys() - seen:
        raise Unverifiable(
            f"table {min(missing)}: an entry names it and it is not in the store ({len(missing)} missing)."
        )
    return rows
