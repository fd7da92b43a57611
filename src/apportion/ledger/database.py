"""The SQLite file that holds a log: how it is opened, what it may hold, and what is read from it.

A file that comes from elsewhere is evidence, not a program: what it holds beside our six tables, such as a trigger that would run on
what we write or a view in a table's place, is refused before anything else is read.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.ledger import tree
from apportion.ledger.canonical import FORMAT
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.note import Verifier

TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE entries (idx INTEGER PRIMARY KEY, entry BLOB NOT NULL)",
    "CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE heads (size INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TABLE cosignatures (size INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY (size, line))",
    "CREATE TABLE frontier (id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL, peaks BLOB NOT NULL)",
)
_FOLD = 1 << 14  # pages of 4 KiB in the write-ahead file before a commit folds it: 64 MiB, if nobody calls tidy()


def connect(path: Path, *, writing: bool) -> sqlite3.Connection:
    """Open the file, a link to it followed: its write-ahead file lies where the file does."""
    path = path.resolve()
    uri = path.as_uri()
    options = {"uri": True, "isolation_level": None, "check_same_thread": False, "timeout": 5.0}
    if writing:
        db = sqlite3.connect(uri, **options)
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={_FOLD}")
        return db
    db = sqlite3.connect(uri + "?mode=ro", **options)
    try:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # A folder that cannot be written has no room for SQLite's index of the WAL; without a WAL none is needed.
        wal = path.with_name(path.name + "-wal")
        if os.access(path.parent, os.W_OK) or (wal.exists() and wal.stat().st_size):
            db.close()
            raise
        db.close()
        db = sqlite3.connect(uri + "?immutable=1", **options)
        db.execute("PRAGMA trusted_schema=OFF")
    return db


def blank(path: Path) -> bool:
    """Tell whether a file is a database in which nothing was ever committed: a start that a crash cut short."""
    try:
        db = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        try:
            return db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,)
        finally:
            db.close()
    except sqlite3.Error:
        return False


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Say in our words what SQLite and the disk say in theirs."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise LogUnavailable(f"{path} is closed. Open it again to read it.") from None
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "no such column" in str(error):
            raise Refused(f"{path}: {error}: it is no log, or damaged.") from None
        raise LogUnavailable(f"{path}: {error}. Nothing was half-written; mend the cause and try again.") from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: the file is damaged: {error}.") from None
    except OSError as error:
        raise LogUnavailable(f"{path}: {error.strerror}.") from None


def foreign(db: sqlite3.Connection) -> str:
    """Say what a file holds that no log does, or lacks that every log has; nothing, where it is made like a log."""
    made = db.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    ).fetchall()  # indices of keys have none
    tables = {sql.split()[2]: sql for sql in TABLES}
    for name, sql in made:
        if tables.pop(name, None) != sql:
            return f"it holds {name!r}, which is not as a log has it: it is no log, or somebody changed it."
    return f"it has no table {min(tables)!r}: it is no log, or damaged." if tables else ""


class Database:
    """The rows of a log, as they are stored; `ledger.check` says whether they are the right ones."""

    def __init__(self, path: Path, db: sqlite3.Connection):
        self.path = path
        self._db = db
        self._turn = threading.RLock()
        self.verifier: Verifier

    def head(self) -> Head | None:
        """Give the last signed head; None in a log without entries."""
        with self._turn, reported(self.path):
            row = self._db.execute("SELECT size, note FROM heads ORDER BY size DESC LIMIT 1").fetchone()
        if row is None:
            return None
        try:
            head = open_head(str(row[1]), self.verifier)[0]
        except Refused as error:
            raise Refused(f"{self.path}: its last head, of {row[0]} entries: {error}") from None
        if head.size != row[0]:
            raise Refused(f"{self.path}: the head stored for size {row[0]} says {head.size}.")
        return head

    def heads(self) -> Iterator[tuple[int, str]]:
        """Give every signed head: its size and its note, oldest first."""
        yield from self._select("SELECT size, note FROM heads ORDER BY size")

    def cosignatures(self, size: int) -> tuple[str, ...]:
        """Give the witnesses' signature lines on the head of a size."""
        query = "SELECT line FROM cosignatures WHERE size = ? ORDER BY line"
        return tuple(str(line) for (line,) in self._select(query, size))

    def cosigned(self) -> Iterator[tuple[int, str]]:
        """Give every signature line of a witness, with the size of its head."""
        yield from self._select("SELECT size, line FROM cosignatures")

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the exact bytes of entries start to end, in order."""
        end = sys.maxsize if end is None else end
        query = "SELECT idx, entry FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"
        for expected, (index, entry) in enumerate(self._select(query, start, end), start):
            if index != expected or not isinstance(entry, bytes):
                raise Refused(f"{self.path}: entry {expected} is missing or is not bytes.")
            yield entry

    def blob(self, digest: str) -> bytes:
        """Give a table by its SHA-256; its bytes are checked."""
        with self._turn, reported(self.path):
            row = self._db.execute("SELECT data FROM blobs WHERE sha256 = ?", (digest,)).fetchone()
        if row is None:
            raise Unverifiable(f"{self.path}: table {digest} is not in the store.")
        if not isinstance(row[0], bytes) or sha256(row[0]).hexdigest() != digest:
            raise Refused(f"{self.path}: table {digest}: its bytes have another SHA-256.")
        return row[0]

    def blobs(self) -> Iterator[tuple[str, bytes]]:
        """Give every stored table with the digest it is stored under (not checked here)."""
        yield from self._select("SELECT sha256, data FROM blobs")

    def frontier(self) -> tree.Frontier:
        """Give the tree state as stored."""
        with self._turn, reported(self.path):
            rows = self._db.execute("SELECT size, peaks FROM frontier").fetchall()
        if len(rows) != 1 or not isinstance(rows[0][0], int) or not isinstance(rows[0][1], bytes):
            raise Refused(f"{self.path}: the stored tree state is damaged.")
        size, peaks = rows[0]
        try:
            return tree.Frontier(size, [peaks[k : k + tree.WIDTH] for k in range(0, len(peaks), tree.WIDTH)])
        except Refused as error:
            raise Refused(f"{self.path}: the stored tree state is damaged: {error}") from None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the log throughout, whatever is appended meanwhile."""
        with self._turn:
            if self._db.in_transaction:  # inside another snapshot, whose state is the one to read
                yield
                return
            with reported(self.path):
                self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.rollback()

    def _select(self, query: str, *values: object) -> Iterator[tuple]:
        cursor = None
        while True:
            with self._turn, reported(self.path):
                cursor = cursor or self._db.execute(query, values)
                rows = cursor.fetchmany(256)
            if not rows:
                return
            yield from rows

    def _identify(self) -> None:
        """See that this is a log and nothing more, and read whose."""
        if what := foreign(self._db):
            raise Refused(f"{self.path}: {what}")
        meta = dict(self._db.execute("SELECT name, value FROM meta").fetchall())
        if meta.get("format") != FORMAT:
            raise Refused(f"{self.path}: its format is {meta.get('format')!r}, not {FORMAT!r}. Is it a log?")
        try:
            self.verifier = Verifier.parse(str(meta.get("vkey")))
        except BadInput as error:
            raise Refused(f"{self.path}: {error}") from None
        if meta.keys() != {"format", "origin", "vkey"} or meta["origin"] != self.verifier.name:
            raise Refused(f"{self.path}: its table `meta` is not that of a log of {self.verifier.name!r}.")
