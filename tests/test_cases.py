"""Known answers: every case of APPORTION_CASES through the public door that its kind names.

A row of `KINDS` turns a case's problem into a call and its answer into the case's words; a kind without a row skips.
Amounts become base units (a million to one), so that whole units and whole parts stay inside every tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apportion.clearing.attention import attend
from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.clearing.rules import attention, literal
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Outcome
from apportion.core.units import MICRO, part
from apportion.intake.gate import Gate
from apportion.settlement.settle import settle

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
    pytest.skip(f"kind: fisher with {problem['utility']} utility has no door yet")
    return {}


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


def round_settlement(problem: dict) -> dict:
    """One task for each tenant, through the gate, the clearing and the bills of a real round."""
    demand, entitlement = np.array(problem["demand"], float) * UNIT, np.array(problem["entitlement"], float)
    n, alpha = len(demand), problem["guaranteed_fraction"]
    names = tuple(f"tenant {a}" for a in range(n))
    tasks = Tasks(
        name=names,
        kind=("process",) * n,
        account=np.arange(n),
        sponsor=np.full(n, -1),
        demand=demand[:, None],
        base=demand[:, None],
        surge=np.ones(n),
        floor=np.zeros(n),
        cap=np.ones(n),
        weight=np.ones(n),
        priority=np.zeros(n, np.int64),
        target=np.ones(n),
        eligible=((0,),) * n,
    )
    pools = Pools(("pool",), ("thing",), np.array([[problem["capacity"] * float(UNIT)]]))
    bid = np.array(problem["bid_budget"], np.int64) * MICRO
    balance = np.array(problem["balance"], np.int64) * MICRO
    allocation = fix(clear(Gate(entitlement, alpha).admit(tasks, pools, bid)))
    unknown = np.full(n, -1)
    outcome = Outcome(np.full((n, 1), -1), unknown, unknown, "none", ("unmeasured",))
    bills = settle(tasks, allocation, outcome, balance, entitlement, alpha, kappa=100.0, supply=int(balance.sum()))
    moved = {kind: np.zeros(n) for kind in ("charge", "donor", "dividend", "floor", "overflow")}
    for posting in bills.postings:
        moved[posting.kind][posting.account] += posting.amount / MICRO
    given = part(demand.astype(np.int64), allocation.free_parts)
    after = balance / MICRO + sum(moved.values())
    return {
        "guaranteed_used": given / UNIT,
        "donated": alpha * entitlement * problem["capacity"] - given / UNIT,
        "bought": (allocation.granted[:, 0] - given) / UNIT,
        "allocation": allocation.granted[:, 0] / UNIT,
        "price": allocation.price[0, 0] * UNIT,
        "charge": -moved["charge"],
        "donor_credit": moved["donor"],
        "dividend": moved["dividend"],
        "balance_after": after,
        "total_after": after.sum(),
    }


KINDS: dict[str, Callable[[dict], dict]] = {
    row.__name__: row
    for row in (
        capped_fisher,
        temporal_fisher,
        fisher,
        network_alpha_fair,
        plain_softmax,
        price_adjusted_attention,
        maxmin,
        drf,
        lp_prices,
        round_settlement,
    )
}


def test_known_answers(case: Path):
    told = json.loads(case.read_text())
    if told["kind"] not in KINDS:
        pytest.skip(f"kind: {told['kind']} has no door yet")
    answer = KINDS[told["kind"]](told["problem"])
    assert set(answer) >= set(told["expected"]) - free_to_differ(told)
    for name, want in told["expected"].items():
        if name in answer:
            absolute, relative = (told["tolerance"].get(key, 0.0) for key in ("abs", "rel"))
            assert np.asarray(answer[name], float) == pytest.approx(np.array(want, float), abs=absolute, rel=relative)


def free_to_differ(told: dict) -> set[str]:
    """Give the names of what the case says is not unique; the rest must be answered."""
    return {note.split()[0] for note in told.get("not_unique") or ()}
