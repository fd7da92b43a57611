"""A witness: it cosigns a log's heads as long as each is a prefix of the next (c2sp.org/tlog-witness).

    old N newline  base64 hashes, one a line  newline  signed checkpoint

One head per log is remembered, durably and before it is cosigned: a witness that signed two heads of one size, or a
rewritten history, would be worth nothing. It knows logs by their keys and answers with an HTTP status and a body.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable

from apportion.core.errors import BadInput, LogUnavailable, Refused
from apportion.ledger import tree
from apportion.ledger.checkpoint import Head
from apportion.ledger.note import COSIGNATURE, Note, Signer, Verifier
from apportion.ledger.proof import decode_hash, encode_hash

_MOST_HASHES = 63


class Witness:
    """Remembers the last head of each log it knows. Owns one small SQLite file, or memory."""

    def __init__(
        self, key: Signer, logs: Iterable[Verifier], now: Callable[[], int], path: str | os.PathLike[str] = ":memory:"
    ):
        """now: gives Unix seconds."""
        if key.kind != COSIGNATURE:
            raise BadInput(f"key {key.name!r} is no witness's key: make one of kind 0x04.")
        self._key, self._now = key, now
        self._logs: dict[str, list[Verifier]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)
        self._turn = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS seen (origin TEXT PRIMARY KEY, size INTEGER, root BLOB)")
        except sqlite3.Error as error:
            raise LogUnavailable(f"{path}: {error}. A witness must be able to remember.") from None

    def add_checkpoint(self, request: bytes) -> tuple[int, str]:
        """Answer one add-checkpoint request: status and body."""
        try:
            old, proof, note = _parse(request)
            head = Head.parse(note.partition("\n\n")[0] + "\n")
        except Refused as error:
            return 400, f"{error}\n"
        if head.origin not in self._logs:
            return 404, f"unknown log {head.origin!r}\n"
        try:
            parsed = Note.parse(note)
            parsed.open(self._logs[head.origin])
            if Head.parse(parsed.text) != head:
                raise Refused("the checkpoint is not what was signed.")
        except Refused as error:
            return 403, f"invalid signature: {error}\n"
        if old > head.size:
            return 400, f"old size {old} is above the checkpoint's size {head.size}\n"
        with self._turn:
            return self._take(old, proof, head, parsed)

    def _take(self, old: int, proof: tuple[bytes, ...], head: Head, note: Note) -> tuple[int, str]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                row = self._db.execute("SELECT size, root FROM seen WHERE origin = ?", (head.origin,)).fetchone()
                size, root = row or (0, tree.EMPTY)
                if old != size or (head.size == size and head.root != root):
                    return 409, f"{size}\n"
                try:
                    if size:
                        tree.verify_consistency(size, head.size, root, head.root, proof)
                    elif proof:
                        raise Refused("from size 0 there is nothing to prove.")
                except Refused as error:
                    return 422, f"consistency proof: {error}\n"
                values = (head.origin, head.size, head.root)
                self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", values)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.rollback()
        except sqlite3.Error as error:
            return 500, f"the witness cannot remember: {error}\n"
        return 200, self._key.sign(note.text, self._now()).line

    def close(self) -> None:
        self._db.close()


def request(old: int, proof: Iterable[bytes], note: str) -> bytes:
    """Write an add-checkpoint request."""
    lines = [f"old {old}", *(encode_hash(h) for h in proof)]
    return ("\n".join(lines) + "\n\n" + note).encode()


def _parse(request: bytes) -> tuple[int, tuple[bytes, ...], str]:
    try:
        text = request.decode()
    except UnicodeError:
        raise Refused("request: it is not UTF-8.") from None
    top, empty, note = text.partition("\n\n")
    first, *hashes = top.split("\n")
    match = re.fullmatch("old (0|[1-9][0-9]{0,18})", first)
    if not empty or not match or len(hashes) > _MOST_HASHES:
        raise Refused("request: it reads `old N`, up to 63 hashes, an empty line, a signed checkpoint.")
    return int(match[1]), tuple(decode_hash(line) for line in hashes), note
