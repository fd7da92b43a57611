"""Things that can't be divided: bids in, who gets what and what it costs out. Money is whole micro-credits.

    second_price, uniform_price   equal lots, one each           k winners pay the first losing bid, or the reserve
    assign                        different lots, one each       Shapley & Shubik, *The Assignment Game I*, 1971
    packages                      few lots, sets of them         Vickrey, Clarke, Groves; exact, so for few

In the first three, truth is a best answer for a buyer because what it pays does not depend on what it bids: it pays the least
price at which its lot clears, which for one lot each is its Vickrey payment (Leonard 1983; Demange & Gale 1985). `packages` is
truthful for the same reason, but where bidders want sets it may earn nothing at all (Ausubel & Milgrom, *The Lovely but Lonely
Vickrey Auction*, 2006): sell sets with a reserve, or not this way. Ties go to the first bidder.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment

from apportion.core.errors import BadInput

MOST_LOTS = 16  # `packages` looks at every set of lots


@dataclass(frozen=True, slots=True)
class Sold:
    """Equal lots, sold at one price."""

    winners: tuple[int, ...]  # bidders, highest bid first
    price: int  # micro-credits, each


@dataclass(frozen=True, slots=True)
class Assignment:
    """At most one lot for each buyer. Any prices between low and high clear; buyers pay `low`."""

    lot: Int[np.ndarray, " buyer"]  # -1: none
    low: Int[np.ndarray, " lot"]  # buyers' best clearing prices, reserve where unsold
    high: Int[np.ndarray, " lot"]  # sellers' best
    gain: int  # value less reserve of what is sold


@dataclass(frozen=True, slots=True)
class Award:
    """Sets of lots for bidders, and Vickrey's payments."""

    bundle: tuple[frozenset[Hashable], ...]
    payment: tuple[int, ...]
    welfare: int


def uniform_price(bid: Int[np.ndarray, " bidder"], units: int, reserve: int = 0) -> Sold:
    """Sell equal units, at most one each, to the highest bids of at least the reserve, at the first losing bid."""
    order = np.argsort(-bid, kind="stable")
    winners = [int(i) for i in order[:units] if bid[i] >= reserve]
    loser = int(bid[order[units]]) if units < len(bid) else reserve
    return Sold(tuple(winners), max(reserve, loser))


def second_price(bid: Int[np.ndarray, " bidder"], reserve: int = 0) -> Sold:
    """Sell one lot to the highest bid, at the second highest."""
    return uniform_price(bid, 1, reserve)


def assign(value: Int[np.ndarray, "buyer lot"], reserve: Int[np.ndarray, " lot"]) -> Assignment:
    """Give lots to buyers for the greatest gain, at most one each, with the range of prices at which nobody wants to swap.

    Prices are duals of the assignment's linear program. The lowest ones come from below: a lot costs at least its reserve, at
    least what an empty-handed buyer would give, and so much that no buyer prefers it to its own; the highest ones from above.
    """
    if value.size and max(int(np.abs(value).max()), int(np.abs(reserve).max())) >= 2**50:
        raise BadInput("a bid or reserve exceeds 2^50 micro-credits: sums would not stay exact.")
    gain = np.maximum(0, value - reserve)
    buyers, lots = linear_sum_assignment(gain, maximize=True)
    sold = gain[buyers, lots] > 0
    buyers, lots = buyers[sold], lots[sold]
    lot = np.full(len(value), -1)
    lot[buyers] = lots
    without = np.setdiff1d(np.arange(len(value)), buyers)

    low = np.maximum(reserve, value[without].max(axis=0, initial=0))
    for _ in lots:  # a chain of swaps is no longer than the number of lots sold
        happy = value[buyers, lots] - low[lots]
        low = np.maximum(low, (value[buyers] - happy[:, None]).max(axis=0, initial=0))
    high = reserve.copy()
    high[lots] = value[buyers, lots]
    for _ in lots:
        envy = np.maximum(0, value[buyers] - high).max(axis=1, initial=0)  # what each could have elsewhere
        high[lots] = np.minimum(high[lots], value[buyers, lots] - envy)
    return Assignment(lot, low, high, int(gain[buyers, lots].sum()))


def packages(bids: Sequence[Mapping[frozenset[Hashable], int]], lots: Iterable[Hashable]) -> Award:
    """Award sets of lots, each bidder one of the sets it named or none, for the greatest total; it pays what it costs the others."""
    lots = tuple(lots)
    if len(lots) > MOST_LOTS:
        raise BadInput(f"{len(lots)} lots make too many sets: at most {MOST_LOTS}, or `assign` one lot each.")
    place = {name: 1 << k for k, name in enumerate(lots)}
    offers: list[list[tuple[int, int, frozenset[Hashable]]]] = []
    for i, wanted in enumerate(bids):
        if unknown := {name for bundle in wanted for name in bundle} - place.keys():
            raise BadInput(f"bidder {i} bids for {sorted(map(str, unknown))[0]!r}, which is not for sale.")
        offers.append([(sum(place[name] for name in bundle), price, bundle) for bundle, price in wanted.items()])
    welfare, bundle = _best(offers)
    payment = []
    for i in range(len(offers)):
        others = welfare - bids[i].get(bundle[i], 0)
        payment.append(_best(offers[:i] + offers[i + 1 :])[0] - others)
    return Award(tuple(bundle), tuple(payment), welfare)


def _best(offers: list[list[tuple[int, int, frozenset[Hashable]]]]) -> tuple[int, list[frozenset[Hashable]]]:
    """Find the greatest total over all ways to give each bidder one of its sets or none, bidder by bidder."""
    nothing: frozenset[Hashable] = frozenset()
    best: dict[int, tuple[int, tuple[frozenset[Hashable], ...]]] = {0: (0, ())}  # set of lots given away -> best so far
    for choices in offers:
        after = {mask: (value, (*given, nothing)) for mask, (value, given) in best.items()}
        for mask, (value, given) in best.items():
            for lots, price, bundle in choices:
                if not mask & lots and price > 0:
                    total = value + price
                    if total > after.get(mask | lots, (-1,))[0]:
                        after[mask | lots] = (total, (*given, bundle))
        best = after
    value, given = max(best.values(), key=lambda found: found[0])
    return value, list(given)
