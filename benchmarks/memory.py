"""Does memory of use even out bursty use? Whole rounds: bids, gate, clearing, bills; no machine.

    python benchmarks/memory.py [--seeds 3] [--rounds 400] [--resources 1] [--alphas .5] [--half-lives 50 110]

20 tenants of equal mean demand want 10/duty slots in a part `duty` of the rounds, at random: five each of duty 1, .5, .25, .1; 200 slots.
`satisfied` is a tenant's slots got / wanted over all rounds; shown is the least / greatest of these, mean and worst over seeds, and
how much of what could be used was. Beside it the same rounds without memory (max-min, for one resource) and Karma (OSDI 2023),
which makes credits: the factor is shown. With two resources, each tenant wants a ratio of its own, drawn from [.25, 1].
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Outcome
from apportion.core.units import MICRO
from apportion.intake.gate import Gate
from apportion.settlement.accounts import Accounts
from apportion.settlement.memory import Memory
from apportion.settlement.settle import settle
from apportion.study.reference import karma

TENANTS, SLOTS, MEAN = 20, 200, 10.0
DUTY = np.repeat([1, 0.5, 0.25, 0.1], TENANTS // 4)
UNIT = 1000  # base units of a slot
NAMES = tuple(f"tenant-{a}" for a in range(TENANTS))
POOL = Pools(("pool",), ("cpu",), np.array([[float(SLOTS * UNIT)]]))


def wanted(seed: int, rounds: int) -> np.ndarray:
    """Slots that each tenant wants in each round."""
    return (np.random.default_rng(seed).random((rounds, TENANTS)) < DUTY) * MEAN / DUTY


def ratios(seed: int, resources: int) -> np.ndarray:
    """What a slot of each tenant is of each resource; the first of its resources in full."""
    out = np.random.default_rng(seed + 10**6).uniform(0.25, 1, (TENANTS, resources))
    out[np.arange(TENANTS), np.arange(TENANTS) % resources] = 1.0
    return out


def market(
    seed: int, rounds: int, resources: int, alpha: float, half_life: float | None, of: str
) -> tuple[float, float]:
    """Play the rounds of one seed; gives least / greatest satisfied, and how much was used of what could be."""
    slots, ratio = wanted(seed, rounds), ratios(seed, resources)
    names = tuple(f"r{r}" for r in range(resources))
    pools = replace(POOL, resources=names, capacity=np.full((1, resources), float(SLOTS * UNIT)))
    part = np.full(TENANTS, 1 / TENANTS)
    accounts = Accounts(NAMES, part, np.full(TENANTS, 20 * MICRO), TENANTS, 4.0)
    gate, memory = Gate(part, alpha), Memory(half_life, part, of=of)
    got, eligible, row = np.zeros(TENANTS), ((0,),) * TENANTS, np.arange(TENANTS)
    used = could = 0.0
    for slot in slots:
        demand = np.floor(slot[:, None] * ratio * UNIT)
        one, none = np.ones(TENANTS), np.full(TENANTS, -1)
        tasks = Tasks(
            NAMES, ("burst",) * TENANTS, row, none, demand, demand, one, 0 * one, one, one, 0 * none, one, eligible
        )
        m = gate.admit(tasks, pools, accounts.bids(tasks))
        mean = memory.mean(tasks, pools.capacity)
        m = Market(m.demand, m.capacity, m.weight, free=m.free, mean=mean, eta=memory.eta)
        allocation = fix(clear(m))
        outcome = Outcome(np.full((TENANTS, resources), -1), none, none, "none", ("unmeasured",) * resources)
        supply, held = accounts.supply, accounts.balance
        accounts.post(settle(tasks, allocation, outcome, held, accounts.entitlement, alpha, 4.0, supply))
        assert accounts.supply == supply
        memory.learn(tasks, allocation)
        got += allocation.share * slot
        used += (allocation.load / pools.capacity).max()
        could += min(1.0, (demand.sum(axis=0) / pools.capacity[0]).max())
    satisfied = got / slots.sum(axis=0)
    return float(satisfied.min() / satisfied.max()), used / could


def by_karma(seed: int, rounds: int) -> tuple[float, float, float]:
    """The same by Karma with half of the slots guaranteed; also by which factor its credits grew."""
    slots = np.rint(wanted(seed, rounds)).astype(np.int64)
    share = np.full(TENANTS, SLOTS // TENANTS // 2)
    credits, got, used, could = np.full(TENANTS, 1000), np.zeros(TENANTS), 0, 0
    for slot in slots:
        given, credits = karma(slot, credits, share, SLOTS - int(share.sum()), int(SLOTS / TENANTS - share[0]))
        got += given
        used, could = used + given.sum(), could + min(SLOTS, slot.sum())
    satisfied = got / slots.sum(axis=0)
    return float(satisfied.min() / satisfied.max()), used / could, float(credits.sum()) / (1000 * TENANTS)


def show(name: str, results: list[tuple[float, ...]]) -> None:
    table = np.array(results)
    more = f"  credits x {table[:, 2].mean():.2f}" if table.shape[1] > 2 else ""
    print(
        f"{name:<34} {table[:, 0].mean():>6.3f} {table[:, 0].min():>6.3f} {table[:, 1].mean():>8.4f}{more}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--resources", type=int, default=1)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5])
    parser.add_argument("--half-lives", type=float, nargs="+", default=[50.0, 110.0])
    o = parser.parse_args()
    seeds = range(o.seeds)
    print(f"{'least / greatest satisfied':<34} {'mean':>6} {'worst':>6} {'used':>8}")
    show("no memory, alpha 0", [market(s, o.rounds, o.resources, 0.0, None, "total") for s in seeds])
    if o.resources == 1:
        show("karma, half guaranteed", [by_karma(s, o.rounds) for s in seeds])
    for alpha in o.alphas:
        for h in o.half_lives:
            for of in ("bought", "total"):
                name = f"mean of {of}, H {h:g}, alpha {alpha:g}"
                show(name, [market(s, o.rounds, o.resources, alpha, h, of) for s in seeds])


if __name__ == "__main__":
    main()
