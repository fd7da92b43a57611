"""Buyers meet sellers: who trades, at which price. Money is whole micro-credits; `random` is passed in.

One unit a trader. Sort buyers down and sellers up; the k best pairs with value >= cost are the efficient trades. With b, s
the k-th values and b', s' the next ones, any price between max(s, b') and min(b, s') clears.

    rule       price                              trades         truthful  balanced
    midpoint   middle of the clearing prices      k              no        exactly
    vcg        buyers max(s, b'), sellers min(b, s')   k         yes       runs a deficit
    mcafee     (b' + s')/2 if it lies in [s, b]   k              yes       never a deficit
               else buyers b, sellers s           k - 1
    sbba       s' if s' <= b                      k              yes       exactly
               else b                             k - 1, a seller left out by lot

`sbba` is what the house uses (Segal-Halevi, Hassidim & Aumann, arXiv 1607.05139): the price is set by somebody who does not
trade, so nobody gains by a lie, and no credit is made or lost. What it gives up is at most the least useful of k trades.
Traders of many units have books: `book` clears them at one price and does not pretend to be truthful.

McAfee, *A Dominant Strategy Double Auction*, 1992; Myerson & Satterthwaite, 1983 (why no rule has all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

MOST = 2**62


@dataclass(frozen=True, slots=True)
class Trades:
    """Who trades one unit each; buyers[t] and sellers[t] are of equal number, no pair is meant."""

    buyers: tuple[int, ...]
    sellers: tuple[int, ...]
    pays: int  # micro-credits from each buyer
    gets: int  # micro-credits to each seller

    @property
    def surplus(self) -> int:
        """What is left with the house; below 0 it would have to add."""
        return len(self.buyers) * (self.pays - self.gets)


@dataclass(frozen=True, slots=True)
class Fills:
    """What a uniform-price batch trades."""

    price: int
    bought: Int[np.ndarray, " buy"]
    sold: Int[np.ndarray, " sell"]


@dataclass(frozen=True, slots=True)
class Cross:
    """Both sides sorted, the efficient trades counted."""

    buyers: tuple[int, ...]  # highest value first
    sellers: tuple[int, ...]  # lowest cost first
    count: int  # k
    last: tuple[int, int]  # b, s: the k-th value and cost; (MOST, 0) where k is 0
    next: tuple[int, int]  # b', s'; (0, MOST) where there is none
    gain: int  # from the efficient trades

    @property
    def interval(self) -> tuple[int, int]:
        """The prices at which as many want to buy as to sell."""
        return max(self.last[1], self.next[0]), min(self.last[0], self.next[1])

    def trades(self, count: int, pays: int, gets: int) -> Trades:
        """The `count` best trades."""
        return Trades(self.buyers[:count], self.sellers[:count], pays, gets)


def cross(value: Int[np.ndarray, " buyer"], cost: Int[np.ndarray, " seller"]) -> Cross:
    """Sort both sides (ties: first come) and count the trades worth making."""
    buyers, sellers = np.argsort(-value, kind="stable"), np.argsort(cost, kind="stable")
    b, s = value[buyers], cost[sellers]
    both = min(len(b), len(s))
    k = int((b[:both] >= s[:both]).sum())  # b falls and s rises: the trades worth making come first
    last = (int(b[k - 1]), int(s[k - 1])) if k else (MOST, 0)
    coming = (int(b[k]) if k < len(b) else 0, int(s[k]) if k < len(s) else MOST)
    gain = int(b[:k].sum() - s[:k].sum())
    return Cross(tuple(map(int, buyers)), tuple(map(int, sellers)), k, last, coming, gain)


def midpoint(value: Int[np.ndarray, " buyer"], cost: Int[np.ndarray, " seller"]) -> Trades:
    """All efficient trades, in the middle of the clearing prices, rounded down."""
    c = cross(value, cost)
    price = sum(c.interval) // 2 if c.count else 0
    return c.trades(c.count, price, price)


def vcg(value: Int[np.ndarray, " buyer"], cost: Int[np.ndarray, " seller"]) -> Trades:
    """All efficient trades, each trader at the price that its absence would leave; somebody must pay the deficit."""
    c = cross(value, cost)
    low, high = c.interval if c.count else (0, 0)
    return c.trades(c.count, low, high)


def mcafee(value: Int[np.ndarray, " buyer"], cost: Int[np.ndarray, " seller"]) -> Trades:
    """McAfee's rule: the next pair sets the price, or the last pair does and does not trade."""
    c = cross(value, cost)
    if not c.count:
        return c.trades(0, 0, 0)
    (b, s), (b_next, s_next) = c.last, c.next
    price = (b_next + s_next) // 2
    if s_next < MOST and b_next > 0 and s <= price <= b:
        return c.trades(c.count, price, price)
    return c.trades(c.count - 1, b, s)


def sbba(value: Int[np.ndarray, " buyer"], cost: Int[np.ndarray, " seller"], random: Callable[[int], int]) -> Trades:
    """Strongly budget-balanced: the next seller sets the price, or the last buyer does and one seller is left out by lot.

    random(k) gives a whole number in 0..k-1; in a world that is logged, draw it from what was logged before the bids.
    """
    c = cross(value, cost)
    if not c.count:
        return c.trades(0, 0, 0)
    b, s_next = c.last[0], c.next[1]
    if s_next <= b:
        return c.trades(c.count, s_next, s_next)
    out = random(c.count)
    sellers = c.sellers[:out] + c.sellers[out + 1 : c.count]
    return Trades(c.buyers[: c.count - 1], sellers, b, b)


def book(
    limit_buy: Int[np.ndarray, " buy"],
    buy: Int[np.ndarray, " buy"],
    limit_sell: Int[np.ndarray, " sell"],
    sell: Int[np.ndarray, " sell"],
) -> Fills:
    """Clear orders of many units at one price: as much as can be traded, best limits first, then first come.

    The price is the middle of those that clear, rounded down, so every fill is within its limit; what buyers pay is
    what sellers get.
    """
    buyers, sellers = np.argsort(-limit_buy, kind="stable"), np.argsort(limit_sell, kind="stable")
    prices = np.unique(np.concatenate([limit_buy, limit_sell]))
    wanted = np.append(0, np.cumsum(buy[buyers]))[np.searchsorted(-limit_buy[buyers], -prices, side="right")]
    offered = np.append(0, np.cumsum(sell[sellers]))[np.searchsorted(limit_sell[sellers], prices, side="right")]
    volume = int(np.minimum(wanted, offered).max(initial=0))
    bought, sold = np.zeros(len(buy), np.int64), np.zeros(len(sell), np.int64)
    if not volume:
        return Fills(0, bought, sold)
    bought[buyers] = _first(buy[buyers], volume)
    sold[sellers] = _first(sell[sellers], volume)
    # between the worst limits that trade, nearest to those that do not
    low = max(int(limit_sell[sold > 0].max()), int(limit_buy[bought < buy].max(initial=0)))
    high = min(int(limit_buy[bought > 0].min()), int(limit_sell[sold < sell].min(initial=MOST)))
    return Fills((low + high) // 2, bought, sold)


def _first(quantity: Int[np.ndarray, " order"], volume: int) -> Int[np.ndarray, " order"]:
    """Fill orders in turn until the volume is used up."""
    before = np.cumsum(quantity) - quantity
    return np.clip(volume - before, 0, quantity)
