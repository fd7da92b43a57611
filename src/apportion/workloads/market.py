"""A market for items: order books in price-time order, escrow, and settlement that cannot lose a coin or an item.

Coins and items that back an order leave the trader's hands when it is placed. A match makes a Trade, still in
escrow; `settle` hands both sides over, `bust` gives both back. Nothing here waits, reads a clock or fails halfway.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field


class Uncovered(ValueError):
    """An order that its trader has not enough at hand for."""


@dataclass(slots=True)
class Trader:
    """What a trader has at hand; what backs orders is not in here."""

    name: str
    coins: int
    items: dict[str, list[str]]  # goods -> items


@dataclass(slots=True)
class Order:
    """A limit order; `items` (sell) or `limit` coins for each unit left (buy) are in escrow."""

    number: int
    trader: str
    buys: bool
    goods: str
    limit: int  # coins for one item
    left: int  # items still to be traded
    items: list[str]


@dataclass(frozen=True, slots=True)
class Trade:
    """A match between two orders; `coins` of the buyer and `items` of the seller are in escrow."""

    number: int
    buyer: str
    seller: str
    goods: str
    items: tuple[str, ...]
    coins: int


@dataclass(slots=True)
class Book:
    """The resting orders of one kind of goods, best price first and then by time."""

    levels: tuple[dict[int, deque[Order]], dict[int, deque[Order]]] = field(
        default_factory=lambda: ({}, {})
    )  # sell, buy
    prices: tuple[list[int], list[int]] = field(
        default_factory=lambda: ([], [])
    )  # ascending; sells as they are, buys negated

    def best(self, buys: bool) -> Order | None:
        """Give the order that would trade first; orders taken back are forgotten on the way."""
        prices, levels = self.prices[buys], self.levels[buys]
        while prices:
            level = levels[prices[0]]
            while level:
                if level[0].left:
                    return level[0]
                level.popleft()
            del levels[prices.pop(0)]
        return None

    def rest(self, order: Order) -> None:
        key = -order.limit if order.buys else order.limit
        level = self.levels[order.buys].get(key)
        if level is None:
            level = self.levels[order.buys][key] = deque()
            insort(self.prices[order.buys], key)
        level.append(order)

    def depth(self, buys: bool, levels: int = 10) -> list[tuple[int, int]]:
        """Give the best prices with the number of items offered or wanted at each."""
        out: list[tuple[int, int]] = []
        for key in self.prices[buys]:
            if amount := sum(order.left for order in self.levels[buys][key]):
                out.append((abs(key), amount))
                if len(out) == levels:
                    break
        return out


class Market:
    """Traders, their goods, the books between them, and what is in escrow."""

    def __init__(self, goods: tuple[str, ...]):
        self.goods = goods
        self.traders: dict[str, Trader] = {}
        self.books = {name: Book() for name in goods}
        self.orders: dict[int, Order] = {}  # resting
        self.trades: dict[int, Trade] = {}  # matched and not yet settled
        self.last = dict.fromkeys(goods, 100)  # price of the last trade
        self.minted_coins = self.minted_items = 0
        self._next = 0

    def enter(self, name: str, coins: int, items: dict[str, list[str]]) -> Trader:
        """Let a trader in with what it brings along."""
        if name in self.traders:
            raise ValueError(f"trader {name!r} is here already")
        trader = Trader(name, coins, {goods: list(items.get(goods, ())) for goods in self.goods})
        self.traders[name] = trader
        self.minted_coins += coins
        self.minted_items += sum(map(len, trader.items.values()))
        return trader

    def place(self, name: str, buys: bool, goods: str, limit: int, count: int) -> tuple[Order, list[Trade]]:
        """Take an order into escrow, match it, let the rest of it rest."""
        trader, book = self.traders[name], self.books[goods]
        if not (0 < limit <= 10**9 and 0 < count <= 1000):
            raise ValueError("a limit is 1 to 1000000000 coins, a count 1 to 1000 items")
        if buys:
            if trader.coins < limit * count:
                raise Uncovered(f"{name!r} has {trader.coins} coins at hand and needs {limit * count}")
            trader.coins -= limit * count
            items = []
        else:
            if len(trader.items[goods]) < count:
                raise Uncovered(f"{name!r} has {len(trader.items[goods])} {goods} at hand and needs {count}")
            items, trader.items[goods] = trader.items[goods][:count], trader.items[goods][count:]
        self._next += 1
        order, trades = Order(self._next, name, buys, goods, limit, count, items), []
        while order.left and (other := book.best(not buys)):
            if (other.limit > limit) if buys else (other.limit < limit):
                break
            if other.trader == name:
                self.cancel(other.number)  # nobody trades with himself
            else:
                trades.append(self._match(order, other))
        if order.left:
            self.orders[order.number] = order
            book.rest(order)
        return order, trades

    def _match(self, taker: Order, maker: Order) -> Trade:
        """Trade at the price of the order that was there first."""
        buy, sell = (taker, maker) if taker.buys else (maker, taker)
        count = min(taker.left, maker.left)
        self._next += 1
        trade = Trade(self._next, buy.trader, sell.trader, buy.goods, tuple(sell.items[:count]), count * maker.limit)
        del sell.items[:count]
        self.traders[buy.trader].coins += count * (buy.limit - maker.limit)  # it asked for less than was offered
        taker.left -= count
        maker.left -= count
        if not maker.left:
            del self.orders[maker.number]
        self.trades[trade.number] = trade
        self.last[trade.goods] = maker.limit
        return trade

    def settle(self, trade: Trade) -> None:
        """Release the escrow of a trade: coins to the seller, items to the buyer."""
        del self.trades[trade.number]
        self.traders[trade.seller].coins += trade.coins
        self.traders[trade.buyer].items[trade.goods].extend(trade.items)

    def bust(self, trade: Trade) -> None:
        """Undo a trade: coins back to the buyer, items back to the seller."""
        del self.trades[trade.number]
        self.traders[trade.buyer].coins += trade.coins
        self.traders[trade.seller].items[trade.goods].extend(trade.items)

    def cancel(self, number: int) -> None:
        """Take an order out of its book and its escrow back to its trader; unknown orders are gone already."""
        order = self.orders.pop(number, None)
        if order is None:
            return
        trader = self.traders[order.trader]
        if order.buys:
            trader.coins += order.limit * order.left
        else:
            trader.items[order.goods].extend(order.items)
        order.left = 0  # the book forgets it when it comes across it

    def hand_over(self, item: str, goods: str, giver: str, taker: str) -> bool:
        """Give an item that is at hand to another trader; False where it is not at hand, or nobody is there."""
        if giver not in self.traders or taker not in self.traders or item not in self.traders[giver].items[goods]:
            return False
        self.traders[giver].items[goods].remove(item)
        self.traders[taker].items[goods].append(item)
        return True

    def worth(self, name: str) -> int:
        """Give what a trader has at hand, at last prices."""
        trader = self.traders[name]
        return trader.coins + sum(len(items) * self.last[goods] for goods, items in trader.items.items())

    def coins(self) -> int:
        """Count all coins, in hands and in escrow."""
        hands = sum(trader.coins for trader in self.traders.values())
        orders = sum(order.limit * order.left for order in self.orders.values() if order.buys)
        return hands + orders + sum(trade.coins for trade in self.trades.values())

    def items(self) -> list[str]:
        """List all items, in hands and in escrow."""
        out = [item for trader in self.traders.values() for items in trader.items.values() for item in items]
        for holder in (*self.orders.values(), *self.trades.values()):
            out.extend(holder.items)
        return out

    def check(self) -> None:
        """Make sure that no coin and no item was lost or made."""
        coins, items = self.coins(), self.items()
        if coins != self.minted_coins or len(items) != self.minted_items or len(set(items)) != len(items):
            raise AssertionError(
                f"the market holds {coins} coins and {len(items)} items ({len(set(items))} different) "
                f"and was given {self.minted_coins} and {self.minted_items}: trading stops."
            )
