"""What is written of a round: the nouns of core as entries and tables (`reading` gives them back).

One round is four entries, in this order, with its number in each:

    demand    before anything is solved: tasks, pools, bids, guarantees, balances
    decision  before anything runs: shares and prices, with value, bound and gap
    outcome   what was delivered and experienced
    bills     who paid whom, and every balance after it

or it is closed by `aborted`, and nothing is charged. `genesis` is entry 0; `act` and `note` may stand anywhere.
Amounts are decimal strings: whole base units, whole 10^-9 shares, whole 10^-12 prices, whole micro-credits;
other reals in the shortest decimal that gives the same IEEE 754 double again. Counters are JSON integers.
docs/format.md is the law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import POSTING_KINDS, Bills, Outcome, Posting, Postings
from apportion.core.units import MICRO, PRICE, SHARE, resource
from apportion.ledger.canonical import Json, Record
from apportion.ledger.numbers import count, real, reals, texts, whole


def genesis(
    at: str,
    *,
    world: str,
    digest: str,
    resources: Sequence[str],
    accounts: Sequence[str],
    entitlement: Float[np.ndarray, " account"],
    balance: Int[np.ndarray, " account"],
    alpha: float,
    kappa: float,
    credits_per_round: int,
    policy: str,
    seed: int,
    engine: str,
    round_seconds: float,
    settings: Mapping[str, str] | None = None,
    tree: tuple[Int[np.ndarray, " account"], Float[np.ndarray, " account"]] | None = None,
    budgets: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Record:
    """Say what the world is before its first round: who takes part, with how much money, in micro-credits.

    tree: where accounts nest, the row of each one's parent (-1: none) and its share among its siblings. budgets: where there are any,
    by account the rounds of a period, micro-credits, and base units times rounds of each resource; -1: no bound.
    """
    units = [resource(name) for name in resources]
    body = {
        "at": at,
        "world": world,
        "digest": digest,
        "alpha": real(alpha),
        "kappa": real(kappa),
        "supply": str(int(balance.sum())),
        "credits_per_round": str(int(credits_per_round)),
        "policy": policy,
        "seed": seed,
        "engine": engine,
        "round_seconds": real(round_seconds),
        "settings": dict(settings or {}),
    }
    columns = {"account": accounts, "entitlement": reals(entitlement), "balance": texts(balance)}
    if tree is not None:
        parent, share = tree
        columns |= {"parent": [a if a >= 0 else None for a in parent.tolist()], "share": reals(share)}
    if budgets is not None:
        columns["budget"] = [
            {"rounds": rounds, "credits": _bound(credits), "use": [_bound(x) for x in use]}
            if max(credits, *use) >= 0
            else None
            for rounds, credits, use in zip(*(x.tolist() for x in budgets), strict=True)
        ]
    tables = {
        "resources": [{"resource": u.name, "unit": u.unit, "base": u.base, "scale": str(u.scale)} for u in units],
        "accounts": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
    return Record("genesis", body, tables)


def demand(
    number: int, at: str, tasks: Tasks, pools: Pools, market: Market, balance: Int[np.ndarray, " account"]
) -> Record:
    """Write down what is asked for, with what money, before the solve."""
    if not np.array_equal(market.demand, tasks.demand) or not np.array_equal(market.capacity, pools.capacity):
        raise BadInput("the market to be logged is not that of these tasks and pools: admit them once more.")
    base, wanted = texts(whole("base", tasks.base)), texts(whole("demand", tasks.demand))
    bid = texts(whole("weight", market.weight, MICRO))
    free = texts(whole("free", market.free, SHARE))
    value, indices = reals(market.value), market.indices.tolist()
    surge, floor, cap = reals(tasks.surge), reals(tasks.floor), reals(tasks.cap)
    kept, largest, mean = reals(market.floor), reals(market.cap), reals(market.mean)
    weight, target = reals(tasks.weight), reals(tasks.target)
    roster, rows, broken = [], [], []
    for i, name in enumerate(tasks.name):
        pairs = slice(int(market.indptr[i]), int(market.indptr[i + 1]))
        sponsor = int(tasks.sponsor[i])
        roster.append(
            {
                "task": name,
                "kind": tasks.kind[i],
                "account": int(tasks.account[i]),
                "sponsor": sponsor if sponsor >= 0 else None,
                "base": base[i],
                "weight": weight[i],
                "priority": int(tasks.priority[i]),
                "target": target[i],
                "eligible": list(tasks.eligible[i]),
            }
        )
        rows.append(
            {
                "task": name,
                "demand": wanted[i],
                "surge": surge[i],
                "floor": floor[i],
                "cap": cap[i],
                "bid": bid[i],
                "floor_kept": kept[i],
                "cap_kept": largest[i],
                "mean": mean[i],
                "pool": indices[pairs],
                "value": value[pairs],
                "free": free[pairs],
            }
        )
        if market.floor[i] < tasks.floor[i] - 1 / SHARE:  # less than one part is rounding, not a broken promise
            broken.append({"task": name, "promised": floor[i], "kept": kept[i], "priority": int(tasks.priority[i])})
    capacity = texts(whole("capacity", pools.capacity))
    tables = {
        "roster": roster,
        "tasks": rows,
        "pools": [{"pool": name, "capacity": c} for name, c in zip(pools.name, capacity, strict=True)],
        "balances": _balances(balance),
    }
    if broken:
        tables["floor_broken"] = broken
    return Record("demand", {"at": at, "round": number, "eta": real(market.eta)}, tables)


def decision(number: int, at: str, allocation: Allocation, policy: str) -> Record:
    """Write down what is granted and at what prices, before anything runs. Prices are whole 10^-12: fix them first."""
    market = allocation.market
    share, price = texts(whole("share", allocation.share, SHARE)), texts(whole("price", allocation.price, PRICE))
    body = {
        "at": at,
        "round": number,
        "policy": policy,
        "objective": allocation.objective,
        "value": real(allocation.value),
        "bound": real(allocation.bound),
        "gap": real(allocation.gap),
        "steps": allocation.steps,
    }
    tables = {
        "shares": [
            {"task": name, "share": share[market.indptr[i] : market.indptr[i + 1]]}
            for i, name in enumerate(_named(market.tasks, len(market.demand), "task"))
        ],
        "prices": [
            {"pool": name, "price": p}
            for name, p in zip(_named(market.pools, len(market.capacity), "pool"), price, strict=True)
        ],
    }
    return Record("decision", body, tables)


def outcome(number: int, at: str, outcome: Outcome, allocation: Allocation) -> Record:
    """Write down what was delivered and how it was experienced."""
    market = allocation.market
    delivered = [[None if x < 0 else str(x) for x in row] for row in outcome.delivered.tolist()]
    rows = [
        {
            "task": name,
            "delivered": delivered[market.indptr[i] : market.indptr[i + 1]],
            "asked": count(outcome.asked[i]),
            "in_time": count(outcome.in_time[i]),
        }
        for i, name in enumerate(_named(market.tasks, len(market.demand), "task"))
    ]
    tables: dict[str, list[dict[str, Json]]] = {"delivered": rows}
    if outcome.notes:
        tables["notes"] = [{"note": text} for text in outcome.notes]
    body = {"at": at, "round": number, "enforcer": outcome.enforcer, "source": list(outcome.source)}
    return Record("outcome", body, tables)


def bills(number: int, at: str, bills: Bills, balance: Int[np.ndarray, " account"], tasks: Tasks) -> Record:
    """Write down who pays whom, and what every account holds after it."""
    lines = zip(tasks.name, texts(bills.paid), texts(bills.sponsored), texts(bills.waived), strict=True)
    tables = {
        "postings": _postings(bills.postings),
        "charges": [{"task": t, "paid": p, "sponsored": s, "waived": w} for t, p, s, w in lines],
        "balances": _balances(balance),
    }
    return Record("bills", {"at": at, "round": number}, tables)


def aborted(number: int, at: str, why: str) -> Record:
    """Close a round that was not played to its end; nothing is charged for it."""
    return Record("aborted", {"at": at, "round": number, "why": why}, {})


def act(at: str, what: str, details: Mapping[str, str] | None = None) -> Record:
    """Write down what an operator did, such as lifting every limit."""
    return Record("act", {"at": at, "what": what, "details": dict(details or {})}, {})


def note(at: str, text: str) -> Record:
    """Write down a remark."""
    return Record("note", {"at": at, "text": text}, {})


def transfer(
    at: str, postings: Sequence[Posting], balance: Int[np.ndarray, " account"], why: str, supply: int | None = None
) -> Record:
    """Move, make or burn money between rounds; `balance` and `supply` (None: their sum) are what is left after it."""
    body = {"at": at, "why": why, "supply": str(int(balance.sum()) if supply is None else supply)}
    tables = {"postings": _postings(Postings.of(*postings)), "balances": _balances(balance)}
    return Record("transfer", body, tables)


def model(at: str, name: str, digest: str, details: Mapping[str, str] | None = None) -> Record:
    """Say which model decides from here on, by the SHA-256 of its file in hex."""
    return Record("model", {"at": at, "name": name, "digest": digest, "details": dict(details or {})}, {})


def anchor(at: str, where: str, size: int, root: str, details: Mapping[str, str] | None = None) -> Record:
    """Say that a head of this log (root in hex) was written down elsewhere, such as on a chain."""
    body = {"at": at, "where": where, "size": size, "root": root, "details": dict(details or {})}
    return Record("anchor", body, {})


def _postings(postings: Postings) -> list[dict[str, Json]]:
    columns = (postings.account.tolist(), postings.kind.tolist(), texts(postings.amount), postings.task.tolist())
    return [
        {"account": account, "kind": POSTING_KINDS[kind], "amount": amount, "task": task if task >= 0 else None}
        for account, kind, amount, task in zip(*columns, strict=True)
    ]


def _bound(amount: int) -> str | None:
    return None if amount < 0 else str(amount)


def _balances(balance: Int[np.ndarray, " account"]) -> list[dict[str, Json]]:
    return [{"account": a, "balance": b} for a, b in enumerate(texts(balance))]


def _named(names: Sequence[str], n: int, what: str) -> Sequence[str]:
    return names or [f"{what} {k}" for k in range(n)]
