"""A market that outlives its program: the commands that it took, in SQLite, and now and then all that it knows.

Commands are kept before their answers go out, a batch to a commit that waits for the disk. So a crash leaves the market as after
some batch whose answers nobody has heard, or all that were heard; a batch that the disk refuses has not happened, and
`load` gives the market without it. Whoever was not answered sends the command again, under its old number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from apportion.settlement.pool import Pool
from apportion.workloads.book import Book, Order
from apportion.workloads.commands import Fields
from apportion.workloads.market import LIMIT, Lot, Market, Trader

AGAIN = 20_000  # commands to play again at a start, about; then the whole is written

SCHEMA = """
CREATE TABLE IF NOT EXISTS whole (one INTEGER PRIMARY KEY CHECK (one = 1), upto INTEGER NOT NULL, market TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch (number INTEGER PRIMARY KEY, commands TEXT NOT NULL);
"""


class Journal:
    """The file of one market, which one program has open at a time."""

    def __init__(self, folder: Path):
        path = folder / "market.db"
        # One thread at a time uses the connection; it need not be the one that opened it.
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
        try:
            path.chmod(0o600)  # the keys of all traders are in it
            self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")  # every commit waits for the disk
            self.db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as problem:
            self.db.close()
            raise OSError(f"market.db cannot be used: {problem}") from None
        self._next = self._since = 0  # number of the next batch; commands since the whole was written

    def load(self) -> Market:
        """Give the market as it was after the last batch that was kept; OSError where that makes no sense."""
        try:
            row = self.db.execute("SELECT upto, market FROM whole").fetchone()
            batches = self.db.execute("SELECT number, commands FROM batch ORDER BY number").fetchall()
            upto, market = (row[0], restored(json.loads(row[1]))) if row else (0, Market())
            self._next, self._since = upto + 1, 0
            for number, text in batches:
                if number != self._next:
                    raise ValueError(f"batch {self._next} is missing")
                at, commands = json.loads(text)
                for command in commands:
                    market.apply(at, command)
                self._next, self._since = number + 1, self._since + len(commands)
            market.check()
        except (sqlite3.Error, LookupError, TypeError, ValueError, AssertionError) as problem:
            raise OSError(f"market.db is damaged ({problem}): restore the folder from a copy") from None
        market.news.clear()
        market.moving = [lot.number for lot in market.lots.values() if lot.state != "open"]
        return market

    def keep(self, at: int, commands: Sequence[Fields], market: str | None = None) -> None:
        """Keep a batch, or the whole market after it; sqlite3.Error where the disk refuses, and then `load`."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            if market is None:
                text = json.dumps([at, commands], separators=(",", ":"))
                self.db.execute("INSERT INTO batch VALUES (?, ?)", (self._next, text))
            else:
                self.db.execute("INSERT OR REPLACE INTO whole VALUES (1, ?, ?)", (self._next, market))
                self.db.execute("DELETE FROM batch")
            self.db.execute("COMMIT")
        except sqlite3.Error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        self._next, self._since = self._next + 1, 0 if market else self._since + len(commands)

    def full(self, market: Market) -> str | None:
        """Give the whole market where it is time to write it: the larger it is, the rarer."""
        large = len(market.traders) + len(market.orders) + len(market.lots) + len(market.items)
        return json.dumps(dump(market), separators=(",", ":")) if self._since > AGAIN + 2 * large else None

    def close(self) -> None:
        self.db.close()


PLAIN = ("fee", "custody", "last", "round", "made", "next_number")


def dump(market: Market) -> Fields:
    """Give all that a market knows, to be written as JSON before it changes: nothing is copied."""
    out: Fields = {name: getattr(market, name) for name in (*PLAIN, "items")}
    for name, kind in (("traders", Trader), ("orders", Order), ("lots", Lot)):
        names = [field.name for field in fields(kind)]
        out[name] = [{name: getattr(one, name) for name in names} for one in getattr(market, name).values()]
    return out | {"books": list(market.books), "pool": market.pool and [market.pool.reserve, market.pool.left]}


def restored(state: Fields) -> Market:
    """Make a market from what one has dumped."""
    market = Market()
    for name in PLAIN:
        setattr(market, name, state[name])
    market.books = {name: Book() for name in state["books"]}
    market.traders = {one["name"]: Trader(**one) for one in state["traders"]}
    for item, name in state["items"].items():
        market.hand(item, name)
    for one in sorted(state["orders"], key=lambda one: one["number"]):  # numbers rise with time
        market.rest(Order(**one))
    for one in state["lots"]:
        market.hold(Lot(**one))
    if state["pool"]:
        reserve, left = state["pool"]
        market.pool = Pool((reserve[0], reserve[1]), limit=LIMIT, left=left and (left[0], left[1]))
    return market
