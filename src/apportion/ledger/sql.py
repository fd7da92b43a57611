"""Questions to a log in SQL: its entries and tables, copied into an SQLite database in memory.

    entries(idx, type, round, at, entry)           entry: the JSON text
    shares(idx, round, task, share, ...)           one SQL table per table of the log; lists are JSON texts

Nothing can be changed by asking: the log is read, the copy is thrown away, and no other file can be attached. Whole
amounts are integers here where they fit; reals stay texts, so that CAST says what is lost.
"""

from __future__ import annotations

import json
import sqlite3

from apportion.core.errors import BadInput
from apportion.ledger.canonical import Json, open_table, read_entry
from apportion.ledger.log import Log


def query(log: Log, question: str) -> tuple[tuple[str, ...], list[tuple]]:
    """Answer one question: the names of the columns, and the rows."""
    db = sqlite3.connect(":memory:")
    try:
        with log.snapshot():
            _copy(log, db)
        db.commit()
        db.set_authorizer(_only_reading)
        cursor = db.execute(question)
        if cursor.description is None:
            raise sqlite3.Warning("nothing is asked")
        return tuple(d[0] for d in cursor.description), cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise BadInput(f"SQL: {error}. Tables that have rows here: {', '.join(_tables(db))}.") from None
    finally:
        db.close()


def _copy(log: Log, db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE entries (idx INTEGER PRIMARY KEY, type TEXT, round INTEGER, at TEXT, entry TEXT)")
    known: dict[str, list[str]] = {}
    for index, data in enumerate(log.entries()):
        entry = read_entry(data)
        number = entry.get("round")
        db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (index, entry["type"], number, entry.get("at"), data.decode())
        )
        for name, reference in entry.get("tables", {}).items():
            rows = open_table(reference, log.blob(reference["sha256"]))
            if not rows:
                continue
            columns = known.setdefault(name, [])
            for column in sorted(rows[0].keys() - set(columns) - {"salt"}):
                if not columns:
                    db.execute(f"CREATE TABLE {_quoted(name)} (idx INTEGER, round INTEGER)")
                db.execute(f"ALTER TABLE {_quoted(name)} ADD COLUMN {_quoted(column)}")
                columns.append(column)
            into = ", ".join(map(_quoted, ["idx", "round", *columns]))
            marks = ", ".join("?" * (len(columns) + 2))
            values = [(index, number, *(_value(row.get(column)) for column in columns)) for row in rows]
            db.executemany(f"INSERT INTO {_quoted(name)} ({into}) VALUES ({marks})", values)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _value(x: Json) -> int | str | None:
    if isinstance(x, list | dict):
        return json.dumps(x)
    if isinstance(x, str) and x.removeprefix("-").isdecimal() and len(x) < 19:
        return int(x)
    return x


def _only_reading(action: int, *_: object) -> int:
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY


def _tables(db: sqlite3.Connection) -> list[str]:
    db.set_authorizer(None)
    return [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
