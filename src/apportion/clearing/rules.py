"""Sharing without prices: fixed slices, equal slices, plain attention, levels. They are what prices are compared with.

`fair` raises levels by clearing, and hides the prices. Every other rule fills the same form. It gives each task an amount of each pool, takes the share of its demand that these
amounts serve (the scarcest resource decides), cuts it at what the task can use, and lifts it to the floor where a slice
is below the floor. Then each pool whose tasks together take more than it has keeps floors and free shares and scales the
rest down. Prices are 0 and nobody is charged; `against` measures the gap at the prices of an allocation that has some.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from apportion.clearing.certificate import certify
from apportion.clearing.clear import clear
from apportion.clearing.objectives import pose
from apportion.clearing.repair import repair
from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.units import SHARE


def static(
    market: Market, claim: Float[np.ndarray, " task"] | Float[np.ndarray, "task resource"] | None = None
) -> Allocation:
    """Give every task the slice of its pools that its claim earns, whatever is wanted now.

    claim: what slices are in proportion to, as a rule the demand of an ordinary day; None: the weights.
    """
    return _slices(market, "static", market.weight if claim is None else claim)


def equal(market: Market) -> Allocation:
    """Give every task of a pool an equal slice of it."""
    return _slices(market, "equal", np.ones(len(market.demand)))


def softmax(market: Market, score: Float[np.ndarray, " pair"]) -> Allocation:
    """Give R_i = sum_j w_ij C_j, w the softmax of the task's scores over its pools, cut and scaled down to fit."""
    return _fill(market, "softmax", attention(market, score)[:, None] * market.capacity[market.indices])


def fair(market: Market, objective: str, weight: Float[np.ndarray, " task"]) -> Allocation:
    """Raise levels by weight until nothing is left, without memory: `leximin` of shares, or `drf` of dominant shares."""
    same = {
        name: getattr(market, name) for name in ("indptr", "indices", "floor", "cap", "tasks", "pools", "resources")
    }
    found = clear(Market(market.demand, market.capacity, weight, market.value, **same), objective)
    return _judged(market, found.share, {"leximin": "maxmin"}.get(objective, objective))


def spread(market: Market, name: str, share: Float[np.ndarray, " task"]) -> Allocation:
    """Give each task a share of its demand, spread over its pools by what they have, as far as it fits."""
    total = market.per_task(market.capacity[market.indices])[market.row]
    part = np.divide(market.capacity[market.indices], total, out=np.zeros(total.shape), where=total > 0)
    return _fill(market, name, part * (share[:, None] * market.demand)[market.row])


def against(allocation: Allocation, priced: Allocation) -> Allocation:
    """Measure an allocation by the bound at another's prices, under that one's objective."""
    sale, goal = pose(allocation.market, priced.objective)
    return replace(allocation, **certify(sale, goal, allocation.share, priced.price))


def attention(market: Market, score: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    """Give w, the softmax of each task's scores over its pools."""
    peak = np.full(len(market.demand), -np.inf)
    np.maximum.at(peak, market.row, score)
    weight = np.exp(score - peak[market.row])
    return weight / market.per_task(weight)[market.row]


def literal(
    market: Market, score: Float[np.ndarray, " pair"]
) -> tuple[Float[np.ndarray, "task resource"], Float[np.ndarray, "pool resource"]]:
    """Give R_i = sum_j w_ij C_j as it stands, before any scaling, and what it takes from each pool.

    Each task's weights sum to 1 but a pool's do not, so n tasks together ask for n pools' worth: nothing makes it fit.
    """
    weight = attention(market, score)
    amount = weight[:, None] * market.capacity[market.indices]
    granted, taken = np.zeros(market.demand.shape), np.zeros(market.capacity.shape)
    np.add.at(granted, market.row, amount)
    np.add.at(taken, market.indices, amount)
    return granted, taken


def _slices(market: Market, name: str, claim: np.ndarray) -> Allocation:
    """Divide each pool among its tasks by claim; a task that may use several pools claims a part in each."""
    claim = claim[:, None] if claim.ndim == 1 else claim
    each = (np.where(market.demand > 0, claim, 0.0) / np.maximum(np.diff(market.indptr), 1)[:, None])[market.row]
    total = np.zeros(market.capacity.shape)
    np.add.at(total, market.indices, each)
    return _fill(market, name, each / np.where(total > 0, total, 1.0)[market.indices] * market.capacity[market.indices])


def _fill(market: Market, name: str, amount: np.ndarray) -> Allocation:
    """Turn amounts per pair into shares that fit."""
    demand = market.demand[market.row]
    with np.errstate(all="ignore"):  # a demand near 0 is served by anything
        share = np.where(demand > 0, amount / demand, np.inf).min(axis=1, initial=np.inf)
    share = np.where(np.isfinite(share), share, market.cap[market.row])
    total = market.per_task(share)
    share *= np.where(total > market.cap, market.cap / np.maximum(total, market.cap + 1e-300), 1.0)[market.row]
    sale, _ = pose(market, "proportional")
    return _judged(market, repair(sale, np.maximum(share - market.free, 0.0)) / SHARE, name)


def _judged(market: Market, share: np.ndarray, name: str) -> Allocation:
    """Tell what shares are worth at no prices at all."""
    sale, goal = pose(market, "proportional")
    nothing = np.zeros(market.capacity.shape)
    return Allocation(market, share, nothing, name, **certify(sale, goal, share, nothing))
