"""What of a market is for sale: the part that guarantees do not already give, and to whom it can be sold.

    bought z = share - free,     lower_i <= sum_j z_ij <= upper_i,     sum_i d_ir z_ij <= left_jr

Shares are handed out in whole 10^-9 parts, so a pair whose pool cannot hold one part can buy nothing. A task
*enters* the sum that clearing maximises if it has weight, wants something, and has a pair that can buy.
The others still get their floor and their free share; who wants nothing is served without cost.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from apportion.core.errors import BadMarket
from apportion.core.market import Market
from apportion.core.units import SHARE

PerTask = Float[np.ndarray, " task"]


@dataclass(frozen=True, init=False)
class Sale:
    """A market less what is given away. Rows, pairs and pools are the market's own."""

    market: Market
    value: Float[np.ndarray, " pair"]  # the market's, or 1 where every pool is to serve alike
    left: Float[np.ndarray, "pool resource"]  # capacity that is not given away
    lower: Float[np.ndarray, " task"]  # least share to be bought: the floor less what is free
    upper: Float[np.ndarray, " task"]  # largest share of use: the cap less what is free
    usable: Bool[np.ndarray, " pair"]  # the pool can hold a part of the task
    enters: Bool[np.ndarray, " task"]
    reach: Float[np.ndarray, " task"]  # no task is served better than this: upper * its best value

    def __init__(self, market: Market, alike: bool = False):
        put = lambda name, x: object.__setattr__(self, name, x)  # noqa: E731
        n = len(market.demand)
        given = bool(market.free.any())
        free = market.per_task(market.free) if given else np.zeros(n)
        left = market.capacity - market.load(market.free) if given else market.capacity
        if (left < -1e-9 * market.capacity).any():
            j, r = (int(k) for k in np.argwhere(left < -1e-9 * market.capacity)[0])
            raise BadMarket(
                f"free shares alone use {market.load(market.free)[j, r]:.6g} of pool {_name(market.pools, j)}'s"
                f" {market.capacity[j, r]:.6g} of resource {_name(market.resources, r)}: give less away."
            )
        left = np.maximum(left, 0.0)
        upper = market.cap - free
        upper = np.where(upper * SHARE < 0.5, 0.0, upper)  # less than half a part is what floats leave over: nothing
        usable = np.repeat(upper > 0, np.diff(market.indptr))
        if (market.demand.max(axis=0, initial=0.0) / SHARE > left.min(axis=0, initial=np.inf)).any():
            usable &= ((market.demand / SHARE)[market.row] <= left[market.indices]).all(axis=1)
        value = np.ones(len(usable)) if alike else market.value
        best = np.zeros(n)
        some = market.indptr[1:] > market.indptr[:-1]
        if some.any():
            best[some] = np.maximum.reduceat(
                value if usable.all() else np.where(usable, value, 0.0), market.indptr[:-1][some]
            )
        put("market", market)
        put("value", value)
        put("left", left)
        put("lower", np.minimum(np.maximum(market.floor - free, 0.0), upper))
        put("upper", upper)
        put("usable", usable)
        put("enters", (market.weight > 0) & (market.demand > 0).any(axis=1) & (best > 0))
        put("reach", upper * best)

    @cached_property
    def row(self) -> Int[np.ndarray, " pair"]:
        """The task of each pair: made when first asked for, as large markets seldom do."""
        return self.market.row

    @cached_property
    def most(self) -> Float[np.ndarray, " pair"]:
        """Give what each pair can buy at most, if its task has the pool to itself."""
        demand, left = self.market.demand[self.row], self.left[self.market.indices]
        with np.errstate(divide="ignore", invalid="ignore"):
            fits = np.where(demand > 0, left / demand, np.inf).min(axis=1, initial=np.inf)
        return np.minimum(fits, self.upper[self.row])

    def only(self, usable: Bool[np.ndarray, " pair"]) -> Sale:
        """Give the sale to these pairs alone."""
        best = np.zeros(len(self.reach))
        np.maximum.at(best, self.row[usable], self.value[usable])
        sale = copy(self)
        object.__setattr__(sale, "usable", usable)
        object.__setattr__(sale, "reach", self.upper * best)
        return sale

    def bought(self, share: np.ndarray) -> np.ndarray:
        """Give u: how well each task is served by what it buys."""
        own = share - self.market.free if self.market.free.any() else share
        return self.market.per_task(self.value * own)

    def charge(self, price: np.ndarray) -> np.ndarray:
        """Give c: what a whole share of each pair costs at these prices."""
        return (self.market.demand[self.row] * price[self.market.indices]).sum(axis=1)


def _name(names: tuple[str, ...], k: int) -> str:
    return repr(names[k]) if names else str(k)
