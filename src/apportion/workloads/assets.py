"""An asset registry: who owns which item, and the content of each, by its hash, on SQLite with real fsync.

Content is stored once under its SHA-256 and checked against it whenever it is read. An answer is given after the
commit, so whatever was acknowledged survives a crash; requests that arrive while a commit runs share the next one.

    put   {"item", "owner", "data"}          create an item or change the content of one's own; data is base64
    get   {"item"}                           owner, hash and data; owner is null where there is no such item
    mint  {"owners": {item: owner}, "data"}  create the items that do not exist yet; tells who owns each
    move  {"moves": [[item, from, to], ...]} all or nothing; an item that is already there counts as moved
    owned {"owner"}                          the items of one owner
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import sqlite3
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from apportion.workloads.load import Backlog, Gate, Window
from apportion.workloads.net import LATE, Line, Message, due_of, on_wire
from apportion.workloads.probe import Meter, Options, Service, run

DEADLINE = 0.1  # seconds from request to durable answer
PATIENCE = 1.0  # seconds; nobody's request may wait for longer, whatever it says
BATCH = 0.010  # seconds of work that share a commit, at most

SCHEMA = """
CREATE TABLE IF NOT EXISTS blob (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, refs INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS item (name TEXT PRIMARY KEY, owner TEXT NOT NULL, blob INTEGER NOT NULL REFERENCES blob (id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS item_owner ON item (owner);
"""


class Store:
    """Items and their content on disk. Changed only by `apply`, whose changes happen together or not at all."""

    def __init__(self, folder: Path):
        # One thread at a time uses the connection; it need not be the one that opened it.
        self.db = sqlite3.connect(folder / "assets.db", isolation_level=None, check_same_thread=False)
        try:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")  # every commit waits for the disk
            self.db.executescript(SCHEMA)
        except sqlite3.Error as problem:
            self.db.close()
            raise OSError(f"assets.db cannot be used: {problem}") from None
        self.commit_seconds = 0.0
        self.created = self.count()  # items that ought to be there
        self._new = 0  # items that the running batch creates

    def apply(self, requests: Sequence[tuple[float, Message]]) -> list[Message]:
        """Carry out requests (monotonic due, message) under one commit; give the answer to each.

        Stops after `BATCH` seconds: fewer answers than requests mean that the rest was not looked at.
        """
        answers: list[Message] = []
        started, self._new = time.monotonic(), 0
        try:
            self.db.execute("BEGIN IMMEDIATE")
            for due, request in requests:
                now = time.monotonic()
                if answers and now - started > BATCH:
                    break
                answers.append({"error": LATE} if now > due else self._carry_out(request))
            before = time.monotonic()
            self.db.execute("COMMIT")
            self.commit_seconds = time.monotonic() - before
        except sqlite3.Error as problem:  # disk full, for one: nothing of this batch has happened
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            return [{"error": f"not stored: {problem}"}] * max(len(answers), 1)
        self.created += self._new
        return answers

    def _carry_out(self, request: Message) -> Message:
        """Carry out one request: everything is checked before anything is changed."""
        try:
            match request["op"]:
                case "put":
                    return self._put(_name(request["item"]), _name(request["owner"]), request["data"])
                case "get":
                    return self._get(_name(request["item"]))
                case "mint":
                    owners = {_name(item): _name(owner) for item, owner in request["owners"].items()}
                    return self._mint(owners, request["data"])
                case "move":
                    return self._move([(_name(item), _name(a), _name(b)) for item, a, b in request["moves"]])
                case "owned":
                    rows = self.db.execute("SELECT name FROM item WHERE owner = ?", (_name(request["owner"]),))
                    return {"items": [name for (name,) in rows]}
                case other:
                    return {"error": f"no operation {other!r}: there are put, get, mint, move and owned"}
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as problem:
            return {"error": f"{type(problem).__name__}: {problem}"}

    def _put(self, item: str, owner: str, data: str) -> Message:
        row = self.db.execute("SELECT owner, blob FROM item WHERE name = ?", (item,)).fetchone()
        if row and row[0] != owner:
            return {"error": f"item {item!r} belongs to {row[0]!r}"}
        digest, blob = self._keep(base64.b64decode(data, validate=True))
        if row:
            self.db.execute("UPDATE item SET blob = ? WHERE name = ?", (blob, item))
            self._release(row[1])
        else:
            self._create(item, owner, blob)
        return {"hash": digest.hex()}

    def _create(self, item: str, owner: str, blob: int) -> None:
        self.db.execute("INSERT INTO item VALUES (?, ?, ?)", (item, owner, blob))
        self._new += 1

    def _keep(self, content: bytes) -> tuple[bytes, int]:
        """Refer to content, storing it where it is new; give its hash and row."""
        digest = hashlib.sha256(content).digest()
        row = self.db.execute(
            "INSERT INTO blob (hash, refs, data) VALUES (?, 1, ?) "
            "ON CONFLICT (hash) DO UPDATE SET refs = refs + 1 RETURNING id",
            (digest, content),
        ).fetchone()
        return digest, row[0]

    def _release(self, blob: int) -> None:
        self.db.execute("UPDATE blob SET refs = refs - 1 WHERE id = ?", (blob,))
        self.db.execute("DELETE FROM blob WHERE id = ? AND refs = 0", (blob,))

    def _get(self, item: str) -> Message:
        row = self.db.execute(
            "SELECT owner, hash, data FROM item JOIN blob ON blob.id = item.blob WHERE name = ?", (item,)
        ).fetchone()
        if row is None:
            return {"owner": None, "hash": None, "data": None}
        owner, digest, content = row
        if hashlib.sha256(content).digest() != digest:
            return {"error": f"the content of {item!r} does not match its hash"}
        return {"owner": owner, "hash": digest.hex(), "data": base64.b64encode(content).decode()}

    def _mint(self, owners: dict[str, str], data: str) -> Message:
        content, out = base64.b64decode(data, validate=True), {}
        for item, owner in owners.items():
            row = self.db.execute("SELECT owner FROM item WHERE name = ?", (item,)).fetchone()
            if row is None:
                self._create(item, owner, self._keep(content)[1])
            out[item] = row[0] if row else owner
        return {"owners": out}

    def _move(self, moves: list[tuple[str, str, str]]) -> Message:
        to_do: dict[str, str] = {}
        for item, giver, taker in moves:
            row = self.db.execute("SELECT owner FROM item WHERE name = ?", (item,)).fetchone()
            owner = to_do.get(item, row[0] if row else None)
            if owner is None:
                return {"error": f"unknown item {item!r}"}
            if owner not in (giver, taker):
                return {"error": f"item {item!r} belongs to {owner!r}, not to {giver!r}"}
            to_do[item] = taker
        self.db.executemany("UPDATE item SET owner = ? WHERE name = ?", [(to, item) for item, to in to_do.items()])
        return {"moved": len(moves)}

    def count(self) -> int:
        """Give the number of items."""
        return self.db.execute("SELECT count(*) FROM item").fetchone()[0]

    def close(self) -> None:
        self.db.close()


def _name(text: object) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= 200:
        raise TypeError(f"{str(text)[:50]!r} is no name: 1 to 200 characters")
    return text


class Client:
    """A simulated client: a creator who uploads, opens and gives away assets, over a connection of its own."""

    ITEMS = 6  # items that it brings along
    SIZES = (2, 4, 8, 24)  # KiB of content

    def __init__(self, name: str, seed: int):
        self.name, self.rng = name, random.Random(f"{seed} {name}")
        self.line = Line(self.hear)
        self.items: list[str] = []
        self._moving: dict[int, tuple[str, Client]] = {}
        self._next = 0

    def arrive(self) -> None:
        """Bring items along, unless the registry knows them from before."""
        owners = {f"{self.name}/{k}": self.name for k in range(self.ITEMS)}
        self.line.send({"op": "mint", "id": "mint", "owners": owners, "data": self._content()})

    def settle_in(self) -> None:
        """Ask for all that is one's own."""
        self.line.send({"op": "owned", "id": "owned", "owner": self.name})

    def _content(self) -> str:
        return base64.b64encode(self.rng.randbytes(1024 * self.rng.choice(self.SIZES))).decode()

    def act(self, others: Sequence[Client], due: float) -> bool:
        """Ask for something; False where there is nothing to ask about."""
        if not self.items:
            return False
        kind, self._next = self.rng.random(), self._next + 1
        item = self.items[self.rng.randrange(len(self.items))]
        request: Message = {"id": self._next, "due": on_wire(due)}
        if kind < 0.25 and len(self.items) > 1:
            taker = others[self.rng.randrange(len(others))]
            self.items.remove(item)  # nobody's to use until we know where it is
            self._moving[self._next] = item, taker
            return self.line.send(request | {"op": "move", "moves": [[item, self.name, taker.name]]})
        if kind < 0.6:
            return self.line.send(request | {"op": "put", "item": item, "owner": self.name, "data": self._content()})
        return self.line.send(request | {"op": "get", "item": item})

    def hear(self, message: Message, _: Line) -> None:
        number, done = message.get("id"), message.get("ok")
        if number == "mint":
            (self.settle_in if done else self.arrive)()  # where it came too late: once more
        elif number == "owned" and not done:
            self.settle_in()
        elif number == "owned":
            self.items = message["items"]
        elif isinstance(number, int) and number in self._moving:
            item, taker = self._moving.pop(number)
            (taker if done else self).items.append(item)


@dataclass(frozen=True, slots=True)
class Request:
    """A request on its way through the registry."""

    message: Message
    line: Line
    since: float  # monotonic; when it was made


class Assets(Service):
    """Serve put, get, mint and move requests, and the clients that make them."""

    kind, size_name, ordinary = "assets", "clients", 40
    RATE = 12.0  # requests a second of one client

    def __init__(self, options: Options, meter: Meter):
        super().__init__(options, meter)
        self.store = Store(options.data)
        self.thread = ThreadPoolExecutor(1)  # where the disk is waited for
        self.window = Window(16)
        self.gate = Gate(self.window, DEADLINE / 2, self._act, self.meter.shed)
        self.backlog: Backlog[Request] = Backlog(0.2 * DEADLINE, self._refuse)
        self.clients: list[Client] = []
        self.commits: list[float] = []
        self.items = self.store.created

    def hear(self, message: Message, line: Line) -> None:
        now = time.monotonic()
        due = due_of(message, now, DEADLINE, PATIENCE)
        request = Request(message, line, min(now, due - DEADLINE))
        if line.there in self.own:  # it has come through the gate before it was sent
            self.backlog.add(due, request)
        else:
            self.gate.enter(partial(self._let_in, due, request), partial(self._send_away, request))

    def _let_in(self, due: float, request: Request) -> None:
        self.window.flying += 1
        self.backlog.add(due, request)

    def _send_away(self, request: Request) -> None:
        self.meter.shed()
        request.line.answer(request.message, error=LATE)

    def _refuse(self, request: Request) -> None:
        self.window.back(False)
        self._send_away(request)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.backlog.wait()
            batch: list[tuple[float, Request]] = []
            while len(batch) < max(8, self.window.size) and (work := self.backlog.take()):
                batch.append(work)
            while batch:
                todo = [(due, request.message) for due, request in batch]
                answers = await loop.run_in_executor(self.thread, self.store.apply, todo)
                self.commits.append(self.store.commit_seconds)
                for (due, request), answer in zip(batch, answers, strict=False):
                    self._answer(request, due, answer)
                batch = batch[len(answers) :]

    def _answer(self, request: Request, due: float, answer: Message) -> None:
        now, error = time.monotonic(), answer.get("error", "")
        if error == LATE:
            self.meter.shed()
        else:
            self.meter.done(now <= due and not error.startswith("not stored"), now - request.since)
        self.window.back(now <= due)
        request.line.answer(request.message, **answer)

    async def load(self) -> None:
        counted = 0.0
        while True:
            await self.connect()
            await self.gate.play(self.RATE * self.size)
            if time.monotonic() > counted + 1:
                counted = time.monotonic()
                self.items = await asyncio.get_running_loop().run_in_executor(self.thread, self.store.count)

    def _act(self, moment: float) -> None:
        client = self.pick(self.clients)
        if client and client.act(self.clients, moment + DEADLINE):
            self.window.flying += 1
        else:
            self.meter.shed()

    async def connect(self) -> bool:
        """Let some more clients in, if there are to be more."""
        for k in range(len(self.clients), min(self.size, len(self.clients) + 10)):
            client = Client(f"client{k}", self.options.seed)
            if not await self.meet(client.line):
                return False
            self.clients.append(client)
            client.arrive()
        return len(self.clients) < self.size

    def metrics(self) -> dict[str, int | float]:
        commits, self.commits = self.commits, []
        return {
            "commits": len(commits),
            "commit_ms": 1e3 * sum(commits) / max(len(commits), 1),
            "items": self.items,
        }

    def close(self) -> None:
        super().close()
        for client in self.clients:
            client.line.close()
        self.thread.shutdown(wait=True)
        self.store.close()


if __name__ == "__main__":
    sys.exit(run(Assets))
