"""The marketplace's own load: traders who buy low, sell high, auction their items off and bid for others'."""

from __future__ import annotations

import hashlib
import random

from apportion.workloads.commands import Fields, signature
from apportion.workloads.net import Line, Message, on_wire

GOODS = ("ore", "timber", "silk", "spice", "potion", "sword", "map", "gem")
LIFETIME = 4  # seconds for which they leave an order at rest
SALE = 1  # seconds for which they offer an item
LISTING, BIDDING = 0.25, 0.15  # parts of what they do; the rest are orders


class Client:
    """A simulated trader, who remembers what it has at hand."""

    def __init__(self, number: int, seed: int):
        self.name, self.rng = f"trader{number}", random.Random(f"{seed} {number}")
        self.kind = f"market{seed}/"  # what it knows the worth of
        self.key = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        self.line = Line(self.hear)
        self.coins, self.items, self.unique = 0, dict.fromkeys(GOODS, 0), list[str]()
        self.price = dict.fromkeys(GOODS, 100)
        self.lots: list[list[int]] = []  # number and price of some that are open
        self._next, self._asked = 0, 0  # number of the next command, 0 before one is let in
        self._offered: dict[int, str] = {}  # number of the command -> item

    def enter(self) -> None:
        self.line.send({"op": "enter", "id": "enter", "trader": self.name, "key": self.key})

    def trade(self, due: float) -> bool:
        """Command something; False where there is nothing at hand to trade with."""
        if not self._next:
            return False
        self._asked += 1
        if self._asked % 8 == 0:
            self.line.send({"op": "lots", "id": "lots"})
        kind = self.rng.random()
        if kind < LISTING:
            return self._offer(due)
        if kind < LISTING + BIDDING and self.lots:
            number, price = self.lots[self.rng.randrange(len(self.lots))]
            most = price + self.rng.randrange(1, 40)
            return self.coins >= most and self._send(due, {"op": "bid", "lot": number, "most": most})
        return self._order(due)

    def _offer(self, due: float) -> bool:
        if not self.unique:
            return False
        item, reserve = self.unique.pop(self.rng.randrange(len(self.unique))), self.rng.randrange(40, 80)
        self._offered[self._next] = item
        return self._send(due, {"op": "list", "item": item, "reserve": reserve, "seconds": SALE})

    def _order(self, due: float) -> bool:
        goods, count = GOODS[self.rng.randrange(len(GOODS))], self.rng.randrange(1, 4)
        limit = max(1, round(self.price[goods] * self.rng.gauss(1.0, 0.05)))
        can_sell, can_buy = self.items[goods] >= count, self.coins >= limit * count
        if not (can_sell or can_buy):
            return False
        side = "sell" if can_sell and (not can_buy or self.rng.random() < 0.5) else "buy"
        order = {"op": "order", "side": side, "goods": goods, "limit": limit, "count": count, "seconds": LIFETIME}
        return self._send(due, order)

    def _send(self, due: float, command: Fields) -> bool:
        command |= {"trader": self.name, "order": self._next}
        self._next += 1
        extra = {"id": self._next - 1, "due": on_wire(due), "tag": signature(self.key, command)}
        return self.line.send(command | extra)

    def hear(self, message: Message, _: Line) -> None:
        number, done = message.get("id"), message.get("ok")
        if message.get("op") == "sold" and message["taker"] == self.name:
            self.unique.append(message["item"])
        elif number == "enter" and not done:  # where it came too late: once more
            self.enter()
        elif number == "enter":
            self._next, self.unique = message["last_order"] + 1, message["unique"]
        elif number == "lots":
            known = [lot for lot in message["lots"] if lot["item"].startswith(self.kind)]  # what others sell is theirs
            self.lots = [[lot["lot"], lot["price"]] for lot in known]
        item = self._offered.pop(number, None) if isinstance(number, int) else None
        if item and not done and "registry" not in message["error"]:
            self.unique.append(item)  # not taken: it may be offered again
        if done and "coins" in message:
            self.coins = message["coins"]
            self.items |= message["items"]
            # Everyone has a view of his own, and it drifts towards the market's and towards what things are worth.
            for goods, price in message["last"].items():
                self.price[goods] = max(1, round(0.8 * price + 0.2 * 100 * self.rng.gauss(1.0, 0.1)))
