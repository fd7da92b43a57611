"""An economy, round after round: agents ask and bid, a mechanism shares the pool, credits move. No machine, no log.

    market    bids, guarantees, prices, bills and memory: the house's own, stage by stage
    drf       dominant shares by entitlement, max-min fair             no prices
    maxmin    the served part of what is asked, max-min fair            no prices
    karma     Vuppalapati et al., OSDI 2023, in slices of dominant share; it makes credits of its own
    static    by ordinary demand

What agents get is what they can use: the least, over resources, of granted / wanted, at most 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from apportion.clearing.rules import static
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome
from apportion.core.units import MICRO, SHARE, micro, split
from apportion.intake.fill import Count, Groups, fill, trim, whole_parts
from apportion.intake.gate import Gate
from apportion.settlement.accounts import Accounts
from apportion.settlement.memory import Memory
from apportion.settlement.settle import settle
from apportion.study.economy_agents import Conduct, Credits, Identities, Population
from apportion.study.economy_prices import priced
from apportion.study.reference import karma

IDLE = 1e-9  # weight of a task that asks for nothing


@dataclass(frozen=True, slots=True)
class Turn:
    """One round, as a mechanism played it."""

    tasks: Tasks
    market: Market
    allocation: Allocation
    bills: Bills | None
    before: Int[np.ndarray, " account"]  # micro-credits; of Karma its own whole credits
    after: Int[np.ndarray, " account"]


class Mechanism(ABC):
    """Shares the pool in one round and moves credits. Owns whatever it remembers."""

    def __init__(self, credits: Credits, who: Identities, ordinary: Float[np.ndarray, "agent resource"]):
        self.credits, self.who = credits, who
        self.pools = Pools(("pool",), tuple(credits.capacity), np.array([list(credits.capacity.values())], float))
        n = len(who.owner)
        self._row, self._one, self._none = np.arange(n), np.ones(n), np.full(n, -1)
        self._eligible = ((0,),) * n
        self._base = np.floor(ordinary[who.owner] / who.conduct.identities[who.owner, None])
        self._pairs = {"indptr": np.arange(n + 1), "indices": np.zeros(n, np.int64)}

    def turn(self, asked: Float[np.ndarray, "row resource"], limit: Int[np.ndarray, " account"]) -> Turn:
        """Play a round. limit: micro-credits that each account bids at most."""
        one, none = self._one, self._none
        weight = np.where(asked.any(axis=1), 1.0, IDLE)  # an idle task takes nothing of what its account bids
        tasks = Tasks(
            self.who.task, self.who.kind, self.who.account, none, asked, self._base, one, 0 * one, one, weight, 0 * none, one,
            self._eligible,
        )  # fmt: skip
        return self._play(tasks, limit)

    @property
    @abstractmethod
    def balance(self) -> Int[np.ndarray, " account"]:
        """Micro-credits."""

    @abstractmethod
    def _play(self, tasks: Tasks, limit: Int[np.ndarray, " account"]) -> Turn: ...


class Priced(Mechanism):
    """The house's own round: bids, gate, clearing, bills, memory."""

    def __init__(self, credits: Credits, who: Identities, ordinary: Float[np.ndarray, "agent resource"]):
        super().__init__(credits, who, ordinary)
        part = who.entitlement
        self.accounts = Accounts(
            who.name, part, split(micro(credits.supply), part), credits.credits_per_round, credits.kappa
        )
        self.gate, self.remembered = Gate(part, credits.alpha), Memory(credits.half_life, part, of=credits.memory)
        self._last: Float[np.ndarray, "pool resource"] | None = None
        shape = (len(self._row), len(self.pools.resources))
        self._outcome = Outcome(np.full(shape, -1), self._none, self._none, "none", ("unmeasured",) * shape[1])

    @property
    def balance(self) -> Int[np.ndarray, " account"]:
        return self.accounts.balance

    def _play(self, tasks: Tasks, limit: Int[np.ndarray, " account"]) -> Turn:
        a, c, before = self.accounts, self.credits, self.accounts.balance
        bid, mean = a.bids(tasks, limit), self.remembered.mean(tasks, self.pools.capacity)
        market = self.gate.admit(tasks, self.pools, bid, mean, self.remembered.eta)
        allocation = priced(market, c.gap * self.remembered.eta, self._last)
        self._last = allocation.price
        bills = settle(tasks, allocation, self._outcome, before, a.entitlement, c.alpha, c.kappa, a.supply)
        a.post(bills)
        self.remembered.learn(tasks, allocation)
        return Turn(tasks, market, allocation, bills, before, a.balance)


class Unpriced(Mechanism):
    """A rule without prices: nobody bids, pays or is guaranteed anything."""

    def __init__(self, credits: Credits, who: Identities, ordinary: Float[np.ndarray, "agent resource"]):
        super().__init__(credits, who, ordinary)
        self._held = split(micro(credits.supply), who.entitlement)
        self._weight = who.entitlement[who.account] / np.bincount(who.account)[who.account]

    @property
    def balance(self) -> Int[np.ndarray, " account"]:
        return self._held

    def _play(self, tasks: Tasks, limit: Int[np.ndarray, " account"]) -> Turn:
        before = self._held
        market = Market(tasks.demand, self.pools.capacity, self._weight, **self._pairs)
        allocation = self._allocate(market, tasks)
        return Turn(tasks, market, allocation, None, before, self._held)

    @abstractmethod
    def _allocate(self, market: Market, tasks: Tasks) -> Allocation: ...


class Static(Unpriced):
    def _allocate(self, market: Market, tasks: Tasks) -> Allocation:
        return static(market, tasks.base)


class Maxmin(Unpriced):
    """Progressive filling: in one pool it is what `clear` gives for leximin, in whole parts."""

    name = "maxmin"

    def _rise(self, market: Market) -> Float[np.ndarray, " task"]:
        """How fast a task's share rises with the common level."""
        return np.ones(len(market.weight))

    def _allocate(self, market: Market, tasks: Tasks) -> Allocation:
        rise = self._rise(market)
        groups = Groups(market.indices, 1)
        some = np.where(rise > 0, rise, 1.0)
        level, _ = fill(market.demand * rise[:, None], np.where(rise > 0, 1.0 / some, 0.0), market.capacity, groups)
        count = Count(market.demand, float(market.demand.sum(axis=0).max(initial=0.0)))
        top = np.full(len(rise), SHARE, np.int64)
        parts = trim(whole_parts(level * rise, top), count, groups, count.limit(market.capacity))
        return unpriced(market, parts, self.name)


class Drf(Maxmin):
    name = "drf"

    def _rise(self, market: Market) -> Float[np.ndarray, " task"]:
        size = (market.demand / market.capacity).max(axis=1)
        return np.divide(market.weight, size, out=np.zeros(len(size)), where=size > 0)


class Karma(Unpriced):
    """Slices of dominant share: 10 for an agent's part of the pool, alpha of them guaranteed."""

    SLICES = 10
    BEGIN = 1000  # credits of an account

    def __init__(self, credits: Credits, who: Identities, ordinary: Float[np.ndarray, "agent resource"]):
        super().__init__(credits, who, ordinary)
        if len(who.owner) != len(who.name):
            raise BadInput("karma knows users, not kinds of task: let identities be accounts.")
        agents = len(ordinary)
        self.slices = self.SLICES * agents
        self.guaranteed = np.floor(credits.alpha * who.entitlement * self.slices + 1e-9).astype(np.int64)
        self.earned = np.floor(who.entitlement * self.slices + 1e-9).astype(np.int64) - self.guaranteed
        self._held = np.full(len(who.name), self.BEGIN)

    def _allocate(self, market: Market, tasks: Tasks) -> Allocation:
        size = (market.demand / market.capacity).max(axis=1)
        wanted = np.ceil(size * self.slices - 1e-6).astype(np.int64)
        shared = self.slices - int(self.guaranteed.sum())
        got, self._held = karma(wanted, self._held, self.guaranteed, shared, self.earned)
        share = np.divide(got / self.slices, size, out=np.zeros(len(size)), where=size > 0)
        parts = whole_parts(np.minimum(share, 1.0), np.full(len(size), SHARE, np.int64))
        groups, count = (
            Groups(market.indices, 1),
            Count(market.demand, float(market.demand.sum(axis=0).max(initial=0.0))),
        )
        return unpriced(market, trim(parts, count, groups, count.limit(market.capacity)), "karma")


def unpriced(market: Market, parts: Int[np.ndarray, " pair"], name: str) -> Allocation:
    """Give whole parts as an allocation without prices; it claims no value and no gap."""
    return Allocation(market, parts / SHARE, np.zeros(market.capacity.shape), name, np.nan, np.nan, np.nan)


MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "market": Priced, "drf": Drf, "maxmin": Maxmin, "karma": Karma, "static": Static,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What a run showed, first axis the round. Money is credits, demand a part of the pool (of the dominant resource)."""

    mechanism: str
    seed: int
    kind: tuple[str, ...]
    resources: tuple[str, ...]
    wanted: Float[np.ndarray, "round agent"]
    got: Float[np.ndarray, "round agent"]  # of what it wanted, what it could use; 0 where it wanted nothing
    asked: Float[np.ndarray, "round agent"]
    paid: Float[np.ndarray, "round agent"]
    balance: Float[np.ndarray, "round agent"]  # after the round
    opening: Float[np.ndarray, " agent"]
    bill: Float[np.ndarray, " agent"]  # what an agent bids in an ordinary round, if it does not shade
    price: Float[np.ndarray, "round resource"]  # of all there is, in credits: fixed quantities
    load: Float[np.ndarray, "round resource"]
    gap: Float[np.ndarray, " round"]
    drift: int  # micro-credits that the accounts gained in all
    stopped: bool  # before its rounds were played


def rounds_of(
    credits: Credits, population: Population, conduct: Conduct, rounds: int
) -> Iterator[tuple[Float[np.ndarray, "agent resource"], Identities, Turn]]:
    """Play round after round; gives what was wanted, as whom agents came, and the turn."""
    if credits.mechanism not in MECHANISMS:
        raise BadInput(f"there is no mechanism {credits.mechanism!r}. Mechanisms: {', '.join(MECHANISMS)}.")
    who = Identities(population, conduct)
    mechanism = MECHANISMS[credits.mechanism](credits, who, population.ordinary)
    n = len(population.kind)
    ordinary = np.floor(who.entitlement * credits.credits_per_round * MICRO).astype(np.int64)
    most = np.where(conduct.bid[who.of] < 1, np.floor(ordinary * conduct.bid[who.of]), 2.0**62).astype(np.int64)
    saves, begun = conduct.save > 0, np.bincount(who.of, mechanism.balance, n)
    saving = saves.copy()
    for number, wanted in enumerate(population.wanted(rounds)):
        limit = most
        if saves.any():
            held = np.bincount(who.of, mechanism.balance, n)
            saving = saves & np.where(saving, held < conduct.save * begun, held <= begun)
            limit = np.where(saving[who.of], 0, most)
        yield wanted, who, mechanism.turn(who.asked(number, wanted), limit)


def run(
    credits: Credits,
    agents: int,
    rounds: int,
    seed: int,
    *,
    conduct: Conduct | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Run:
    """Play an economy and keep what its figures are made of; Ctrl-C keeps the rounds played so far.

    conduct: what agents do, other than their kinds say. tick: told how many rounds are played.
    """
    population = Population(credits, agents, seed)
    conduct = conduct or population.conduct()
    total, resources = population.total, tuple(credits.capacity)
    by_agent = {k: np.zeros((rounds, agents)) for k in ("wanted", "got", "asked", "paid", "balance")}
    price, load, gap = np.zeros((rounds, len(resources))), np.zeros((rounds, len(resources))), np.full(rounds, np.nan)
    opening, done, drift, stopped = np.zeros(agents), 0, 0, False
    try:
        for wanted, who, t in rounds_of(credits, population, conduct, rounds):
            money = 1.0 if credits.mechanism == "karma" else MICRO
            granted = who.by_agent(t.allocation.share[:, None] * t.tasks.demand, agents)
            used = np.divide(granted, wanted, out=np.full(wanted.shape, np.inf), where=wanted > 0).min(axis=1)
            by_agent["got"][done] = np.where((wanted > 0).any(axis=1), np.minimum(used, 1.0), 0.0)
            by_agent["wanted"][done] = (wanted / total).max(axis=1)
            by_agent["asked"][done] = who.by_agent((t.tasks.demand / total).max(axis=1), agents)
            if t.bills is not None:
                by_agent["paid"][done] = who.by_agent(t.bills.paid / MICRO, agents)
            by_agent["balance"][done] = np.bincount(who.of, t.after / money, agents)
            opening = np.bincount(who.of, t.before / money, agents) if done == 0 else opening
            price[done], load[done] = t.allocation.price[0] * total, t.allocation.load[0] / total
            gap[done], drift, done = t.allocation.gap, drift + int(t.after.sum() - t.before.sum()), done + 1
            tick(done)
    except KeyboardInterrupt:
        stopped = True
    bill = np.full(agents, credits.credits_per_round / agents)
    kept = {k: x[:done] for k, x in by_agent.items()}
    return Run(
        credits.mechanism, seed, population.kind, resources, **kept, opening=opening, bill=bill,
        price=price[:done], load=load[:done], gap=gap[:done], drift=drift, stopped=stopped,
    )  # fmt: skip
