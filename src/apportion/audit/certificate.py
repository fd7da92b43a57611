"""How far from its optimum a logged round can be, enclosed by ball arithmetic (python-flint).

    optimum <= left.p + sum_i [ max_{0<=u<=reach} (f_i(u) - g_i u) + a_i * (upper_i if a_i > 0 else lower_i) ]
    f_i(u) = w_i log((1-eta) mean_i + eta u),      a_i = max_j (g_i v_ij - p_j . d_i)

holds for every g >= 0 (weak duality), so the g are sought in floats and only the sum is enclosed. Shares, prices,
demand and money are exact rationals; other reals are exactly the doubles that the log writes. This shares no code with
the room that clears markets: two ways to one number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flint import arb, ctx, fmpq
from jaxtyping import Int

from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.units import MICRO, PRICE, SHARE


class Certificate:
    """Value and bound of one round under the proportional objective."""

    def __init__(self, market: Market, allocation: Allocation):
        ctx.prec = 96
        self.market, self.eta = market, arb(market.eta)
        row, pool = market.row, market.indices
        demand, price = market.demand.astype(np.int64), whole(allocation.price, PRICE)
        free, parts = market.free_parts, allocation.parts
        given = np.zeros(market.capacity.shape, object)
        np.add.at(given, pool, demand[row].astype(object) * free[:, None])
        left = market.capacity.astype(np.int64).astype(object) * SHARE - given  # in 10^-9 base units
        self.pools = arb(fmpq(int((left * price.astype(object)).sum()), SHARE * PRICE))
        cost = (demand[row].astype(object) * price[pool].astype(object)).sum(axis=1)  # in 10^-12 credits a share
        had = np.zeros(len(demand), np.int64)
        np.add.at(had, row, free)
        bought, bid = parts - free, whole(market.weight, MICRO)
        usable = ((demand[row] <= left[pool]).all(axis=1) & (market.cap - had / SHARE > 0)[row]).tolist()
        enters = ((market.weight > 0) & (demand > 0).any(axis=1)).tolist()
        lists = (x.tolist() for x in (market.value, cost, bought, market.indptr, market.cap, market.floor, market.mean))
        value, cost, bought, indptr, cap, floor, mean = lists  # Python's own numbers: balls are made of them one by one
        self.tasks = []
        for i, (given_free, paid) in enumerate(zip(had.tolist(), bid.tolist(), strict=True)):
            pairs = [e for e in range(indptr[i], indptr[i + 1]) if usable[e]]
            free_share = arb(fmpq(given_free, SHARE))
            most = arb(cap[i]) - free_share
            least = arb(0).max(arb(floor[i]) - free_share).min(most)
            if not pairs or not (enters[i] or least > 0):
                continue
            self.tasks.append(
                _Task(
                    weight=arb(fmpq(paid, MICRO)) if enters[i] else arb(0),
                    memory=(1 - self.eta) * arb(mean[i]),
                    value=[arb(value[e]) for e in pairs],
                    cost=[arb(fmpq(cost[e], PRICE)) for e in pairs],
                    upper=most,
                    lower=least,
                    bought=sum((arb(value[e]) * fmpq(bought[e], SHARE) for e in pairs), arb(0)),
                )
            )

    def weight(self) -> arb:
        return sum((t.weight for t in self.tasks), arb(0))

    def value(self) -> arb:
        return sum((t.worth(t.bought, self.eta) for t in self.tasks if t.weight > 0), arb(0))

    def bound(self) -> arb:
        return self.pools + sum((t.most(t.slope(float(self.eta)), self.eta) for t in self.tasks), arb(0))


@dataclass(slots=True)
class _Task:
    weight: arb
    memory: arb
    value: list[arb]
    cost: list[arb]
    upper: arb
    lower: arb
    bought: arb

    def worth(self, u: arb, eta: arb) -> arb:
        inside = self.memory + eta * u
        return self.weight * inside.log() if inside > 0 else arb("-inf")

    def slope(self, eta: float) -> float:
        """Seek the g that makes this task's part of the bound least: its derivative rises through 0."""
        w, memory = float(self.weight), float(self.memory)
        if w == 0:
            return 0.0
        v, c = [float(x) for x in self.value], [float(x) for x in self.cost]
        upper, lower = float(self.upper), float(self.lower)
        low = w * eta / (memory + eta * upper * max(v))
        high = max(w * eta / (memory + eta * upper * min(v)), *(y / x for x, y in zip(v, c, strict=True)))
        if len(v) == 1:  # one pool: the best share is a clip
            x = upper if c[0] <= 0 else min(max(w / c[0] - memory / (eta * v[0]), lower), upper)
            return w * eta / (memory + eta * v[0] * x) if memory + x > 0 else high
        for _ in range(60):
            g = math.sqrt(low * high)
            a, best = max((g * x - y, x) for x, y in zip(v, c, strict=True))
            rising = (upper if a > 0 else lower) * best > min(max(w / g - memory / eta, 0.0), upper * max(v))
            low, high = (low, g) if rising else (g, high)
            if high <= low * (1 + 1e-15):
                break
        return high

    def most(self, slope: float, eta: arb) -> arb:
        """Give this task's part of the bound at g = slope."""
        g = arb(slope)
        a = g * self.value[0] - self.cost[0]
        best = self.value[0]
        for v, c in zip(self.value[1:], self.cost[1:], strict=True):
            a, best = a.max(g * v - c), best.max(v)
        surplus = self.upper * a if a > 0 else self.lower * a if a < 0 else (self.upper * a).max(self.lower * a)
        if not self.weight > 0:
            return surplus
        reach, u = self.upper * best, self.weight / g - self.memory / eta
        if u > reach:
            return surplus + self.worth(reach, eta) - g * reach
        if u < 0:
            return surplus + self.worth(arb(0), eta)
        # The maximum over all u: never less than that over [0, reach], so a bound also where u is not told from its ends.
        return surplus + self.weight * ((self.weight * eta / g).log() - 1) + g * self.memory / eta


def whole(x: np.ndarray, scale: int) -> Int[np.ndarray, ...]:
    """Count in whole parts of 1/scale what the log wrote in them."""
    return np.rint(x * scale).astype(np.int64)


def gap_of(value: float, bound: float, weight: float) -> float:
    """Give the gap of a value under a bound; 0 is optimal, .001 is within 0.1 % in the weighted geometric mean of services."""
    if weight == 0:
        return 0.0
    return math.expm1(min((bound - value) / weight, 700.0)) if math.isfinite(value) else math.inf
