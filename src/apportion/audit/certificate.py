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
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.units import MICRO, PRICE, SHARE

_CELLS = 1 << 20  # numbers in the largest array of the search for slopes, about: 8 MiB


class Certificate:
    """Value and bound of one round under the proportional objective."""

    def __init__(self, market: Market, allocation: Allocation):
        ctx.prec = 96
        self.market, self.eta = market, arb(market.eta)
        row, pool = market.row, market.indices
        demand, price = market.demand.astype(np.int64), whole(allocation.price, PRICE)
        free, parts = market.free_parts, allocation.parts
        guaranteed = _exact(demand[row], free[:, None])
        given = np.zeros(market.capacity.shape, guaranteed.dtype)
        np.add.at(given, pool, guaranteed)
        left = market.capacity.astype(np.int64).astype(object) * SHARE - given.astype(object)  # in 10^-9 base units
        self.pools = arb(fmpq(int((left * price.astype(object)).sum()), SHARE * PRICE))
        cost = _exact(demand[row], price[pool]).sum(axis=1)  # in 10^-12 credits a share
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
        best = zip(self.tasks, self._slopes(), strict=True)
        return self.pools + sum((task.most(g, self.eta) for task, g in best), arb(0))

    def _slopes(self) -> list[float]:
        """Seek for each task the g that makes its part of the bound least."""
        out = np.zeros(len(self.tasks))
        buys = [i for i, t in enumerate(self.tasks) if t.weight > 0]
        width = max((len(self.tasks[i].value) for i in buys), default=1)
        at_once = max(1, _CELLS // width**3)
        for some in (buys[k : k + at_once] for k in range(0, len(buys), at_once)):
            out[some] = _least([self.tasks[i] for i in some], float(self.eta), width)
        return out.tolist()


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


def _least(tasks: list[_Task], eta: float, width: int) -> Float[np.ndarray, " task"]:
    """Give the g at which each task's part of the bound is least, as nearly as floats can tell.

    That part is convex in g and smooth but where two pools tie or where none is worth its cost any more, so the least lies
    there or where the derivative is 0: these places are few, and all are tried. A list of fewer than `width` pairs is
    filled up with its first one, which changes no maximum.
    """
    fill = lambda x: [*map(float, x), *[float(x[0])] * (width - len(x))]  # noqa: E731
    of = lambda name: np.array([[float(getattr(t, name))] for t in tasks])  # noqa: E731
    v, c = np.array([fill(t.value) for t in tasks]), np.array([fill(t.cost) for t in tasks])  # task x pair
    w, past, upper, lower = of("weight"), of("memory") / eta, of("upper"), of("lower")
    one, two = np.triu_indices(width, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tie = (c[:, one] - c[:, two]) / (v[:, one] - v[:, two])
        g = np.concatenate([w / (past + upper * v), w / (past + lower * v), c / v, tie], axis=1)
    g = np.where((g > 0) & np.isfinite(g), g, g[:, :1])
    a = (g[:, :, None] * v[:, None, :] - c[:, None, :]).max(axis=2)
    u = np.clip(w / g - past, 0.0, upper * v.max(axis=1, keepdims=True))
    part = np.where(a > 0, upper, lower) * a + w * np.log(past + u) - g * u
    return g[np.arange(len(tasks)), part.argmin(axis=1)]


def _exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply whole numbers of 0 or more: in 63 bits where these hold every sum over the products too."""
    most = int(a.max(initial=0)) * int(b.max(initial=0)) * max(a.size, 1)
    return a * b if most < 2**63 else a.astype(object) * b.astype(object)


def whole(x: np.ndarray, scale: int) -> Int[np.ndarray, ...]:
    """Count in whole parts of 1/scale what the log wrote in them."""
    return np.rint(x * scale).astype(np.int64)


def gap_of(value: float, bound: float, weight: float) -> float:
    """Give the gap of a value under a bound; 0 is optimal, .001 is within 0.1 % in the weighted geometric mean of services."""
    if weight == 0:
        return 0.0
    return math.expm1(min((bound - value) / weight, 700.0)) if math.isfinite(value) else math.inf
