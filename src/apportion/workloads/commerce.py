"""A marketplace: orders come in over sockets, match by price and time, and settle through the asset registry.

    enter  {"trader", "key"}                                    bring a purse and some goods; the key signs orders
    order  {"trader", "side", "goods", "limit", "count", "tag"}   side: buy or sell; tag: HMAC of the order
    depth  {"goods"}                                            the book, best prices first

An order is answered when all the escrow that it matched is released, and counts as in time only then. With the
peer `assets` an item changes hands at the registry first: where the registry refuses in time the trade is undone,
where it does not answer the escrow stays shut until it does. Two markets at one registry need different seeds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from apportion.workloads.load import Backlog, Gate, Window
from apportion.workloads.market import Market, Trade, Uncovered
from apportion.workloads.net import LATE, Line, Message, due_of, on_wire
from apportion.workloads.probe import Meter, Options, Service, run

DEADLINE = 0.15  # seconds from order to released escrow
PATIENCE = 1.0  # seconds; no order may wait for longer
LIFETIME = 4.0  # seconds until a resting order is taken back
GOODS = ("ore", "timber", "silk", "spice", "potion", "sword", "map", "gem")
COINS, ITEMS = 20_000, 24  # what a trader brings along
DESCRIPTION = base64.b64encode(b"one unit of goods; its kind and number are in its name").decode()


def signature(key: str, message: Message) -> str:
    """Sign what makes an order."""
    text = "|".join(str(message[name]) for name in ("trader", "side", "goods", "limit", "count"))
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Ticket:
    """An order on its way: who waits for it, and how many of its trades are still in escrow."""

    message: Message
    line: Line
    since: float  # monotonic; when it was made
    due: float
    open: int = 0
    busted: int = 0


class Client:
    """A simulated trader: buys low, sells high, and remembers what it has at hand."""

    def __init__(self, number: int, seed: int):
        self.name, self.rng = f"trader{number}", random.Random(f"{seed} {number}")
        self.key = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        self.line = Line(self.hear)
        self.coins, self.items = 0, dict.fromkeys(GOODS, 0)
        self.price = dict.fromkeys(GOODS, 100)

    def enter(self) -> None:
        self.line.send({"op": "enter", "id": 0, "trader": self.name, "key": self.key})

    def trade(self, due: float) -> bool:
        """Place an order; False where there is nothing at hand to trade with."""
        goods, count = GOODS[self.rng.randrange(len(GOODS))], self.rng.randrange(1, 4)
        limit = max(1, round(self.price[goods] * self.rng.gauss(1.0, 0.05)))
        can_sell, can_buy = self.items[goods] >= count, self.coins >= limit * count
        if not (can_sell or can_buy):
            return False
        side = "sell" if can_sell and (not can_buy or self.rng.random() < 0.5) else "buy"
        order: Message = {"trader": self.name, "side": side, "goods": goods, "limit": limit, "count": count}
        return self.line.send(order | {"op": "order", "id": 1, "tag": signature(self.key, order), "due": on_wire(due)})

    def hear(self, message: Message, _: Line) -> None:
        if message.get("ok"):
            self.coins, self.items = message["coins"], message["items"]
            # Everyone has a view of his own, and it drifts towards the market's and towards what things are worth.
            for goods, price in message["last"].items():
                self.price[goods] = max(1, round(0.8 * price + 0.2 * 100 * self.rng.gauss(1.0, 0.1)))


class Commerce(Service):
    """Match orders, hold the escrow, settle at the registry, and be the traders."""

    kind, size_name, ordinary = "commerce", "traders", 100
    RATE = 10.0  # orders a second of one trader

    def __init__(self, options: Options, meter: Meter):
        super().__init__(options, meter)
        self.market = Market(GOODS)
        self.keys: dict[str, str] = {}
        self.at: dict[str, Line] = {}  # where traders are told of their trades
        self.window = Window(32)
        self.gate = Gate(self.window, DEADLINE / 2, self._act, self.meter.shed)
        self.backlog: Backlog[Ticket] = Backlog(0.2 * DEADLINE, self._refuse)
        self.resting: deque[tuple[float, int]] = deque()  # orders by the time at which they are taken back
        self.clients: list[Client] = []
        self.registry = self.peers.get("assets")
        self.prefix = f"market{options.seed}"
        self.unsure: deque[Trade] = deque()  # the registry did not say whether the items have moved
        self.settled = self.busted = self.placed = 0

    def hear(self, message: Message, line: Line) -> None:
        match message["op"]:
            case "order":
                now = time.monotonic()
                due = due_of(message, now, DEADLINE, PATIENCE)
                ticket = Ticket(message, line, min(now, due - DEADLINE), due)
                if line.there in self.own:  # it has come through the gate before it was sent
                    self.backlog.add(due, ticket)
                else:
                    self.gate.enter(partial(self._let_in, ticket), partial(self._send_away, ticket))
            case "enter":
                self._enter(message["trader"], message["key"], line)
                line.answer(message, **self._at_hand(message["trader"]))
            case "depth":
                book = self.market.books[message["goods"]]
                line.answer(message, buy=book.depth(True), sell=book.depth(False))
            case other:
                raise ValueError(f"no operation {other!r}: there are enter, order and depth")

    def _enter(self, name: str, key: str, line: Line) -> None:
        if not (isinstance(name, str) and isinstance(key, str) and 0 < len(name) <= 100 and 0 < len(key) <= 100):
            raise TypeError("trader and key are words of 1 to 100 characters")
        items = {goods: [f"{self.prefix}/{name}/{goods}{k}" for k in range(ITEMS // len(GOODS))] for goods in GOODS}
        self.market.enter(name, COINS, items)
        self.keys[name], self.at[name] = key, line
        self._mint([(item, name) for held in items.values() for item in held])

    def _mint(self, items: list[tuple[str, str]]) -> None:
        """Tell the registry of items, again and again until it answers; what it knows already it corrects."""
        if self.registry is None:
            return

        def answered(answer: Message | None) -> None:
            if answer is None or not answer.get("ok"):
                asyncio.get_running_loop().call_later(0.5, self._mint, items)
                return
            for item, owner in items:
                self._believe(item, owner, answer["owners"][item])

        owners = {item: f"{self.prefix}:{owner}" for item, owner in items}
        message = {"op": "mint", "owners": owners, "data": DESCRIPTION}
        self.registry.ask(message, time.monotonic() + PATIENCE, answered)

    def _believe(self, item: str, holder: str, owner: str) -> None:
        """Where the registry, which outlives us, knows another owner of an item, it is right."""
        taker = owner.removeprefix(f"{self.prefix}:")
        if taker != holder:
            self.market.hand_over(item, item.rsplit("/", 1)[1].rstrip("0123456789"), holder, taker)

    def _at_hand(self, name: str) -> Message:
        trader = self.market.traders[name]
        items = {goods: len(held) for goods, held in trader.items.items()}
        return {"coins": trader.coins, "items": items, "last": self.market.last, "worth": self.market.worth(name)}

    def _let_in(self, ticket: Ticket) -> None:
        self.window.flying += 1
        self.backlog.add(ticket.due, ticket)

    def _refuse(self, ticket: Ticket) -> None:
        self.window.back(False)
        self._send_away(ticket)

    def _send_away(self, ticket: Ticket) -> None:
        self.meter.shed()
        ticket.line.answer(ticket.message, error=LATE)

    async def serve(self) -> None:
        await self.backlog.work(self._take)

    def _take(self, due: float, ticket: Ticket) -> None:
        """Match an order and start to settle what it matched."""
        order = ticket.message
        self.window.back(time.monotonic() <= due)
        try:
            name, side, goods, tag = order["trader"], order["side"], order["goods"], order["tag"]
            if not hmac.compare_digest(str(tag).encode(), signature(self.keys[name], order).encode()):
                raise ValueError("the tag does not sign this order")
            if side not in ("buy", "sell") or type(order["limit"]) is not int or type(order["count"]) is not int:
                raise ValueError("side is buy or sell, limit and count are whole numbers")
            placed, trades = self.market.place(name, side == "buy", goods, order["limit"], order["count"])
        except (LookupError, TypeError, ValueError) as problem:
            if isinstance(problem, Uncovered):  # its trader thought he had more; nobody is to blame
                self.meter.done(time.monotonic() <= due, time.monotonic() - ticket.since)
            ticket.line.answer(order, error=f"{type(problem).__name__}: {problem}")
            return
        self.placed += 1
        if placed.left:
            self.resting.append((ticket.since + LIFETIME, placed.number))
        ticket.open = len(trades)
        for trade in trades:
            self._settle(trade, ticket)
        if not trades:
            self._finish(ticket)

    def _settle(self, trade: Trade, ticket: Ticket | None) -> None:
        """Move the items of a trade, then release its escrow."""
        if self.registry is None:
            self._settled(trade)
            self._closed(ticket, True)
            return
        seller, buyer = f"{self.prefix}:{trade.seller}", f"{self.prefix}:{trade.buyer}"
        moves = [(item, seller, buyer) for item in trade.items]
        due = (ticket.due if ticket else time.monotonic() + PATIENCE) - 0.1 * DEADLINE
        self.registry.ask({"op": "move", "moves": moves}, due, lambda answer: self._moved(trade, ticket, answer))

    def _moved(self, trade: Trade, ticket: Ticket | None, answer: Message | None) -> None:
        if answer is None:
            self.unsure.append(trade)  # it may have happened: the escrow stays shut until we know
        elif answer.get("ok"):
            self._settled(trade)
        else:
            self.market.bust(trade)  # it has not happened
            self.busted += 1
            if answer.get("error") != LATE:  # the registry sees things differently: find out how
                self._mint([(item, trade.seller) for item in trade.items])
        self._closed(ticket, answer is not None and bool(answer.get("ok")))

    def _settled(self, trade: Trade) -> None:
        """Release the escrow of a trade and tell both sides."""
        self.market.settle(trade)
        self.settled += 1
        for name in (trade.buyer, trade.seller):
            if line := self.at.get(name):
                told = {
                    "op": "traded",
                    "ok": True,
                    "goods": trade.goods,
                    "count": len(trade.items),
                    "paid": trade.coins,
                }
                line.send(told | self._at_hand(name))

    def _closed(self, ticket: Ticket | None, settled: bool) -> None:
        if ticket:
            ticket.open -= 1
            ticket.busted += not settled
            if not ticket.open:
                self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        """Answer an order whose escrow is released, or will not be in time."""
        now, order = time.monotonic(), ticket.message
        self.meter.done(now <= ticket.due and not ticket.busted, now - ticket.since)
        book = self.market.books[order["goods"]]
        ticket.line.answer(
            order,
            settled=not ticket.busted,
            **self._at_hand(order["trader"]),
            depth={"buy": book.depth(True), "sell": book.depth(False)},
        )

    async def load(self) -> None:
        checked = asked = 0.0
        while True:
            await self.connect()
            await self.gate.play(self.RATE * self.size)
            now = time.monotonic()
            while self.resting and self.resting[0][0] < now:
                self.market.cancel(self.resting.popleft()[1])
            if now > asked + 0.01 and self.unsure:  # ask again, with care: the registry is in trouble
                asked = now
                self._settle(self.unsure.popleft(), None)
            if now > checked + 1:
                checked = now
                self.market.check()

    def _act(self, moment: float) -> None:
        """Have one of our own traders place an order; a second one may try where the first has nothing at hand."""
        for _ in range(2):
            client = self.pick(self.clients)
            if client and client.trade(moment + DEADLINE):
                self.window.flying += 1
                return
        self.meter.shed()  # too much escrow is stuck

    async def connect(self) -> bool:
        """Let some more traders in, if there are to be more."""
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
        placed, settled, busted = self.placed, self.settled, self.busted
        self.placed = self.settled = self.busted = 0
        return {
            "orders": placed,
            "settled": settled,
            "busted": busted,
            "in_escrow": len(market.trades),
            "resting": len(market.orders),
            "coins": market.minted_coins,
            "items": market.minted_items,
        }

    def close(self) -> None:
        super().close()
        for client in self.clients:
            client.line.close()


if __name__ == "__main__":
    sys.exit(run(Commerce))
