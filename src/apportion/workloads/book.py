"""One kind of goods: its resting orders in price-time order. Of equal prices, whoever came first trades first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Order:
    """A limit order at rest; in escrow with it are `left` goods (sell) or `limit` coins for each of them (buy)."""

    number: int  # rises with time
    trader: str
    buys: bool
    goods: str
    limit: int  # coins for one
    left: int  # still to be traded
    ends: int  # ms; taken back then

    @property
    def coins(self) -> int:
        """What is in escrow of coins."""
        return self.limit * self.left if self.buys else 0


@dataclass(slots=True)
class Book:
    """Sell and buy orders by price: `prices` ascends, with those of buys negated, so that the first is the best."""

    levels: tuple[dict[int, deque[Order]], dict[int, deque[Order]]] = field(default_factory=lambda: ({}, {}))
    prices: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))  # of sells, of buys

    def best(self, buys: bool) -> Order | None:
        """Give the order that would trade first."""
        return self.levels[buys][self.prices[buys][0]][0] if self.prices[buys] else None

    def rest(self, order: Order) -> None:
        key = -order.limit if order.buys else order.limit
        if key not in self.levels[order.buys]:
            self.levels[order.buys][key] = deque()
            insort(self.prices[order.buys], key)
        self.levels[order.buys][key].append(order)

    def remove(self, order: Order) -> None:
        key = -order.limit if order.buys else order.limit
        level = self.levels[order.buys][key]
        level.remove(order)
        if not level:
            del self.levels[order.buys][key]
            del self.prices[order.buys][bisect_left(self.prices[order.buys], key)]

    def depth(self, buys: bool, levels: int = 10) -> list[tuple[int, int]]:
        """Give the best prices with the number of goods offered or wanted at each."""
        best = self.prices[buys][:levels]
        return [(abs(key), sum(order.left for order in self.levels[buys][key])) for key in best]
