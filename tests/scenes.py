"""Rounds to be settled, drawn from a seed or put together by hand: all that settle reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Tasks
from apportion.core.round import Bills, Outcome
from apportion.core.units import MICRO, PRICE, SHARE
from apportion.settlement.settle import settle
from apportion.settlement.whole import by_account, proportion


@dataclass(frozen=True)
class Scene:
    """Everything that settle reads."""

    tasks: Tasks
    allocation: Allocation
    outcome: Outcome
    balance: np.ndarray
    entitlement: np.ndarray
    alpha: float = 0.5
    kappa: float = 4.0

    def settle(self) -> Bills:
        supply = int(self.balance.sum())
        return settle(
            self.tasks, self.allocation, self.outcome, self.balance, self.entitlement, self.alpha, self.kappa, supply
        )

    @property
    def bid(self) -> np.ndarray:
        return np.rint(self.allocation.market.weight * MICRO).astype(np.int64)


def make_tasks(account, sponsor=None, weight=None, surge=None, demand=None) -> Tasks:
    n = len(account)
    demand = np.ones((n, 1)) if demand is None else np.asarray(demand, float)
    return Tasks(
        name=tuple(f"t{i}" for i in range(n)),
        kind=("game",) * n,
        account=np.asarray(account, np.int64),
        sponsor=np.full(n, -1) if sponsor is None else np.asarray(sponsor, np.int64),
        demand=demand,
        base=demand,
        surge=np.ones(n) if surge is None else np.asarray(surge, float),
        floor=np.zeros(n),
        cap=np.ones(n),
        weight=np.ones(n) if weight is None else np.asarray(weight, float),
        priority=np.zeros(n, np.int64),
        target=np.full(n, 0.9),
        eligible=((0,),) * n,
    )


def draw(seed: int, floors: bool = True, guarantees: bool = True, bold: bool = False) -> Scene:
    """A round as it may come out of any policy: random shares, prices, deliveries and purses.

    bold: bids are not held to balances, as a faulty policy might bid.
    """
    rng = np.random.default_rng(seed)
    accounts, n, m, r = rng.integers(1, 6), rng.integers(1, 9), rng.integers(1, 4), rng.integers(1, 4)
    scale = 10.0 ** rng.integers(0, 8)
    demand = np.floor(rng.uniform(0, 10, (n, r)) * scale)
    eligible = rng.random((n, m)) < 0.7
    pairs = int(eligible.sum())
    share = rng.dirichlet(np.ones(m + 1), n)[:, :m][eligible] * (rng.random(pairs) < 0.9)
    share = np.floor(share * SHARE) / SHARE
    free = np.floor(share * rng.random(pairs) * SHARE) / SHARE if guarantees else np.zeros(pairs)
    account = rng.integers(0, accounts, n)
    served = np.bincount(np.nonzero(eligible)[0], share, minlength=n)
    floor = np.minimum(served, rng.choice([0.0, 0.5, 1.0], n) * served) if floors else np.zeros(n)
    balance = np.floor(rng.uniform(0, 10, accounts) * MICRO * rng.integers(0, 2, accounts)).astype(np.int64)
    bid = np.floor(rng.uniform(0, 5, n) * MICRO).astype(np.int64)
    if not bold:
        total = by_account(account, bid, int(accounts))[account]
        bid = np.where(total > balance[account], proportion(bid, balance[account], total), bid)
    market = Market(
        demand,
        np.ceil(demand.sum(axis=0) * rng.uniform(1, 2, (m, 1))),
        bid / MICRO,
        eligible.astype(float),
        floor=floor,
        free=free,
    )
    price = np.rint(rng.uniform(0, 3 / scale, (m, r)) * rng.integers(0, 2, (m, r)) * PRICE) / PRICE
    allocation = Allocation(market, share, price, "proportional", 0.0, 0.0, 0.0)
    granted = allocation.granted
    delivered = np.where(rng.random(granted.shape) < 0.3, -1, np.floor(granted * rng.uniform(0, 1.2, granted.shape)))
    none = np.full(n, -1)
    outcome = Outcome(delivered.astype(np.int64), none, none, "none", ("drawn",) * int(r))
    tasks = make_tasks(account, rng.integers(-1, accounts, n), demand=demand)
    entitlement = rng.dirichlet(np.ones(accounts))
    if accounts > 1:
        entitlement[rng.integers(accounts)] *= rng.integers(0, 2)
    return Scene(tasks, allocation, outcome, balance, entitlement, float(rng.uniform(0, 1)), float(rng.uniform(1, 4)))


def net(bills: Bills, accounts: int, *kinds: str) -> np.ndarray:
    """What the postings of these kinds (all, if none are named) do to each account."""
    out = np.zeros(accounts, np.int64)
    for p in bills.postings:
        if not kinds or p.kind in kinds:
            out[p.account] += p.amount
    return out
