"""A marketplace: order books, auctions and an exchange, with escrow; every answer is on disk before it is given.

    enter     {"trader", "key"}           bring a purse and some items; the key signs commands from now on
    order     {"side", "goods", "count", "limit"?, "seconds"?}   side: buy or sell; no limit: at the market
    cancel    {"number"}                  take an order back
    list      {"item", "reserve", "seconds"}   offer an item: the highest bid gets it, at the second highest
    bid       {"lot", "most"}
    swap      {"give", "amount", "least"?}     give: coins or credits
    mint      {"to", "coins"?, "credits"?, "goods"?, "item"?}   the treasury's; below 0 takes out
    account   {}                          what is at hand and at rest, and the number of the last command
    depth     {"goods"}                   the book, best prices first
    lots      {}                          20 that are open for bids, the newest first
    exchange  {}                          fee, treasury and pool

From `order` to `account` a trader signs (`tag`: see `signature`) and numbers its commands upwards (`order`); so an answer
that was lost is had by sending the same again. What each may say and do: `market.py`. With the peer `assets` the registry
keeps the items that are for sale: a lot is open once they are in the market's custody there, and is paid once they are
the winner's. Where the registry does not answer, coins and item stay where they are until it does. Two markets at one
registry need different seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hmac
import math
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from apportion.workloads.commands import Fields, Refusal, signature, word
from apportion.workloads.journal import Journal
from apportion.workloads.load import SLICE, Backlog, Gate, Window
from apportion.workloads.market import BASIS, READING, TRADERS, TREASURY
from apportion.workloads.net import LATE, Line, Message, due_of
from apportion.workloads.probe import Meter, Options, Service, run
from apportion.workloads.traders import GOODS, Client

DEADLINE = 0.15  # seconds from a command to its durable answer, from the end of an auction to its settlement
PATIENCE = 1.0  # seconds; no command may wait for longer
PERIOD = 0.01  # seconds between two commits, at least: what comes meanwhile shares the next
FEE = 100  # basis points, unless told
COINS, COUNT, ITEMS = 20_000, 6, 8  # a newcomer's purse: coins, of each of the goods, items
DESCRIPTION = base64.b64encode(b"one of a kind; its first owner and number are in its name").decode()


def _fee(text: str) -> int:
    if not text.isdigit() or int(text) > BASIS // 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no fee. Write basis points, a whole number from 0 to {BASIS // 2}."
        )
    return int(text)


def _exchange(text: str) -> tuple[int, int]:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) < 2**62 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no COINS:MICRO-CREDITS. Write for example 1000000:5000000.")
    return int(parts[0]), int(parts[1])


def _secret(text: str) -> str:
    try:
        secret = Path(text).read_text().strip()
    except (OSError, ValueError) as problem:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {problem}. Write the key into a file.") from None
    if len(secret) < 16:
        raise argparse.ArgumentTypeError(f"{text!r} holds a key of {len(secret)} characters. Write at least 16.")
    return secret


@dataclass(slots=True)
class Ticket:
    """A command on its way, and who waits for it: nobody where it is the house's own."""

    command: Fields
    due: float = math.inf  # monotonic
    since: float = 0.0
    line: Line | None = None
    counts: bool = False  # as an operation that was asked for


@dataclass(slots=True)
class Batch:
    """What shares a commit."""

    at: int  # ms
    commands: list[Fields] = field(default_factory=list)
    done: list[tuple[Ticket, Message, str]] = field(default_factory=list)  # answer, or the error


class Commerce(Service):
    """Match orders, hold auctions, keep the escrow on disk, settle at the registry, and be the traders."""

    kind, size_name, ordinary = "commerce", "traders", 100
    RATE = 10.0  # commands a second of one trader

    flags: Mapping[str, Mapping[str, Any]] = {
        "--fee": {"type": _fee, "default": FEE, "metavar": "BASIS-POINTS", "help": "of what a seller is paid"},
        "--exchange": {"type": _exchange, "metavar": "COINS:MICRO-CREDITS", "help": "first reserves of the pool"},
        "--without-load": {"action": "store_true", "help": "no traders of our own: only those who connect"},
        "--operator": {"type": _secret, "metavar": "FILE", "help": "holds the key that signs for the treasury"},
    }

    def __init__(self, options: Options, meter: Meter):
        super().__init__(options, meter)
        self.registry = self.peers.get("assets")
        self.prefix = f"market{options.seed}"
        self.operator: str = options.more.get("operator") or ""
        self.loaded = not options.more.get("without_load")
        self.journal = Journal(options.data)
        self.thread = ThreadPoolExecutor(1)  # where the disk is waited for
        self.market = self.journal.load()
        opening = {"op": "open", "fee": options.more.get("fee", FEE), "custody": self.registry is not None}
        opening |= {"goods": GOODS, "exchange": options.more.get("exchange")}
        self.market.apply(self._clock(), opening)
        try:
            self.journal.keep(self._clock(), [opening])
        except sqlite3.Error as problem:
            raise OSError(f"market.db cannot be written: {problem}") from None
        self.at: dict[str, Line] = {}  # where traders are told of their trades
        self.window, self.asking = Window(64), Window(64)  # commands of traders, and questions to the registry
        self.gate = Gate(self.window, DEADLINE / 2, self._act, self.meter.shed)
        self.backlog: Backlog[Ticket] = Backlog(0.2 * DEADLINE, self._refuse)
        self.clients: list[Client] = []
        self.waiting: dict[int, Ticket] = {}  # lots that are on their way into custody
        self.unsure: deque[int] = deque()  # lots of which the registry did not say whether they have moved
        self.placed = self.settled = self.lost = self.commits = 0

    @staticmethod
    def _clock() -> int:
        return round(1000 * time.time())

    # --- in ------------------------------------------------------------------------------------------------------

    def hear(self, message: Message, line: Line) -> None:
        try:
            self._hear(message, line)
        except Refusal as problem:
            line.answer(message, error=str(problem))

    def _hear(self, message: Message, line: Line) -> None:
        match message.get("op"):
            case "depth":
                book = self.market.book(message)
                line.answer(message, buy=book.depth(True), sell=book.depth(False))
            case "lots":
                line.answer(message, lots=self._lots())
            case "exchange":
                line.answer(message, **self._exchange())
            case str(op) if op in TRADERS or op in ("account", "enter"):
                now = time.monotonic()
                due = due_of(message, now, DEADLINE, PATIENCE)
                ticket = Ticket(message, due, min(now, due - DEADLINE), line, op != "enter")
                if line.there in self.own or not ticket.counts:  # of our own, one has come through the gate before
                    self.backlog.add(due, ticket)
                else:
                    self.gate.enter(partial(self._let_in, ticket), partial(self._send_away, ticket))
            case other:
                raise Refusal(f"no operation {other!r}: there are {', '.join((*TRADERS, *READING))}")

    def _let_in(self, ticket: Ticket) -> None:
        self.window.flying += 1
        self.backlog.add(ticket.due, ticket)

    def _refuse(self, ticket: Ticket) -> None:
        if ticket.counts:
            self.window.back(False)
        self._send_away(ticket)

    def _send_away(self, ticket: Ticket) -> None:
        if ticket.counts:
            self.meter.shed()
        if ticket.line:
            ticket.line.answer(ticket.command, error=LATE)

    # --- a batch: carried out, kept, answered --------------------------------------------------------------------

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.backlog.wait()
            begun, batch, problem = time.monotonic(), self.turn(), ""
            if batch.commands:
                whole = self.journal.full(self.market)
                try:
                    await loop.run_in_executor(self.thread, self.journal.keep, batch.at, batch.commands, whole)
                    self.commits += 1
                except sqlite3.Error as refused:  # disk full, for one: nothing of this batch has happened
                    problem = f"not stored: {refused}. Send it again under its number."
                    self.market = await loop.run_in_executor(self.thread, self.journal.load)
            self.finish(batch, problem)
            await asyncio.sleep(max(0.0, begun + PERIOD - time.monotonic()) if batch.commands else 0)

    def turn(self) -> Batch:
        """Carry out what waits, for a slice of time."""
        batch, until = Batch(self._clock()), time.monotonic() + SLICE
        if (end := self.market.next_end()) is not None and end <= batch.at:
            self._carry_out(Ticket({"op": "tick"}), batch)
        while time.monotonic() < until and (work := self.backlog.take()):
            self._carry_out(work[1], batch)
        return batch

    def _carry_out(self, ticket: Ticket, batch: Batch) -> None:
        command = ticket.command
        if ticket.line:
            command = {name: value for name, value in command.items() if name not in ("id", "due", "tag")}
        try:
            if ticket.line and command["op"] == "enter":
                command = self._newcomer(command)
            elif ticket.line:
                self._must_be_signed(ticket.command)
            if command["op"] == "account" or command["op"] == "wake":
                answer, changed = {}, False
            else:
                answer, changed = self.market.apply(batch.at, command)
        except Refusal as problem:
            batch.done.append((ticket, {}, str(problem)))
            return
        if changed:
            batch.commands.append(command)
        batch.done.append((ticket, answer, ""))

    def _must_be_signed(self, message: Message) -> None:
        trader = self.market.trader(message)
        key = self.operator if trader.name == TREASURY else trader.key
        if not key:
            raise Refusal("the treasury has no key: start the market with --operator FILE.")
        if not hmac.compare_digest(
            str(message.get("tag")).encode("utf-8", "replace"), signature(key, message).encode()
        ):
            raise Refusal(
                f"tag does not sign this command with {trader.name!r}'s key: sign all of it but id, due and tag."
            )

    def _newcomer(self, command: Fields) -> Fields:
        """Give what lets a newcomer in; for one who is here already, with this key, nothing is to be done."""
        name, key = word(command, "trader", 100), word(command, "key", 100)
        known = self.market.traders.get(name)
        if known and known.key == key and name != TREASURY:
            return {"op": "wake"}
        purse = {"coins": COINS, "goods": dict.fromkeys(GOODS, COUNT), "items": self._purse(name)}
        return {"op": "enter", "trader": name, "key": key} | purse

    def finish(self, batch: Batch, problem: str = "") -> None:
        """Answer a batch that is on disk; or, with a problem, one that is not."""
        for ticket, answer, error in batch.done:
            if ticket.line is None:
                self._house(ticket, error, problem)
            else:
                self._answer(ticket, answer, error or (problem if batch.commands else ""))
        news, self.market.news = self.market.news, []
        moving, self.market.moving = self.market.moving, []
        for name, told in news:
            if told["op"] == "sold" and name == told["seller"]:
                late = time.time() - told["ended"] / 1000
                self.meter.done(late <= DEADLINE, late)
                self.settled += 1
            if line := self.at.get(name):
                line.send(told)
        for number in moving:
            self._move(number, time.monotonic() + 0.8 * DEADLINE)

    def _answer(self, ticket: Ticket, answer: Message, error: str) -> None:
        request, line = ticket.command, ticket.line
        assert line is not None
        if ticket.counts:
            self.window.back(time.monotonic() <= ticket.due)
        lot = self.market.lots.get(answer.get("lot", 0))
        if not error and request["op"] == "list" and lot and lot.state == "arriving" and not answer.get("again"):
            self.waiting[lot.number] = ticket  # answered once the item is in custody
            return
        if not error and request["op"] == "enter":
            self.at[request["trader"]] = line
            self._mint(request["trader"])
        self._reply(ticket, error, **answer)

    def _reply(self, ticket: Ticket, error: str, **answer: Any) -> None:
        now, request, line = time.monotonic(), ticket.command, ticket.line
        assert line is not None
        if ticket.counts:
            self.meter.done(now <= ticket.due and not error.startswith(("not stored", "registry")), now - ticket.since)
        if error:
            line.answer(request, error=error)
            return
        if request["op"] in ("enter", "account"):
            answer = self._account(request["trader"])
        elif request["op"] == "order":
            self.placed += 1
            answer |= {"settled": True, **self._at_hand(request["trader"], [request["goods"]])}
            book = self.market.books[request["goods"]]
            answer["depth"] = {"buy": book.depth(True), "sell": book.depth(False)}
        line.answer(request, **answer)

    # --- out -----------------------------------------------------------------------------------------------------

    def _at_hand(self, name: str, goods: list[str]) -> Message:
        trader, last = self.market.traders[name], self.market.last
        items = {one: trader.goods.get(one, 0) for one in goods}
        return {"coins": trader.coins, "items": items, "last": {one: last[one] for one in goods if one in last}}

    def _account(self, name: str) -> Message:
        trader = self.market.traders[name]
        out = {"credits": trader.credits, "unique": sorted(self.market.hands.get(name, ()))}
        standing = [self.market.orders[number] for number in trader.orders]
        keys = ("number", "buys", "goods", "limit", "left")
        orders = [{key: getattr(order, key) for key in keys} for order in standing]
        return out | self._at_hand(name, list(trader.goods)) | {"orders": orders, "last_order": trader.last}

    def _lots(self) -> list[Message]:
        opened = (lot for lot in reversed(self.market.lots.values()) if lot.state == "open")
        keys = ("item", "seller", "price", "leader", "ends")
        return [{"lot": lot.number} | {key: getattr(lot, key) for key in keys} for lot in islice(opened, 20)]

    def _exchange(self) -> Message:
        market = self.market
        out: Message = {"fee": market.fee, "treasury": market.traders[TREASURY].coins}
        return out | ({"coins": market.pool.reserve[0], "credits": market.pool.reserve[1]} if market.pool else {})

    # --- the registry --------------------------------------------------------------------------------------------

    def _purse(self, name: str) -> list[str]:
        """Name the items that a newcomer brings along."""
        return [f"{self.prefix}/{name}/{k}" for k in range(ITEMS)]

    def _mint(self, name: str) -> None:
        """Tell the registry what a newcomer brought, again and again until it answers; what it knows it leaves."""
        if self.registry is None:
            return

        def answered(answer: Message | None) -> None:
            if answer is None or not answer.get("ok"):
                asyncio.get_running_loop().call_later(0.5, self._mint, name)

        owners = dict.fromkeys(self._purse(name), f"{self.prefix}:{name}")
        self.registry.ask({"op": "mint", "owners": owners, "data": DESCRIPTION}, time.monotonic() + PATIENCE, answered)

    def _move(self, number: int, due: float) -> None:
        """Ask the registry to take an item into custody, or to hand it over: asking twice does no harm."""
        lot = self.market.lots.get(number)
        if self.registry is None or lot is None or lot.state == "open":
            return
        arrives = lot.state == "arriving"
        ends = (f"{self.prefix}:{lot.seller}", self.prefix) if arrives else (self.prefix, f"{self.prefix}:{lot.taker}")
        self.asking.flying += 1
        self.registry.ask({"op": "move", "moves": [[lot.item, *ends]]}, due, partial(self._moved, number, lot.state))

    def _moved(self, number: int, state: str, answer: Message | None) -> None:
        error, lot = "" if answer is None else str(answer.get("error", "")), self.market.lots.get(number)
        unheard = answer is None or error == LATE or error.startswith("not stored")
        self.asking.back(not unheard)
        # What a newcomer brought may not be known there yet: it will be.
        unminted = error.startswith("unknown item") and lot is not None and lot.item in self._purse(lot.seller)
        if unheard or unminted:
            self.unsure.append(number)  # it may have happened: coins and item stay until we know
            if ticket := self.waiting.pop(number, None):
                self._reply(ticket, f"registry does not answer: lot {number} waits for it. Send the same again to see.")
            return
        # Only we take anything out of custody: where it is not there any more, we have handed it over before.
        op = "left" if state == "leaving" else "lost" if error else "arrived"
        self.backlog.add(math.inf, Ticket({"op": op, "lot": number, "why": error}))

    def _house(self, ticket: Ticket, error: str, problem: str) -> None:
        """See to who waits for what the registry has said."""
        command = ticket.command
        if "lot" not in command or error:  # with an error: it has said so before
            return
        if problem:
            self.unsure.append(command["lot"])
        elif waiting := self.waiting.pop(command["lot"], None):
            lost = f"the registry refuses: {command['why']}" if command["op"] == "lost" else ""
            self._reply(waiting, lost, lot=command["lot"], state="open")
        self.lost += command["op"] == "lost" and not problem

    # --- load ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await super().start()
        for name in self.market.traders.keys() - {TREASURY}:
            self._mint(name)

    async def load(self) -> None:
        while True:
            await self.connect()
            await self.gate.play(self.RATE * self.size if self.loaded else 0)
            for _ in range(min(len(self.unsure), int(self.asking.size - self.asking.flying))):  # ask again, with care
                self._move(self.unsure.popleft(), time.monotonic() + PATIENCE)
            end = self.market.next_end()
            if end is not None and end <= self._clock() and not len(self.backlog):
                self.backlog.add(math.inf, Ticket({"op": "wake"}))

    def _act(self, moment: float) -> None:
        """Have one of our own traders command something."""
        client = self.pick(self.clients)
        if client and client.trade(moment + DEADLINE):
            self.window.flying += 1
        else:
            self.meter.shed()  # too much escrow is stuck

    async def connect(self) -> bool:
        """Let some more traders in, if there are to be more."""
        if not self.loaded:
            return False
        for number in range(len(self.clients), min(self.size, len(self.clients) + 10)):
            client = Client(number, self.options.seed)
            if not await self.meet(client.line):
                return False
            self.clients.append(client)
            client.enter()
        return len(self.clients) < self.size

    def metrics(self) -> dict[str, int | float]:
        market = self.market
        market.check()
        out = {"orders": self.placed, "settled": self.settled, "busted": self.lost, "commits": self.commits}
        self.placed = self.settled = self.lost = self.commits = 0
        return out | {
            "in_escrow": sum(lot.state != "open" for lot in market.lots.values()),
            "resting": len(market.orders),
            "lots": len(market.lots),
            "coins": market.made["coins"],
            "credits": market.made["credits"],
            "items": market.made["items"],
            "treasury": market.traders[TREASURY].coins,
        }

    def close(self) -> None:
        super().close()
        for client in self.clients:
            client.line.close()
        self.thread.shutdown(wait=True)
        self.journal.close()


if __name__ == "__main__":
    sys.exit(run(Commerce))
