"""Small worlds for the tests of the log: rounds drawn from a seed, and logs made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome, Round
from apportion.core.units import MICRO, PRICE, SHARE, whole_down
from apportion.ledger import records
from apportion.ledger.log import Log
from apportion.ledger.note import Signer
from apportion.settlement.settle import settle

RESOURCES = ("cpu", "memory", "bandwidth")
KEY = Signer("world.example/small", bytes(range(32)))
ALPHA, KAPPA = 0.5, 3.0


@dataclass
class Played:
    tasks: Tasks
    pools: Pools
    market: Market
    allocation: Allocation
    outcome: Outcome
    bills: Bills
    before: np.ndarray
    after: np.ndarray


ENTITLEMENT = np.array([0.5, 0.3, 0.2])
SUPPLY = 3_000_000_000


def opening() -> np.ndarray:
    return np.array([1_500_000_000, 900_000_000, 600_000_000])


def play(
    seed: int,
    balance: np.ndarray,
    n: int = 4,
    m: int = 2,
    scarce: bool = True,
    allocate: Callable[[Market, int], Allocation] | None = None,
) -> Played:
    """Draw one round: a plain allocation that fits, with prices and the bound they prove."""
    rng = np.random.default_rng(seed)
    r = len(RESOURCES)
    pools = Pools(tuple(f"node-{j}" for j in range(m)), RESOURCES, rng.integers(2_000, 9_000, (m, r)).astype(float))
    demand = rng.integers(100 if scarce else 1, 6_000 if scarce else 50, (n, r)).astype(float)
    sponsor = rng.integers(-1, len(ENTITLEMENT), n)
    tasks = Tasks(
        name=tuple(f"task-{i}" for i in range(n)),
        kind=tuple(rng.choice(["game", "social", "commerce"], n).tolist()),
        account=rng.integers(0, len(ENTITLEMENT), n),
        sponsor=sponsor,
        demand=demand,
        base=np.floor(demand / 2),
        surge=np.where(rng.random(n) < 0.5, 1.0, 2.5),
        floor=np.zeros(n),
        cap=np.ones(n),
        weight=rng.uniform(0.1, 5.0, n),
        priority=rng.integers(0, 10, n),
        target=np.full(n, 0.95),
        eligible=tuple(tuple(range(m)) for _ in range(n)),
    )
    bid = np.array([int(balance[a]) // (20 * n) for a in tasks.account])
    value = rng.uniform(0.3, 1.0, n * m)
    free = np.zeros(n * m)
    market = Market(
        demand,
        pools.capacity,
        bid / MICRO,
        value,
        indptr=np.arange(0, n * m + 1, m),
        indices=np.tile(np.arange(m), n),
        floor=tasks.floor,
        cap=tasks.cap,
        mean=rng.uniform(0.0, 0.5, n),
        eta=0.75,
        free=free,
        tasks=tasks.name,
        pools=pools.name,
        resources=RESOURCES,
    )
    guaranteed = whole_down(ALPHA * ENTITLEMENT[:, None, None] * pools.capacity)  # account, pool, resource
    parts = np.zeros(n * m, np.int64)
    given = np.zeros_like(guaranteed)
    for e, (i, j) in enumerate(zip(market.row, market.indices, strict=True)):
        own = guaranteed[tasks.account[i], j] - given[tasks.account[i], j]
        parts[e] = min(SHARE // (4 * m), int((own * SHARE // demand[i]).min()))
        given[tasks.account[i], j] += -(-demand[i].astype(np.int64) * parts[e] // SHARE)
    had = np.bincount(market.row, weights=parts).astype(np.int64)
    tasks = replace(tasks, floor=np.where(rng.random(n) < 0.5, had // 2, 0) / SHARE)
    market = Market(
        **{
            k: getattr(market, k)
            for k in ("demand", "capacity", "weight", "value", "indptr", "indices", "cap", "mean", "eta")
        },
        free=parts / SHARE,
        floor=tasks.floor,
        tasks=tasks.name,
        pools=pools.name,
        resources=RESOURCES,
    )
    allocation = (allocate or fill)(market, seed)
    granted = allocation.granted
    delivered = np.where(
        rng.random(granted.shape) < 0.2, -1, granted - (rng.random(granted.shape) < 0.3) * (granted // 7)
    )
    asked = rng.integers(-1, 1000, n)
    outcome = Outcome(
        delivered,
        asked,
        np.where(asked < 0, -1, (np.maximum(asked, 0) * rng.random(n)).astype(np.int64)),
        "sim",
        ("measured", "measured", "unmeasured"),
        ("task-0: restarted",) if seed % 2 else (),
    )
    bills = settle(tasks, allocation, outcome, balance, ENTITLEMENT, ALPHA, KAPPA, SUPPLY)
    after = balance.copy()
    for p in bills.postings:
        after[p.account] += p.amount
    return Played(tasks, pools, market, allocation, outcome, bills, balance, after)


def fill(market: Market, seed: int) -> Allocation:
    """Fill pools evenly up to what fits, at any prices, with a bound that these prices prove (not the least)."""
    rng = np.random.default_rng(seed)
    row, pool = market.row, market.indices
    left = market.capacity - market.load(market.free)
    had = market.per_task(market.free)
    upper, lower = market.cap - had, np.maximum(market.floor - had, 0)
    even = (upper / np.maximum(1, np.diff(market.indptr)))[row]
    load = market.load(even)
    fit = np.min(np.where(load > 0, left / np.maximum(load, 1e-9), 1.0), axis=1).clip(0, 1)
    share = np.rint((market.free + np.floor(even * fit[pool] * SHARE * 0.999) / SHARE) * SHARE) / SHARE
    price = market.weight.sum() / market.capacity * rng.uniform(0, 1, market.capacity.shape)
    price = np.floor(np.where(fit[:, None] < 1, price, 0) * PRICE) / PRICE

    bought = market.per_task(market.value * (share - market.free))
    memory, eta, w = (1 - market.eta) * market.mean, market.eta, market.weight
    worth = lambda u: w * np.log(memory + eta * u)  # noqa: E731
    top = upper * np.maximum.reduceat(market.value, market.indptr[:-1])
    slope = w * eta / (memory + eta * np.clip(bought * 1.1, 1e-9, top))
    best = np.maximum.reduceat(
        slope[row] * market.value - (market.demand[row] * price[pool]).sum(1), market.indptr[:-1]
    )
    most = np.clip(w / slope - memory / eta, 0, top)
    each = worth(most) - slope * most + np.where(best > 0, upper, lower) * best
    value, bound = float(worth(bought).sum()), float((left * price).sum() + each.sum())
    gap = float(np.expm1((bound - value) / w.sum()))
    return Allocation(market, share, price, "proportional", value, bound, gap, steps=3)


def genesis() -> records.Record:
    return records.genesis(
        "0.000",
        world="small",
        digest="00" * 32,
        resources=RESOURCES,
        accounts=("guild", "market", "city"),
        entitlement=ENTITLEMENT,
        balance=opening(),
        alpha=ALPHA,
        kappa=KAPPA,
        credits_per_round=100 * MICRO,
        policy="market",
        seed=7,
        engine="sim",
        round_seconds=1.0,
        settings={"objective": "proportional"},
    )


def write_round(log: Log, number: int, p: Played, policy: str = "market") -> None:
    at = f"{number}.000"
    log.append([records.demand(number, at, p.tasks, p.pools, p.market, p.before)])
    log.append([records.decision(number, at, p.allocation, policy)])
    log.append(
        [
            records.outcome(number, at, p.outcome, p.allocation),
            records.bills(number, at, p.bills, p.after, p.tasks),
        ]
    )


def small_log(path: Path, rounds: int = 3, seed: int = 0, n: int = 4, m: int = 2) -> Path:
    """Write a log of a few rounds and close it."""
    with Log.create(path, KEY) as log:
        log.append([genesis()])
        for number, played in enumerate(drawn(rounds, seed, n, m)):
            write_round(log, number, played)
    return path


def remark(k: int, size: int = 20) -> records.Record:
    """Make an entry that says its number."""
    return records.note("0.000", f"{k:06d}" + "x" * size)


def long_log(path: Path, entries: int, start: int = 0) -> Path:
    """Write a log of remarks, or go on with one from `start` entries, and close it."""
    with Log.create(path, KEY) if not start else Log.open(path, KEY) as log:
        log.append([records.note("0.000", str(k)) for k in range(start, entries)])
    return path


def drawn(rounds: int, seed: int = 0, n: int = 4, m: int = 2) -> Iterator[Played]:
    """Draw the rounds that `small_log` writes."""
    balance = opening()
    for number in range(rounds):
        played = play(seed + number, balance, n, m)
        yield played
        balance = played.after


def rounds(count: int) -> list[Round]:
    """Give the rounds that `small_log` writes as an engine would have played them."""
    return [
        Round(number, p.tasks, p.pools, p.market, p.allocation, p.outcome, p.bills, p.after)
        for number, p in enumerate(drawn(count))
    ]
