"""Known answers about shares and prices: each row turns a case's problem into a call, and its answer into the case's words.

Amounts become base units (a million to one), so that whole units and whole parts stay inside every tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest

from apportion.clearing.attention import attend
from apportion.clearing.clear import clear
from apportion.clearing.rules import attention, literal
from apportion.core.market import Market
from apportion.study.reference import hdrf as hierarchical
from apportion.study.reference import proportional_response

UNIT = 10**6  # base units in one of a case's units


def capped_fisher(problem: dict) -> dict:
    capacity, budgets = problem["capacity"], np.array(problem["budgets"], float)
    cap = np.array([capacity if c is None else c for c in problem["caps"]], float)
    floor = np.array(problem["floors"], float)
    allocation = clear(Market(cap[:, None] * UNIT, [[capacity * UNIT]], budgets, floor=floor / cap))
    amount, price = allocation.granted[:, 0] / UNIT, allocation.price[0, 0] * UNIT
    charge = price * amount
    return {
        "allocation": amount,
        "price": price,
        "market_charge": charge,
        "unspent": np.maximum(budgets - charge, 0),
        "floor_subsidy": np.maximum(charge - budgets, 0),
        "revenue": charge.sum(),
    }


def temporal_fisher(problem: dict) -> dict:
    capacity, eta = problem["capacity"], problem["eta"]
    cap = np.array([capacity if c is None else c for c in problem["caps"]], float)
    mean = np.array(problem["mean_use"], float)
    market = Market(cap[:, None] * UNIT, [[capacity * UNIT]], problem["weights"], mean=mean / cap, eta=eta)
    allocation = clear(market)
    amount, price = allocation.granted[:, 0] / UNIT, allocation.price[0, 0] * UNIT
    return {
        "allocation": amount,
        "price": price,
        "charge": price * amount,
        "next_mean_use": (1 - eta) * mean + eta * amount,
    }


def fisher(problem: dict) -> dict:
    budgets, supply = problem["budgets"], np.array(problem["supply"], float)
    if problem["utility"] == "leontief":  # one pool; a whole task is as much as the pool could serve of it alone
        each = np.array(problem["demand_per_task"], float)
        most = (supply / each).min(axis=1)
        allocation = clear(Market(each * most[:, None] * UNIT, supply[None] * UNIT, budgets))
        activity, price = allocation.share * most, allocation.price[0] * UNIT
        used = activity @ each
        return {"activity": activity, "prices": price, "spend": activity * (each @ price), "slack": supply - used}
    if problem["utility"] == "linear":  # goods are pools of one resource; a whole task is all there is
        market = Market(
            np.full((len(budgets), 1), supply.sum() * UNIT), supply[:, None] * UNIT, budgets, problem["values"]
        )
        allocation = clear(market)
        amount = allocation.share * supply.sum()
        price = allocation.price[:, 0] * UNIT
        return {
            "prices": price,
            "utilities": market.per_task(amount * market.value),
            "spend": market.per_task(amount * price[market.indices]),
        }
    if problem["utility"] == "cobb_douglas":  # an agent splits its budget by its exponents: one task for each good
        part = np.array(problem["exponents"], float) * np.array(budgets, float)[:, None]
        n, m = part.shape
        market = Market(
            np.tile(supply, n)[:, None] * UNIT,
            supply[:, None] * UNIT,
            part.ravel(),
            indptr=np.arange(n * m + 1),
            indices=np.tile(np.arange(m), n),
        )
        allocation = clear(market)
        return {"prices": allocation.price[:, 0] * UNIT, "allocation": (allocation.share).reshape(n, m) * supply}
    return by_responding(problem)


def by_responding(problem: dict) -> dict:
    """Utilities that clearing does not have, by the baseline that has: bids that answer what they bought."""
    budget, supply = np.array(problem["budgets"], float), np.array(problem["supply"], float)
    keeps = problem["utility"] == "quasilinear"
    bid = proportional_response(
        budget, supply, np.array(problem["values"], float), 20_000, rho=problem.get("rho", 1.0), keeps=keeps
    )
    price = bid.sum(axis=0) / supply
    kept = budget - bid.sum(axis=1)
    return {"prices": price, "allocation": bid / price, "kept": kept, "revenue": bid.sum()}


def network_alpha_fair(problem: dict) -> dict:
    """A link is a resource of one pool that holds the whole network; a route uses each of its links alike."""
    if problem["alpha"] != 1:
        pytest.skip(f"kind: network_alpha_fair with alpha {problem['alpha']} has no door yet")
    capacity = np.array(problem["capacity"], float)
    uses = np.zeros((len(problem["routes"]), len(capacity)))
    for i, route in enumerate(problem["routes"]):
        uses[i, route] = 1.0
    most = np.array([capacity[route].min() for route in problem["routes"]])
    allocation = clear(Market(uses * most[:, None] * UNIT, capacity[None] * UNIT))
    return {"rates": allocation.share * most, "link_prices": allocation.price[0] * UNIT}


def plain_softmax(problem: dict) -> dict:
    scores, capacity = np.array(problem["scores"], float), np.array(problem["capacity"], float)
    market = Market(np.ones((len(scores), 1)), capacity[:, None])
    granted, taken = literal(market, scores.ravel())
    return {
        "weights": attention(market, scores.ravel()).reshape(scores.shape),
        "granted": granted[:, 0],
        "pool_use": taken[:, 0],
        "oversubscribed": taken[:, 0] > capacity,
    }


def price_adjusted_attention(problem: dict) -> dict:
    scores, tau, mass = np.array(problem["scores"], float), problem["tau"], np.array(problem["row_mass"], float)
    weights, price = attend(scores, problem["capacity"], tau, mass=mass)
    again = np.exp((scores - price[:, 0]) / tau)
    again *= (mass / again.sum(axis=1))[:, None]
    return {
        "weights": weights,
        "prices": price[:, 0],
        "objective": (weights * scores).sum() - tau * (weights * np.log(weights)).sum(),
        "softmax_at_prices_equals_weights": bool(np.allclose(again, weights, atol=1e-8)),
    }


def maxmin(problem: dict) -> dict:
    """One resource: what a task gets in all, as a share of what it asks."""
    demand, weights = np.array(problem["demands"], float), np.array(problem["weights"], float)
    market = Market(demand[:, None] * UNIT, [[problem["capacity"] * UNIT]], weights / demand)
    return {"allocation": clear(market, "leximin").share * demand}


def drf(problem: dict) -> dict:
    """A whole task is as many of the case's small ones as the pool could hold of them alone."""
    capacity, each = np.array(problem["capacity"], float), np.array(problem["demand_per_task"], float)
    with np.errstate(divide="ignore"):
        most = (capacity / each).min(axis=1)
    allocation = clear(Market(each * most[:, None] * UNIT, capacity[None] * UNIT, problem["weights"]), "drf")
    tasks = allocation.share * most
    return {
        "tasks": tasks,
        "dominant_share": (tasks[:, None] * each / capacity).max(axis=1),
        "used": tasks @ each,
    }


def lp_prices(problem: dict) -> dict:
    """A variable is a task in one pool of all rows; a whole task is twice what the rows allow of it: its cap never binds."""
    rows, limit = np.array(problem["A_ub"], float), np.array(problem["b_ub"], float)
    worth = np.array(problem["maximize"], float)
    with np.errstate(divide="ignore"):
        most = 2 * (limit[:, None] / rows).min(axis=0)
    allocation = clear(Market((rows * most).T * UNIT, limit[None] * UNIT, worth * most), "welfare")
    return {
        "x": allocation.share * most,
        "objective": allocation.value,
        "shadow_prices": allocation.price[0] * UNIT,
    }


def hdrf(problem: dict) -> dict:
    return {"tasks": hierarchical(np.array(problem["capacity"], float), problem["tree"])}


ROWS = (
    capped_fisher,
    temporal_fisher,
    fisher,
    network_alpha_fair,
    plain_softmax,
    price_adjusted_attention,
    maxmin,
    drf,
    lp_prices,
    hdrf,
)
