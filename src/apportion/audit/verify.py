"""The door of the audit: opens a log, hashes every byte of it, and has the economics done again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from apportion.audit.economics import Economics
from apportion.audit.quorum import Policy
from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.ledger import tree
from apportion.ledger.canonical import read_entry, table_lines
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Verifier, read_verifier
from apportion.ledger.proof import fork
from apportion.ledger.reading import Reader
from apportion.ledger.tiles import Tiles


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

    def as_dict(self) -> dict[str, object]:
        """Give the verdict as plain values, for machines."""
        head = {"origin": self.head.origin, "size": self.head.size, "root": self.head.root.hex()}
        gap = self.gap if math.isfinite(self.gap) else None
        return {**asdict(self), "accepted": True, "gap": gap, "head": head}


def verify(
    path: str | Path,
    key: str | Path | Verifier,
    level: int = 2,
    remember: str | Path | None = None,
    policy: str | Path | None = None,
) -> Verdict:
    """Check a log, a ledger.db or a folder of tiles, against its verifier key (or the file that holds it).

    remember: a file with the last head seen of this log, which must be a prefix of what is here; it is written when the
    log is accepted. policy: a file that says which witnesses must have cosigned the head.
    Raises Forked, with the proof, where two signed heads cannot both be true.
    """
    if level not in range(4):
        raise BadInput(f"level {level}: levels are 0, 1, 2 and 3.")
    try:
        verifier = key if isinstance(key, Verifier) else read_verifier(key)
        seen = _remembered(remember, verifier) if remember else None
        asked = Policy.read(policy) if policy else None
        with _opened(Path(path), verifier) as log:
            verdict = _verify(log, verifier, level, seen, asked)
    except (BadInput, LogUnavailable) as error:
        raise Unverifiable(str(error)) from None
    if remember:
        _remember(Path(remember), verdict.head)
    return verdict


@contextmanager
def _opened(path: Path, verifier: Verifier) -> Iterator[Log | Tiles]:
    if path.is_dir():
        yield Tiles.open(path, verifier)
        return
    with Log.open(path) as log, log.snapshot():
        yield log


def _verify(log: Log | Tiles, verifier: Verifier, level: int, seen: Head | None, policy: Policy | None) -> Verdict:
    hashed = _Hashed(log, verifier, seen)
    head, checked, unchecked = hashed.head, [hashed.told()], []
    if seen:
        _prefix(hashed, seen)
        checked.append(f"append-only: the head of {seen.size} entries seen before is a prefix of this log")
    else:
        unchecked.append("append-only against heads seen elsewhere: none were given")
    if policy:
        checked.append(policy.check(head, hashed.cosigned))
    else:
        unchecked.append("witnesses: no policy was given that names any")
    if level < 2:
        unchecked.append(f"the economics: level {level} was asked for")
        findings = (f"{hashed.foreign} entries are not in format apportion/1",) if hashed.foreign else ()
        return Verdict(level, head, checked=tuple(checked), unchecked=tuple(unchecked), findings=findings)
    sums = Economics()
    reader = Reader(log.blob, hashed=True)
    for data in log.entries():
        closed = reader.read(data)
        if reader.genesis and reader.index == 1:
            sums.begin(reader.genesis)
        if reader.moved:
            sums.transfer(reader.index - 1, reader.moved)
        if closed and reader.genesis:
            sums.check(reader.genesis, closed)
    sums.end(reader)
    if level == 3:
        named = ", ".join(f"{name} {digest[:12]}" for name, digest in reader.models.items())
        unchecked.append(f"the model: {named or 'no entry names one'}; this build replays none")
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


class _Hashed:
    """Every entry, table and row of a log hashed, and every head held against them."""

    def __init__(self, log: Log | Tiles, verifier: Verifier, seen: Head | None):
        self._log, self._seen = log, seen
        self._keys, self._rotated = _keys(log, verifier)
        self._named: dict[str, tuple] = {}  # tables by SHA-256: root and rows
        self._sizes: set[int] = set()  # of the heads
        self.foreign, self.rows = 0, 0
        self.root_seen = b""  # of the first entries, as many as were seen before
        self.head = self._entries()
        self.cosigned = log.cosignatures(self.head.size) if isinstance(log, Log) else ()
        if isinstance(log, Log):
            self._tables(log)
        else:
            log.check()
            for digest, (root, rows) in self._named.items():
                self.rows += len(table_lines({"sha256": digest, "root": root, "rows": rows}, log.blob(digest)))

    def told(self) -> str:
        return (
            f"{self.head.size} entries, {len(self._named)} tables with {self.rows} rows, {len(self._sizes)} heads: "
            "hashes, signatures, prefixes"
        )

    def _entries(self) -> Head:
        """Hash every entry against every head; give the last head."""
        heads = self._heads()
        frontier, head, due, leaves = tree.Frontier(), None, next(heads, None), []
        for size, data in enumerate(self._log.entries(), 1):
            self._tables_of(size - 1, data)
            leaves.append(tree.leaf(data))
            at_seen = self._seen is not None and size == self._seen.size
            if (due is None or size < due.size) and not at_seen and len(leaves) < 4096:
                continue
            frontier.extend(leaves)
            leaves.clear()
            if at_seen:
                self.root_seen = frontier.root()
            if due and due.size == size:
                if due.root != frontier.root():
                    raise Refused(f"entry {size - 1}: the first {size} entries do not hash to the head of that size.")
                self._sizes.add(size)
                head, due = due, next(heads, None)
        frontier.extend(leaves)
        if due and due.size > frontier.size:
            raise Refused(f"entry {frontier.size}: missing; a head of {due.size} entries was signed.")
        if head is None and not frontier.size:
            raise Unverifiable(f"{self._log.path}: no head is signed yet, so there is nothing to check.")
        if missing := [index for index in self._rotated if index + 1 not in self._sizes]:
            raise Refused(f"entry {missing[0]} (key_rotation): no head of both keys ends with it.")
        if head is None or head.size != frontier.size:
            raise Refused(f"entry {head.size if head else 0}: no signed head covers it.")
        if isinstance(self._log, Log):
            stored = self._log.frontier()
            if (stored.size, stored.peaks) != (frontier.size, frontier.peaks):
                raise Refused(f"{self._log.path}: the stored tree state is not that of its entries.")
        return head

    def _heads(self) -> Iterator[Head]:
        last = 0
        for size, note in self._log.heads():
            try:
                head = self._open(size, note)
            except (Refused, TypeError, AttributeError) as error:
                raise Refused(f"head of size {size}: {error}") from None
            if head.size != size or size <= last:
                raise Refused(f"head of size {size}: it says {head.size}, after one of {last}.")
            last = size
            yield head

    def _open(self, size: int, note: str) -> Head:
        """Read a head under the key that was in force at its size; where that changed, under both."""
        before = sum(index + 1 < size for index in self._rotated)
        if size - 1 in self._rotated:
            open_head(note, self._keys[before + 1])
        return open_head(note, self._keys[before])[0]

    def _tables_of(self, index: int, data: bytes) -> None:
        """Take note of the tables that an entry names. What is no entry of ours is hashed like any other."""
        try:
            tables = read_entry(data).get("tables", {})
        except Refused:
            self.foreign += 1
            return
        try:
            for name, reference in tables.items():
                key = (reference["root"], reference["rows"])
                if len(reference) != 3 or self._named.setdefault(reference["sha256"], key) != key:
                    raise Refused(f"entry {index}: tables.{name}: one table cannot have another root or count.")
        except (KeyError, TypeError, AttributeError):
            raise Refused(f"entry {index}: tables: a table is named by its sha256, root and rows.") from None

    def _tables(self, log: Log) -> None:
        """Check every stored table: those that are named, and no others."""
        seen = set()
        for digest, data in log.blobs():
            if digest not in self._named or not isinstance(data, bytes):
                raise Refused(f"table {digest}: no entry names it.")
            root, rows = self._named[digest]
            self.rows += len(table_lines({"sha256": digest, "root": root, "rows": rows}, data))
            seen.add(digest)
        if missing := self._named.keys() - seen:
            raise Unverifiable(
                f"table {min(missing)}: an entry names it and it is not in the store ({len(missing)} missing)."
            )

    def growth(self, size: int) -> tuple[bytes, ...]:
        """Prove to others that the first `size` entries are what they are here."""
        whole = tree.Tree([tree.leaf(entry) for entry in self._log.entries()])
        return whole.consistency(size, self.head.size)


def _keys(log: Log | Tiles, verifier: Verifier) -> tuple[list[Verifier], list[int]]:
    """Give the keys that signed this log, in order, and the entries at which each gave way to the next.

    They are a chain: the head that ends with a rotation is signed by both of its keys, so whoever trusts one key of the
    chain can trust the others as far as the log has them.
    """
    keys, rotated = [], []
    for index, data in enumerate(log.entries()):
        if b'"type":"key_rotation"' in data:
            try:
                entry = read_entry(data)
                old, new = Verifier.parse(entry["old"]), Verifier.parse(entry["new"])
            except (Refused, BadInput, KeyError, TypeError, AttributeError) as error:
                raise Refused(f"entry {index} (key_rotation): {error}") from None
            if entry["type"] != "key_rotation":
                continue
            if old.name != new.name or (keys and keys[-1] != old):
                raise Refused(f"entry {index} (key_rotation): {old.text} was not the key in force.")
            keys = [*(keys or [old]), new]
            rotated.append(index)
    keys = keys or [verifier]
    if verifier not in keys or log.verifier != (keys[-1] if isinstance(log, Log) else log.verifier):
        raise Refused(f"{log.path} says that its key is {log.verifier.text}; it is to be checked with {verifier.text}.")
    return keys, rotated


# --- level 1: what was seen before ------------------------------------------------------------------------------------


def _prefix(hashed: _Hashed, seen: Head) -> None:
    head = hashed.head
    if seen.size > head.size:
        raise Refused(
            f"the log holds {head.size} entries, but a head of {seen.size} was seen before: entries were taken away."
        )
    if seen.size == 0 or hashed.root_seen == seen.root:
        return
    if seen.size == head.size:
        raise fork(seen, head, f"Two heads of size {head.size} with other roots.")
    proof = hashed.growth(seen.size)
    raise fork(seen, head, f"The first {seen.size} entries were rewritten.", hashed.root_seen, proof)


def _remembered(file: str | Path, verifier: Verifier) -> Head | None:
    try:
        note = Path(file).read_bytes()
    except FileNotFoundError:
        return None  # the first time; said in the verdict
    except OSError as error:
        raise Unverifiable(f"{file}: {error.strerror}.") from None
    try:
        return open_head(note, verifier)[0]
    except Refused as error:
        raise Unverifiable(f"{file}: {error} It should hold a head of this log; delete it to begin anew.") from None


def _remember(file: Path, head: Head) -> None:
    spare = file.with_name(file.name + ".new")
    try:
        with open(spare, "w", encoding="utf-8") as out:
            out.write(head.note)
            out.flush()
            os.fsync(out.fileno())
        os.replace(spare, file)
    except OSError as error:
        raise Unverifiable(f"{file}: {error.strerror}: the head could not be remembered.") from None
