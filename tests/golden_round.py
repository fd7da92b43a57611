"""The worked example of docs/format.md: one pool, two tasks, one round that can be followed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Outcome
from apportion.core.units import MICRO, SHARE
from apportion.ledger import records
from apportion.ledger.log import Log
from apportion.ledger.note import Signer
from apportion.settlement.settle import settle

KEY = Signer("example.org/worked", bytes(range(32)))


def write(path: Path) -> None:
    """Write genesis and one round of 1000 millicores, wanted twice over, with bids of 2 credits and 1."""
    entitlement, balance = np.array([0.5, 0.5]), np.array([10 * MICRO, 10 * MICRO])
    pools = Pools(("main",), ("cpu",), np.array([[1000.0]]))
    demand = np.array([[1000.0], [1000.0]])
    tasks = Tasks(
        name=("shard", "chat"),
        kind=("game", "social"),
        account=np.array([0, 1]),
        sponsor=np.array([-1, 0]),
        demand=demand,
        base=np.array([[500.0], [1000.0]]),
        surge=np.array([2.0, 1.0]),
        floor=np.array([0.0, 0.25]),
        cap=np.ones(2),
        weight=np.ones(2),
        priority=np.array([5, 1]),
        target=np.array([0.95, 0.9]),
        eligible=((0,), (0,)),
    )
    market = Market(
        demand, pools.capacity, [2.0, 1.0], floor=tasks.floor, tasks=tasks.name, pools=("main",), resources=("cpu",)
    )
    value = -1.9095425078844384  # 2 log(.666666666) + log(.333333333)
    bound = -1.9095425048834387  # 2 log(2/3) + log(1/3), and 10^-12 for what adding doubles may lose
    gap = 1.00033322416296e-09  # exp((bound - value) / 3) - 1
    share = np.array([666_666_666, 333_333_333]) / SHARE
    allocation = Allocation(market, share, np.array([[0.003]]), "proportional", value, bound, gap, steps=4)
    outcome = Outcome(
        np.array([[650], [-1]]), np.array([200, 90]), np.array([199, 81]), "cgroup1", ("cgroup",), ("chat: restarted",)
    )
    bills = settle(tasks, allocation, outcome, balance, entitlement, 0.0, 4.0, 20 * MICRO)
    after = balance.copy()
    for line in bills.postings:
        after[line.account] += line.amount
    start = records.genesis(
        "1760000000.000",
        world="worked",
        digest="0" * 64,
        resources=("cpu",),
        accounts=("studio", "guild"),
        entitlement=entitlement,
        balance=balance,
        alpha=0.0,
        kappa=4.0,
        credits_per_round=4 * MICRO,
        policy="market",
        seed=1,
        engine="local",
        round_seconds=5.0,
    )
    with Log.create(path, KEY) as log:
        log.append([start])
        log.append([records.demand(0, "1760000000.100", tasks, pools, market, balance)])
        log.append([records.decision(0, "1760000000.104", allocation, "market")])
        log.append(
            [
                records.outcome(0, "1760000005.100", outcome, allocation),
                records.bills(0, "1760000005.101", bills, after, tasks),
            ]
        )
