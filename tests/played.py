"""Rounds drawn from a seed, for tests of what is made of rounds: feasible shares, any prices, bills that sum to 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome, Posting, Postings, Round
from apportion.core.units import SHARE

RESOURCES = ("cpu", "memory")
ACCOUNTS = ("studio", "guild")
KINDS = ("game", "social", "commerce", "assets")


def rounds(
    seed: int = 0,
    count: int = 6,
    tasks: int = 4,
    pools: int = 1,
    names: tuple[str, ...] | None = None,
    resources: tuple[str, ...] = RESOURCES,
    surge: range = range(2, 4),
    silent: tuple[int, ...] = (),
) -> list[Round]:
    """Play `count` rounds; the first task surges in rounds `surge`; the tasks `silent` never report."""
    rng = np.random.default_rng(seed)
    names = names or tuple(KINDS[i] if i < len(KINDS) else f"{KINDS[i % 4]}-{i}" for i in range(tasks))
    held = np.array([20_000_000, 10_000_000])
    out = []
    for number in range(count):
        out.append(one(rng, number, names, pools, resources, 6.0 if number in surge else 1.0, silent, held))
        held = out[-1].balance
    return out


def one(
    rng: np.random.Generator,
    number: int,
    names: tuple[str, ...],
    pools: int,
    resources: tuple[str, ...],
    surge: float,
    silent: tuple[int, ...],
    held: np.ndarray,
) -> Round:
    n, m, k = len(names), pools, len(resources)
    factor = np.ones(n)
    factor[:1] = surge
    base = rng.integers(500, 2000, (n, k)).astype(float)
    demand = np.floor(base * factor[:, None])
    capacity = np.floor(np.full((m, k), 0.7 * 1500 * n / m))
    account = np.arange(n) % len(ACCOUNTS)
    market = Market(demand, capacity, rng.uniform(0.1, 1, n), tasks=names, pools=[f"pool-{j}" for j in range(m)])
    load = market.load(np.full(n * m, 1 / m))
    share = np.floor(SHARE / m / max(1.0, (load / capacity).max()) * rng.uniform(0.7, 1, n * m)) / SHARE
    allocation = Allocation(market, share, rng.uniform(0, 1e-3, (m, k)), "proportional", 1.0, 1.01, 0.01, 3, 0.002)
    delivered = np.floor(allocation.granted * rng.uniform(0.9, 1, (n * m, k))).astype(np.int64)
    delivered[:, 1:] = -1
    asked = rng.integers(50, 100, n)
    in_time = (asked * rng.uniform(0.3, 1, n)).astype(np.int64)
    asked[list(silent)] = in_time[list(silent)] = -1
    source = ("counter", *("unmeasured" for _ in resources[1:]))
    paid = rng.integers(0, 200_000, n)
    shown = Tasks(
        name=names,
        kind=tuple(KINDS[i % 4] for i in range(n)),
        account=account,
        sponsor=np.full(n, -1),
        demand=demand,
        base=base,
        surge=factor,
        floor=np.zeros(n),
        cap=np.ones(n),
        weight=np.ones(n),
        priority=np.arange(n),
        target=np.full(n, 0.8),
        eligible=tuple(tuple(range(m)) for _ in names),
    )
    bills = bill(account, paid)
    balance = held.copy()
    for p in bills.postings:
        balance[p.account] += p.amount
    return Round(
        number,
        shown,
        Pools(tuple(f"pool-{j}" for j in range(m)), resources, capacity),
        market,
        allocation,
        Outcome(delivered, asked, in_time, "sim", source),
        bills,
        balance,
    )


def bill(account: np.ndarray, paid: np.ndarray) -> Bills:
    """Charge what each task pays and hand it all back to the first account."""
    charges = [Posting(int(a), "charge", -int(x), i) for i, (a, x) in enumerate(zip(account, paid, strict=True))]
    zero = np.zeros(len(paid), np.int64)
    return Bills(Postings.of(*charges, Posting(0, "dividend", int(paid.sum()))), paid, zero, zero)


def changed_outcome(round: Round, rng: np.random.Generator) -> Round:
    """The same decision with another outcome and other bills."""
    n = len(round.tasks.name)
    o = round.outcome
    asked = rng.integers(0, 100, n)
    outcome = replace(o, delivered=o.delivered // 2, asked=asked, in_time=asked // 3, enforcer="other")
    before = round.balance.copy()
    for p in round.bills.postings:
        before[p.account] -= p.amount
    bills = bill(round.tasks.account, rng.integers(0, 50_000, n))
    for p in bills.postings:
        before[p.account] += p.amount
    return replace(round, outcome=outcome, bills=bills, balance=before)
