"""The log on disk: entries, their tables, the tree and the signed heads, in one SQLite file.

One transaction holds everything an append adds, and is on the disk (WAL, synchronous=FULL) before its head is
given out, so a crash leaves either all of it or nothing; what was acknowledged is there. Stored bytes are read
back and hashed before they are signed. One process writes, under a lock beside the file that the system drops
with the process; any number read meanwhile. Opening for writing holds every byte against the signed heads again and
refuses a store that was edited or torn (`check`); it never mends by guessing.

Beside the store lies `<store>.head`, the last head given out. A store that is behind it lost what was
acknowledged (an old copy put back, a cut file) and is refused: signing on from there would fork the log. So is one
without it, for then nobody can tell.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections import deque
from collections.abc import Iterable
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.ledger import tree
from apportion.ledger.canonical import FORMAT, Record
from apportion.ledger.check import Checked
from apportion.ledger.checkpoint import Head
from apportion.ledger.database import TABLES, Database, blank, connect, foreign, reported
from apportion.ledger.disk import given_out, head_file, refuse_a_second, remember, sync_folder, take
from apportion.ledger.note import ED25519, Note, Signature, Signer, parse_signature

_WAY_OUT = "put back the newest whole copy, with its .head, or set it aside and begin a new log."


@dataclass(slots=True, eq=False)
class _Waiting:
    """An append that waits for its turn."""

    sealed: list[tuple[bytes, dict[str, bytes]]]
    came: Head | Exception | None = None  # of it


class Log(Database):
    """A log, open for reading or, with its signer key, for writing. Use as a context or call close()."""

    def __init__(self, path: Path, db: sqlite3.Connection, key: Signer | None, lock: int | None):
        """Not for callers: use Log.create and Log.open."""
        super().__init__(path, db)
        self._key, self._lock_file = key, lock
        self._queue: deque[_Waiting] = deque()
        self._secret = _secret(key) if key else b""
        self._frontier, self._tree = tree.Frontier(), tree.Tree()
        self._head: Head | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], key: Signer) -> Log:
        """Start a new log, whose origin is the name of its key, and open it for writing."""
        path = Path(path)
        if key.kind != ED25519:
            raise BadInput(f"key {key.name!r} is a witness's key: a log is signed with an Ed25519 key.")
        lock = take(path)
        try:
            if path.exists() and path.stat().st_size and not blank(path):
                raise LogUnavailable(f"{path} is there already. Open it to go on with it, or choose another folder.")
            refuse_a_second(path, key)
            with reported(path):
                db = connect(path, writing=True)
                try:
                    head_file(path).touch()  # before there is a log: one without it has lost what it gave out
                    db.executescript(";".join(["BEGIN IMMEDIATE", *TABLES, ""]))
                    meta = {"format": FORMAT, "origin": key.name, "vkey": key.verifier.text}
                    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                    db.execute("INSERT INTO frontier VALUES (0, 0, x'')")
                    db.execute("COMMIT")
                    sync_folder(path.parent)
                except BaseException:
                    db.close()  # what was not committed is nothing: the next `create` starts over it
                    raise
            return cls._opened(path, db, key, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], key: Signer | None = None, seen: Iterable[Head] = ()) -> Log:
        """Open a log: with its key for writing, without for reading (also while another process writes).

        seen: heads that others hold, such as witnesses; a writer refuses a store that they are ahead of.
        """
        path = Path(path)
        if not path.is_file():
            raise LogUnavailable(f"{path}: there is no log here.")
        lock = take(path) if key else None
        try:
            with reported(path):
                db = connect(path, writing=key is not None)
            return cls._opened(path, db, key, lock, seen)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    @classmethod
    def _opened(
        cls, path: Path, db: sqlite3.Connection, key: Signer | None, lock: int | None, seen: Iterable[Head] = ()
    ) -> Log:
        log = cls(path, db, key, lock)
        try:
            with log.snapshot(), reported(path):  # a writer may commit between two reads
                log._load()
                if key:
                    log._recover(seen)
        except BaseException as error:
            db.close()
            if key and isinstance(error, Refused):
                raise Refused(f"{error} It is not signed on: {_WAY_OUT}") from None
            raise
        return log

    def append(self, records: Iterable[Record]) -> Head:
        """Write records as the next entries, durably, and give the signed head that covers them.

        Either all of them are in the log or, after LogUnavailable, none; the log can be used on in both cases. Threads that
        append while another one writes share the next transaction, its sync and its head, or its error.
        """
        self._writer()
        batch = list(records) if isinstance(records, Iterable) else []
        if not batch or not all(isinstance(record, Record) for record in batch):
            raise BadInput("nothing to append: give a list of at least one record.")
        mine = _Waiting([record.seal(self._secret) for record in batch])
        try:
            self._queue.append(mine)
            with self._turn:
                if mine.came is None:  # nobody wrote for us: we write for all who wait
                    self._lead([self._queue.popleft() for _ in range(len(self._queue))])
        except BaseException:
            with suppress(ValueError):
                self._queue.remove(mine)  # interrupted before its turn: nobody shall write it
            raise
        if isinstance(mine.came, Head):
            return mine.came
        raise copy(mine.came or _interrupted(self.path))

    def _lead(self, batch: list[_Waiting]) -> None:
        """Write what a batch waits for, in one transaction, and tell each what came of it."""
        came: Head | Exception = _interrupted(self.path)
        try:
            came = self._write([entry for waiting in batch for entry in waiting.sealed])
        except Exception as error:
            came = error
        finally:
            for waiting in batch:
                waiting.came = came

    def rotate(self, key: Signer, at: str) -> Head:
        """Go over to another key of the same name: one entry says so, under a head that both keys sign."""
        old = self._writer()
        if key.name != old.name or key.kind != ED25519 or key == old:
            raise BadInput(f"key {key.name!r} cannot follow {old.name!r}: make a new Ed25519 key of that name.")
        body = {"at": at, "old": old.verifier.text, "new": key.verifier.text}
        with self._turn:
            head = self._write([Record("key_rotation", body, {}).seal(self._secret)], key)
            self._key, self._secret, self.verifier = key, _secret(key), key.verifier
        return head

    def tidy(self) -> None:
        """Fold the write-ahead file into the store while nobody waits for an append; a failure harms nothing.

        What was acknowledged is durable without it. What a reader still needs of the file stays for the next time.
        """
        with self._turn, suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _writer(self) -> Signer:
        if self._key is None or self._lock_file is None:
            raise LogUnavailable(f"{self.path} is closed, or open for reading only. Open it with its key to write.")
        return self._key

    def _write(self, sealed: list[tuple[bytes, dict[str, bytes]]], *heir: Signer) -> Head:
        with self._turn:
            try:
                with reported(self.path):
                    head, frontier = self._commit(sealed, (self._writer(), *heir))
            finally:
                if self._db.in_transaction:
                    self._db.rollback()
            self._frontier, self._head = frontier, head
            remember(self.path, head)
        return head

    def _commit(
        self, sealed: list[tuple[bytes, dict[str, bytes]]], keys: tuple[Signer, ...]
    ) -> tuple[Head, tree.Frontier]:
        db, start = self._db, self._frontier.size
        db.execute("BEGIN IMMEDIATE")
        if db.execute("SELECT size FROM frontier").fetchone() != (start,):
            self._load()  # an append that was interrupted after its commit: go on from what is stored
            start = self._frontier.size
        for _, blobs in sealed:
            db.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", blobs.items())
        db.executemany("INSERT INTO entries VALUES (?, ?)", [(start + k, entry) for k, (entry, _) in enumerate(sealed)])
        stored = [entry for (entry,) in db.execute("SELECT entry FROM entries WHERE idx >= ? ORDER BY idx", (start,))]
        if stored != [entry for entry, _ in sealed]:
            raise LogUnavailable(f"{self.path}: the store gave back other bytes than it was given. Check the disk.")
        frontier = self._frontier.copy()
        frontier.extend([tree.leaf(entry) for entry in stored])
        bare = Head(keys[0].name, frontier.size, frontier.root())
        head = replace(bare, note=str(Note(bare.text, tuple(key.sign(bare.text) for key in keys))))
        db.execute("INSERT INTO heads VALUES (?, ?)", (head.size, head.note))
        db.execute("UPDATE meta SET value = ? WHERE name = 'vkey'", (keys[-1].verifier.text,))
        db.execute("UPDATE frontier SET size = ?, peaks = ?", (frontier.size, b"".join(frontier.peaks)))
        db.execute("COMMIT")
        return head, frontier

    def cosign(self, head: Head, lines: Iterable[str]) -> None:
        """Keep what witnesses signed; what they are worth is for a policy to say.

        Cosignatures are no part of the tree: a log that is open for reading takes them too, in a short transaction of its own,
        also while another process writes entries.
        """
        new = [parse_signature(line) for line in lines]
        with self._turn, reported(self.path):
            if self._key is not None:
                self._cosign(self._db, head.size, new)
                return
            with closing(connect(self.path, writing=True)) as db:
                self._cosign(db, head.size, new)

    def _cosign(self, db: sqlite3.Connection, size: int, new: list[Signature]) -> None:
        """One line of each witness: a note of more than a hundred is not read."""
        db.execute("BEGIN IMMEDIATE")
        try:
            if what := foreign(db):
                raise Refused(f"{self.path}: {what}")
            for (line,) in db.execute("SELECT line FROM cosignatures WHERE size = ?", (size,)).fetchall():
                if (held := parse_signature(line)) and any((s.name, s.id) == (held.name, held.id) for s in new):
                    db.execute("DELETE FROM cosignatures WHERE size = ? AND line = ?", (size, line))
            db.executemany("INSERT OR IGNORE INTO cosignatures VALUES (?, ?)", [(size, s.line) for s in new])
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.rollback()

    def merkle(self) -> tree.Tree:
        """Give the whole tree, kept between calls and grown by what was appended since; a million entries take 64 MB."""
        with self._turn:
            self._tree.extend([tree.leaf(entry) for entry in self.entries(self._tree.size)])
            return self._tree

    def prove_inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Prove that entry `index` is in the log of `size` entries (None: the last head's)."""
        whole = self.merkle()
        return whole.inclusion(index, self._size() if size is None else size)

    def prove_consistency(self, size1: int, size2: int | None = None) -> tuple[bytes, ...]:
        """Prove that the log of `size1` entries is a prefix of that of `size2` (None: the last head's)."""
        whole = self.merkle()
        return whole.consistency(size1, self._size() if size2 is None else size2)

    def _size(self) -> int:
        head = self.head()
        return head.size if head else 0

    def close(self) -> None:
        """Close the file and let others write; calling it twice is fine."""
        with self._turn:
            self._db.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        """Read key, tree state and last head, and see that they agree."""
        self._identify()
        if self._key and self._key.verifier != self.verifier:
            raise BadInput(f"{self.path} is signed with {self.verifier.text}, not with the key given. Use its own key.")
        self._frontier, self._head = self.frontier(), self.head()
        count = self._db.execute("SELECT COUNT(*), MAX(idx) FROM entries").fetchone()
        size = self._frontier.size
        if count != ((size, size - 1) if size else (0, None)):
            raise Refused(f"{self.path}: it has {count[0]} entries and a tree of {size}.")
        if (self._head.size if self._head else 0) != size or (self._head and self._head.root != self._frontier.root()):
            raise Refused(f"{self.path}: the last signed head and the stored tree state differ.")

    def _recover(self, seen: Iterable[Head]) -> None:
        """Before signing on: hold every byte against the signed heads, and these against the heads that were given out."""
        due = {head.size: head for head in (*seen, *filter(None, [self._given_out()]))}
        for head in due.values():
            if head.size > self._frontier.size:
                raise Refused(
                    f"{self.path} holds {self._frontier.size} entries, but a head of {head.size} was given out: entries were "
                    "lost, perhaps to an old copy put back, and signing on would fork the log."
                )
        try:
            whole = Checked(self, self.verifier, due, own=True)
            whole.store(self)
            for size, head in due.items():
                if size and whole.roots[size] != head.root:
                    raise Refused(f"its first {size} entries are not those of the head given out.")
        except (Refused, Unverifiable) as error:
            raise Refused(f"{self.path}: {error} The file was edited or damaged.") from None

    def _given_out(self) -> Head | None:
        """The last head that was given out; None: none was, or which one is not known (an emptied file)."""
        where = head_file(self.path)
        if self._frontier.size and not where.exists():
            raise Refused(
                f"{where} is missing: it holds the last head given out, which tells an old copy of {self.path} from the "
                f"newest. Only if you know this to be the newest, make an empty one: touch {where}"
            )
        try:
            return given_out(self.path, self.verifier)
        except Refused as error:
            raise Refused(f"{where}: {error} Empty it only if you know that no newer head was given out.") from None


def _interrupted(path: Path) -> LogUnavailable:
    return LogUnavailable(f"{path}: the thread that wrote was interrupted. What came of it stands in the log.")


def _secret(key: Signer) -> bytes:
    """What salts are made from; whoever holds it can guess at hidden rows, so it never leaves the process."""
    return hmac.digest(key.seed, f"{FORMAT} salts of {key.name}".encode(), "sha256")
