"""A marketplace as rules: what each command changes, or why it is refused. Nothing here waits or reads a clock.

    order     side, goods, count, limit     fungible goods; a book in price-time order; without a limit: at the market,
                                            as far as goods offered and coins reach, and the rest of it is dropped
    cancel    number                        take a resting order back
    list      item, reserve, seconds        offer a unique item; the highest bid gets it at the second highest
    bid       lot, most                     bid up to `most`; what leads is in escrow, what is outbid is free at once
    swap      give, amount, least           coins for compute credits or back, out of a limited pool

Same commands, same state: `journal.py` keeps the commands and plays them again. Each either happens wholly or raises
Refusal and has changed nothing. A trader numbers its commands upwards (`order`); one that was taken already is not taken
twice but answered again. Every coin, credit and unit of goods is in a hand, in an order, in a lot or in the pool
(`check`), and every item in one hand or one lot.

A seller pays the fee: basis points of what it is paid, in whole coins; the part of a coin that remains is added to its next fee,
so that nobody gains by selling in small pieces. An auction is Vickrey's with its price in the open (proxy bids): the winner
pays the second highest bid or the reserve, a tie goes to whoever came first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apportion.core.errors import BadInput, Refused
from apportion.settlement.pool import Pool
from apportion.workloads.book import Book, Order
from apportion.workloads.commands import Fields, Refusal, Uncovered, side, some, whole, word

TREASURY = "treasury"  # a trader like any other, whose key is the operator's
MOST = 10**9  # of a price or a count, so that their product and all sums stay below 2^63
KEPT = 16  # commands of a trader that are remembered with their answers
RESTING = 500  # orders of one trader at a time
LONGEST = 7 * 86_400  # seconds that an order or a lot may stand
LIMIT = 10  # thousandths of the pool's reserve that may leave it in one round
ROUND = 60_000  # ms; of the exchange
BASIS = 10_000


@dataclass(slots=True)
class Trader:
    """What a trader has at hand; what backs orders and bids is not in here."""

    name: str
    key: str  # signs its commands
    coins: int = 0
    credits: int = 0  # micro-credits
    goods: dict[str, int] = field(default_factory=dict)
    dust: int = 0  # fees still owed, in parts of a coin: BASIS of them are one
    last: int = 0  # the highest number of a command so far
    done: list[list[Any]] = field(default_factory=list)  # the latest commands and their answers
    orders: list[int] = field(default_factory=list)  # at rest


@dataclass(slots=True)
class Lot:
    """A unique item for sale. It arrives in custody, is open for bids, and leaves for its winner or back."""

    number: int
    seller: str
    item: str
    reserve: int
    seconds: int
    state: str = "arriving"
    ends: int = 0  # ms
    leader: str = ""
    most: int = 0  # coins of the leader in escrow; the price, once the lot is leaving
    price: int = 0  # what the leader would pay now

    @property
    def taker(self) -> str:
        """Who gets it as things stand."""
        return self.leader or self.seller


class Market:
    """Traders, books, lots, treasury and exchange."""

    def __init__(self) -> None:
        self.fee = 0  # basis points
        self.custody = False  # whether a registry keeps the items: lots then wait for it when they arrive and leave
        self.traders = {TREASURY: Trader(TREASURY, "")}
        self.books: dict[str, Book] = {}
        self.orders: dict[int, Order] = {}
        self.lots: dict[int, Lot] = {}
        self.items: dict[str, str] = {}  # item -> who has it at hand
        self.hands: dict[str, set[str]] = {}  # the same the other way round
        self.last: dict[str, int] = {}  # price of the last trade
        self.pool: Pool | None = None  # coins, micro-credits
        self.round = 0
        self.made: Fields = {"coins": 0, "credits": 0, "items": 0, "goods": {}}  # what was ever brought in
        self.news: list[tuple[str, Fields]] = []  # who is to be told of what; not part of the state
        self.moving: list[int] = []  # lots for which the registry is to be asked; as they come up
        self._selling: dict[str, int] = {}  # item -> lot
        self._ends: list[tuple[int, int]] = []  # when, order or lot; a heap
        self.next_number = 1

    # --- commands -----------------------------------------------------------------------------------------------------

    def apply(self, at: int, command: Fields) -> tuple[Fields, bool]:
        """Carry out a command at `at` (ms): its answer, and whether anything has changed. Raises Refusal."""
        op = command.get("op")
        if op in INNER:
            return INNER[op](self, at, command) or {}, True
        if op not in TRADERS:
            raise Refusal(f"no operation {op!r}: there are {', '.join((*TRADERS, *READING))}")
        trader = self.trader(command)
        number = whole(command, "order", 1, 2**53)
        if number <= trader.last:
            return self._again(trader, number), False
        answer = TRADERS[op](self, at, trader, command)
        trader.last = number
        trader.done = [*trader.done, [number, answer]][-KEPT:]
        return answer, True

    def trader(self, command: Fields) -> Trader:
        """Give the trader whose command it is."""
        name = word(command, "trader")
        if name not in self.traders:
            raise Refusal(f"trader is {name!r}: nobody of that name is here. Enter first.")
        return self.traders[name]

    def _again(self, trader: Trader, number: int) -> Fields:
        for known, answer in trader.done:
            if known == number:
                return self.seen(answer) | {"again": True}
        raise Refusal(
            f"order is {number}: {trader.name!r} has come to {trader.last}, and {number} is not among its last {KEPT}. "
            f"Ask for the account to see what stands, and go on with {trader.last + 1}."
        )

    def seen(self, answer: Fields) -> Fields:
        """Give an answer with the state in which its lot is by now."""
        if "lot" not in answer:
            return answer
        lot = self.lots.get(answer["lot"])
        return answer | {"state": lot.state if lot else "gone"}

    # --- fungible goods -----------------------------------------------------------------------------------------------

    def book(self, command: Fields) -> Book:
        """Give the book of the goods that a command names."""
        goods = word(command, "goods")
        if goods not in self.books:
            raise Refusal(f"goods is {goods!r}: not traded here. There are {some(self.books)}.")
        return self.books[goods]

    def _order(self, at: int, trader: Trader, command: Fields) -> Fields:
        book, goods, buys = self.book(command), command["goods"], side(command)
        count, seconds = whole(command, "count", 1, MOST), whole(command, "seconds", 1, LONGEST, 86_400)
        limit = whole(command, "limit", 1, MOST) if command.get("limit") is not None else None
        self._refuse_self_trade(trader, buys, goods, limit)
        if len(trader.orders) >= RESTING:
            raise Refusal(f"{trader.name!r} has {RESTING} orders at rest, which is all it may have. Cancel some.")
        if not buys and trader.goods.get(goods, 0) < count:
            have = trader.goods.get(goods, 0)
            raise Uncovered(f"count is {count}: {trader.name!r} has {have} {goods} at hand. Sell at most that.")
        if buys and limit is not None and trader.coins < limit * count:
            raise Uncovered(
                f"{count} {goods} at up to {limit} need {limit * count} coins, and {trader.name!r} has {trader.coins} at hand. "
                "Lower the limit or the count, or cancel orders that hold coins."
            )
        left, paid, number = count, 0, self._number()
        while left and (other := book.best(not buys)):
            if limit is not None and ((other.limit > limit) if buys else (other.limit < limit)):
                break
            some_of_it = min(left, other.left, trader.coins // other.limit if buys else left)
            if not some_of_it:  # at the market, and out of coins
                break
            self._trade(trader, other, some_of_it)
            left -= some_of_it
            paid += some_of_it * other.limit
        filled, left = count - left, left if limit is not None else 0
        if left and limit is not None:
            self._stand(Order(number, trader.name, buys, goods, limit, left, at + 1000 * seconds))
        return {"number": number, "filled": filled, "paid": paid, "left": left}

    def _refuse_self_trade(self, trader: Trader, buys: bool, goods: str, limit: int | None) -> None:
        for number in trader.orders:
            own = self.orders[number]
            if own.goods != goods or own.buys == buys:
                continue
            if limit is None or ((own.limit <= limit) if buys else (own.limit >= limit)):
                raise Refusal(
                    f"{trader.name!r} would trade with itself: its order {number} stands at {own.limit}. Cancel that first."
                )

    def _trade(self, taker: Trader, maker: Order, count: int) -> None:
        """Trade at the price of the order that was there first."""
        paid, other = count * maker.limit, self.traders[maker.trader]
        if maker.buys:
            seller, buyer = taker, other
            taker.goods[maker.goods] -= count
        else:
            seller, buyer = other, taker
            taker.coins -= paid
        maker.left -= count  # and with it what it had in escrow
        if not maker.left:
            self._remove(maker)
        buyer.goods[maker.goods] = buyer.goods.get(maker.goods, 0) + count
        self._pay(seller, paid)
        self.last[maker.goods] = maker.limit
        told = {"op": "traded", "ok": True, "number": maker.number, "goods": maker.goods, "count": count, "paid": paid}
        self.news.append((maker.trader, told))

    def _pay(self, seller: Trader, paid: int) -> None:
        fee, seller.dust = divmod(paid * self.fee + seller.dust, BASIS)
        seller.coins += paid - fee
        self.traders[TREASURY].coins += fee

    def _stand(self, order: Order) -> None:
        """Put an order into its book, and what backs it into escrow."""
        trader = self.traders[order.trader]
        if order.buys:
            trader.coins -= order.coins
        else:
            trader.goods[order.goods] -= order.left
        trader.orders.append(order.number)
        self.rest(order)

    def rest(self, order: Order) -> None:
        """Let an order rest, whose escrow is in."""
        self.orders[order.number] = order
        self.books[order.goods].rest(order)
        self._ends_at(order.ends, order.number)

    def _remove(self, order: Order) -> None:
        del self.orders[order.number]
        self.traders[order.trader].orders.remove(order.number)
        self.books[order.goods].remove(order)

    def _cancel(self, at: int, trader: Trader, command: Fields) -> Fields:
        number = whole(command, "number", 1, 2**53)
        if number not in trader.orders:
            raise Refusal(f"number is {number}: no order of {trader.name!r} at rest. It has {some(trader.orders)}.")
        return {"number": number, "left": self._take_back(self.orders[number])}

    def _take_back(self, order: Order) -> int:
        """Give what backs an order back to its trader; gives what was left of it."""
        trader, left = self.traders[order.trader], order.left
        if order.buys:
            trader.coins += order.coins
        else:
            trader.goods[order.goods] += left
        self._remove(order)
        return left

    # --- unique items -------------------------------------------------------------------------------------------------

    def _list(self, at: int, trader: Trader, command: Fields) -> Fields:
        item, reserve = word(command, "item"), whole(command, "reserve", 1, MOST)
        seconds = whole(command, "seconds", 1, LONGEST)
        if item in self._selling:
            raise Refusal(f"item is {item!r}: it is in lot {self._selling[item]} already.")
        owner = self.items.get(item, trader.name if self.custody else "")  # one unknown to us may be in the registry
        if owner != trader.name:
            raise Refusal(f"item is {item!r}: {f'it belongs to {owner!r}' if owner else 'there is no such item here'}.")
        if self.items.pop(item, None) is None:
            self.made["items"] += 1
        else:
            self.hands[trader.name].remove(item)
        lot = Lot(self._number(), trader.name, item, reserve, seconds, price=reserve)
        self.hold(lot)
        if self.custody:
            self.moving.append(lot.number)
        else:
            self._arrived(at, {"lot": lot.number})
        return {"lot": lot.number}

    def hold(self, lot: Lot) -> None:
        """Have a lot, whose item and coins are in."""
        self.lots[lot.number], self._selling[lot.item] = lot, lot.number
        if lot.state == "open":
            self._ends_at(lot.ends, lot.number)

    def _arrived(self, at: int, command: Fields) -> None:
        """The item is in custody: bids may come."""
        lot = self._lot(command, "arriving")
        lot.state, lot.ends = "open", at + 1000 * lot.seconds
        self._ends_at(lot.ends, lot.number)

    def _lost(self, at: int, command: Fields) -> None:
        """The registry does not know the item as its seller's: there is nothing to sell."""
        self._gone(self._lot(command, "arriving"))
        self.made["items"] -= 1

    def _bid(self, at: int, trader: Trader, command: Fields) -> Fields:
        lot, most = self.lots.get(whole(command, "lot", 1, 2**53)), whole(command, "most", 1, MOST)
        if lot is None or lot.state != "open" or at >= lot.ends:
            raise Refusal(f"lot is {command['lot']}: not open for bids. Ask for the lots to see what is.")
        if lot.seller == trader.name:
            raise Refusal(f"lot {lot.number} is {trader.name!r}'s own: its seller may not bid.")
        leads = lot.leader == trader.name
        least = lot.most + 1 if leads else lot.price + bool(lot.leader)
        if most < least:
            why = f"its own bid is {lot.most}" if leads else f"it stands at {lot.price}"
            raise Refusal(f"most is {most}: {why}. Bid at least {least}.")
        needed = most - lot.most if leads else most
        if trader.coins < needed:
            raise Uncovered(f"most is {most}: it needs {needed} coins, and {trader.name!r} has {trader.coins} at hand.")
        if not leads and most <= lot.most:  # who was first stays first, at a higher price
            lot.price = most
            return {"lot": lot.number, "leads": False, "price": most}
        if lot.leader and not leads:
            self.traders[lot.leader].coins += lot.most
            self.news.append((lot.leader, {"op": "outbid", "ok": True, "lot": lot.number, "price": lot.most}))
            lot.price = lot.most
        trader.coins -= needed
        lot.leader, lot.most = trader.name, most
        return {"lot": lot.number, "leads": True, "price": lot.price}

    def _close(self, lot: Lot) -> None:
        """Bids are over: the winner owes the price, and what it bid beyond is its own again."""
        if lot.leader:
            self.traders[lot.leader].coins += lot.most - lot.price
            lot.most = lot.price
        lot.state = "leaving"
        if self.custody:
            self.moving.append(lot.number)
        else:
            self._left(lot.ends, {"lot": lot.number})

    def _left(self, at: int, command: Fields) -> None:
        """The item is with whom it belongs to: release the coins."""
        lot = self._lot(command, "leaving")
        self.hand(lot.item, lot.taker)
        if lot.leader:
            self._pay(self.traders[lot.seller], lot.most)
        told = {"op": "sold", "ok": True, "lot": lot.number, "item": lot.item, "paid": lot.most, "ended": lot.ends}
        told |= {"seller": lot.seller, "taker": lot.taker}
        self.news.extend((name, told) for name in dict.fromkeys((lot.seller, lot.taker)))
        self._gone(lot)

    def _lot(self, command: Fields, state: str) -> Lot:
        lot = self.lots.get(command["lot"])
        if lot is None or lot.state != state:
            raise Refusal(f"lot is {command['lot']}: it is not {state} any more.")
        return lot

    def _gone(self, lot: Lot) -> None:
        del self.lots[lot.number], self._selling[lot.item]

    # --- exchange, and what comes in ----------------------------------------------------------------------------------

    def _swap(self, at: int, trader: Trader, command: Fields) -> Fields:
        give, amount, least = (
            word(command, "give"),
            whole(command, "amount", 1, 2**62),
            whole(command, "least", 0, 2**62, 0),
        )
        if self.pool is None:
            raise Refusal("there is no exchange here: its operator starts the market with --exchange COINS:CREDITS.")
        if give not in ("coins", "credits"):
            raise Refusal(f"give is {give!r}: coins or credits.")
        take, have = "credits" if give == "coins" else "coins", getattr(trader, give)
        if have < amount:
            raise Uncovered(f"amount is {amount}: {trader.name!r} has {have} {give} at hand.")
        pool = self.pool if at // ROUND <= self.round else self.pool.next_round()
        try:
            pool, out = pool.swap(int(give == "credits"), amount, max(1, least))
        except (BadInput, Refused) as problem:
            raise Refusal(str(problem)) from None
        self.pool, self.round = pool, max(self.round, at // ROUND)
        setattr(trader, give, have - amount)
        setattr(trader, take, getattr(trader, take) + out)
        return {"gave": amount, "got": out, "of": take}

    def _mint(self, at: int, trader: Trader, command: Fields) -> Fields:
        """Bring coins, credits, goods or an item in, or (below 0) take them out: the treasury's to do."""
        if trader.name != TREASURY:
            raise Refusal(f"trader is {trader.name!r}: only {TREASURY!r} may mint.")
        to = self.trader({"trader": command.get("to")})
        coins, credits = (whole(command, name, -MOST * 1000, MOST * 1000, 0) for name in ("coins", "credits"))
        goods, item = command.get("goods", {}), command.get("item")
        if not isinstance(goods, dict) or not all(name and len(name) <= 200 for name in goods):
            raise Refusal("goods must be an object, of names of 1 to 200 characters and counts.")
        counts = {name: whole(goods, name, -MOST * 1000, MOST * 1000) for name in goods}
        short = [name for name, count in counts.items() if to.goods.get(name, 0) + count < 0]
        if to.coins + coins < 0 or to.credits + credits < 0 or short:
            raise Uncovered(f"{to.name!r} has not that much of {short[0] if short else 'coins or credits'} at hand.")
        if item is not None and (word(command, "item") in self.items or item in self._selling):
            raise Refusal(f"item is {item!r}: it is here already.")
        self._bring(to, coins, credits, counts, [item] if item is not None else [])
        return {"to": to.name, "coins": to.coins, "credits": to.credits}

    def _bring(self, to: Trader, coins: int, credits: int, goods: Mapping[str, int], items: Sequence[str]) -> None:
        to.coins, to.credits = to.coins + coins, to.credits + credits
        self.made["coins"] += coins
        self.made["credits"] += credits
        self.made["items"] += len(items)
        for name, count in goods.items():
            self.books.setdefault(name, Book())
            to.goods[name] = to.goods.get(name, 0) + count
            self.made["goods"][name] = self.made["goods"].get(name, 0) + count
        for item in items:
            self.hand(item, to.name)

    def hand(self, item: str, name: str) -> None:
        """Give an item into a hand."""
        self.items[item] = name
        self.hands.setdefault(name, set()).add(item)

    def _enter(self, at: int, command: Fields) -> None:
        """Let a newcomer in with its purse; its key signs what it commands."""
        name, key = word(command, "trader", 100), word(command, "key", 100)
        if name in self.traders:
            raise Refusal(f"trader is {name!r}: somebody of that name is here, with another key. Choose another name.")
        items = [item for item in command.get("items", ()) if item not in self.items and item not in self._selling]
        self.traders[name] = Trader(name, key)
        self._bring(self.traders[name], command.get("coins", 0), 0, command.get("goods", {}), items)

    def _open(self, at: int, command: Fields) -> None:
        """The market starts, for the first time or again, under what its operator says today."""
        self.fee, self.custody = command["fee"], command["custody"]
        for goods in command["goods"]:
            self.books.setdefault(goods, Book())
        if self.pool is None and command.get("exchange"):
            coins, credits = command["exchange"]
            self.pool = Pool((coins, credits), limit=LIMIT)
            self.made["coins"] += coins
            self.made["credits"] += credits
        for lot in list(self.lots.values()) if not self.custody else ():  # no registry any more to wait for
            if lot.state != "open":
                (self._arrived if lot.state == "arriving" else self._left)(at, {"lot": lot.number})

    def _tick(self, at: int, command: Fields) -> None:
        """Time has come: orders end, auctions close."""
        while self._ends and self._ends[0][0] <= at:
            _, number = heapq.heappop(self._ends)
            if number in self.orders:
                self._take_back(self.orders[number])
            elif number in self.lots:
                self._close(self.lots[number])

    # --- what stands --------------------------------------------------------------------------------------------------

    def next_end(self) -> int | None:
        """Give when (ms) the next order or lot comes to its end."""
        return self._ends[0][0] if self._ends else None

    def _ends_at(self, when: int, number: int) -> None:
        heapq.heappush(self._ends, (when, number))
        if len(self._ends) > 1000 + 2 * (len(self.orders) + len(self.lots)):  # most of them have ended before
            self._ends = [one for one in self._ends if one[1] in self.orders or one[1] in self.lots]
            heapq.heapify(self._ends)

    def _number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def held(self) -> Fields:
        """Count all there is, wherever it is."""
        goods: dict[str, int] = {}
        for trader in self.traders.values():
            for name, count in trader.goods.items():
                goods[name] = goods.get(name, 0) + count
        for order in self.orders.values():
            if not order.buys:
                goods[order.goods] += order.left
        hands = self.traders.values()
        coins, credits = self.pool.reserve if self.pool else (0, 0)
        coins += sum(order.coins for order in self.orders.values()) + sum(lot.most for lot in self.lots.values())
        return {
            "coins": coins + sum(trader.coins for trader in hands),
            "credits": credits + sum(trader.credits for trader in hands),
            "items": len({*self.items, *(lot.item for lot in self.lots.values())}),
            "goods": goods,
        }

    def check(self) -> None:
        """Make sure that nothing was lost or made, and that nobody owes."""
        held, made = self.held(), self.made
        if wrong := [name for name in made if held[name] != made[name]]:
            told = ", ".join(f"{held[name]} of {made[name]} {name}" for name in wrong)
            raise AssertionError(f"the market holds {told}: trading stops.")
        if len(self.items) + len(self.lots) != made["items"]:
            raise AssertionError("an item is in a hand and in a lot: trading stops.")
        for trader in self.traders.values():
            if min(trader.coins, trader.credits, *trader.goods.values()) < 0:
                raise AssertionError(f"{trader.name!r} has less than nothing: trading stops.")


TRADERS = {
    "order": Market._order,
    "cancel": Market._cancel,
    "list": Market._list,
    "bid": Market._bid,
    "swap": Market._swap,
    "mint": Market._mint,
}
INNER = {  # of the house itself: nobody outside may give them
    "open": Market._open,
    "enter": Market._enter,
    "tick": Market._tick,
    "arrived": Market._arrived,
    "lost": Market._lost,
    "left": Market._left,
}
READING = ("enter", "account", "depth", "lots", "exchange")
