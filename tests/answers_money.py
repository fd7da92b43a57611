"""Known answers about money, auctions and other people's rules: each row turns a case's problem into a call, and its answer
into the case's words."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest

from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.core.errors import Refused
from apportion.core.market import Pools, Tasks
from apportion.core.round import Outcome
from apportion.core.units import MICRO, part
from apportion.intake.gate import Gate
from apportion.settlement.crossing import cross, mcafee, midpoint, sbba, vcg
from apportion.settlement.lots import assign, packages, uniform_price
from apportion.settlement.pool import Pool
from apportion.settlement.settle import settle
from apportion.settlement.tree import Tree
from apportion.study import reference
from apportion.study.stats import jain

UNIT = 10**6  # base units in one of a case's units


def micro(credits) -> np.ndarray:
    return np.rint(np.asarray(credits, float) * MICRO).astype(np.int64)


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
    given = part(demand.astype(np.int64), allocation.market.free_parts)
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


def fair_tree(problem: dict) -> dict:
    names, parent, weight, need = [], [], [], []

    def add(children: dict, above: int) -> None:
        for name, node in children.items():
            names.append(name)
            parent.append(above)
            weight.append(float(node["weight"]))
            need.append(round(node.get("cap", problem["capacity"]) * UNIT))
            add(node.get("children", {}), len(names) - 1)

    add(problem["tree"], -1)
    tree = Tree(np.array(parent), np.array(weight))
    got = tree.divide(problem["capacity"] * UNIT, np.array(need))
    return {"allocation": {names[a]: got[a] / UNIT for a in np.flatnonzero(tree.leaf)}}


def auction_multiunit(problem: dict) -> dict:
    bid = micro(problem["bids"])
    sales = [uniform_price(bid, r["units"], int(r["reserve"] * MICRO)) for r in problem["rounds"]]
    return {"results": [{"winners": list(s.winners), "price": s.price / MICRO} for s in sales]}


def auction_expected_revenue(problem: dict) -> dict:
    drawn = np.random.default_rng(1).random((200_000, problem["bidders"]))
    return {"expected_revenue": reference.vickrey_revenue(drawn, float(problem["reserve"])).mean()}


def auction_vcg(problem: dict) -> dict:
    offers = [{frozenset[Hashable](b["bundle"]): int(b["value"] * MICRO) for b in bidder} for bidder in problem["bids"]]
    award = packages(offers, problem["items"])
    return {
        "allocation": [sorted(map(str, bundle)) for bundle in award.bundle],
        "welfare": award.welfare / MICRO,
        "payments": [p / MICRO for p in award.payment],
        "revenue": sum(award.payment) / MICRO,
    }


def auction_optimal_menu(problem: dict) -> dict:
    item, bundle = reference.best_menu()
    return {"revenue": reference.menu_revenue(item, bundle), "item_price": item, "bundle_price": bundle}


def double_auction(problem: dict) -> dict:
    value, cost = micro(problem["buyer_values"]), micro(problem["seller_costs"])
    c = cross(value, cost)
    one_price = lambda t: {  # noqa: E731
        "trades": len(t.buyers),
        "price": t.pays / MICRO,
        "buyer_pays": t.pays / MICRO,
        "seller_gets": t.gets / MICRO,
        "budget_surplus": t.surplus / MICRO,
    }
    return {
        "efficient_trades": c.count,
        "gain_from_trade": c.gain / MICRO,
        "price_interval": [p / MICRO for p in c.interval],
        "midpoint": one_price(midpoint(value, cost)),
        "vcg": one_price(vcg(value, cost)),
        "mcafee": one_price(mcafee(value, cost)),
        "sbba": one_price(sbba(value, cost, lambda k: 0)),
    }


def assignment_game(problem: dict) -> dict:
    answer = assign(micro(problem["buyer_values"]), micro(problem["seller_reserves"]))
    return {
        "gain": answer.gain / MICRO,
        "assignment": answer.lot.tolist(),
        "min_competitive_prices": (answer.low / MICRO).tolist(),
        "max_competitive_prices": (answer.high / MICRO).tolist(),
    }


def amm_constant_product(problem: dict) -> dict:
    out = []
    for swap in problem["swaps"]:
        pool = Pool((int(swap["reserve_in"]), int(swap["reserve_out"])), fee=tuple(problem["fee"]))
        amount = int(swap["in"])
        out.append(str(pool.swap(0, amount)[1]))
        with pytest.raises(Refused, match="lower the pool's product"):
            pool.exchange(0, amount, int(out[-1]) + 1)
    return {"out": out}


def karma(problem: dict) -> dict:
    users = len(problem["demands"][0])
    credits = np.full(users, problem["initial_credits"])
    each = np.full(users, problem["guaranteed_each"])
    answer: dict = {"allocations": [], "credits_after": [], "total_credits": []}
    for demand in problem["demands"]:
        got, credits = reference.karma(
            np.array(demand), credits, each, problem["shared_slices"], problem["free_credits_per_quantum_each"]
        )
        answer["allocations"].append(got.tolist())
        answer["credits_after"].append(credits.tolist())
        answer["total_credits"].append(int(credits.sum()))
    return answer


def asset_fairness(problem: dict) -> dict:
    capacity, demand = np.array(problem["capacity"], float), np.array(problem["demand_per_task"], float)
    return {"tasks": reference.asset_fairness(capacity, demand).tolist()}


def drf_discrete(problem: dict) -> dict:
    capacity, demand = np.array(problem["capacity"], float), np.array(problem["demand_per_task"], float)
    tasks, order = reference.drf_discrete(capacity, demand, problem["first_pick"])
    return {"tasks": tasks.tolist(), "order": order}


def kelly_price_taking(problem: dict) -> dict:
    amount, price = reference.kelly(float(problem["capacity"]), np.array(problem["bids"], float))
    return {"allocation": amount.tolist(), "price": price}


def kelly_nash(problem: dict) -> dict:
    amount, price, efficiency = reference.kelly_nash(float(problem["capacity"]), np.array(problem["slopes"], float))
    return {"allocation": amount.tolist(), "price": price, "efficiency": efficiency, "bound": 0.75}


def proportional_response(problem: dict) -> dict:
    budget, supply, value = (np.array(problem[key], float) for key in ("budgets", "supply", "values"))
    after = lambda steps: reference.proportional_response(budget, supply, value, steps)  # noqa: E731
    return {"bids": after(problem["steps"]).tolist(), "limit_prices": (after(200).sum(axis=0) / supply).tolist()}


def indices(problem: dict) -> dict:
    vectors = [np.array(v, float) for v in problem["vectors"]]
    return {
        "gini": [reference.gini(v) for v in vectors],
        "gini_normalised": [reference.gini(v, normalised=True) for v in vectors],
        "jain": [jain(v) for v in vectors],
    }


ROWS = (
    round_settlement,
    fair_tree,
    auction_multiunit,
    auction_expected_revenue,
    auction_vcg,
    auction_optimal_menu,
    double_auction,
    assignment_game,
    amm_constant_product,
    karma,
    asset_fairness,
    drf_discrete,
    kelly_price_taking,
    kelly_nash,
    proportional_response,
    indices,
)
