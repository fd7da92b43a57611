"""Who takes part in a simulated economy: what agents want, and what they do about it.

    truthful   asks for what it wants and bids what it may
    shading    bids a part of that only
    hoarding   bids nothing until it holds `save` times what it began with, then bids until it is back there
    bursty     truthful, but wants `1/duty` times as much in a part `duty` of the rounds, at random, and nothing in the others
    sybil      comes as several accounts, each with its part of the one entitlement and of the one demand

All want as much on average: `load` / (number of agents) of every pool's capacity of the resource that they want most of, and of the
others a part of that, drawn from [.25, 1] once. From round to round it varies by a factor, log-normal with mean 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput
from apportion.core.units import split

KINDS = ("truthful", "shading", "hoarding", "bursty", "sybil")
CHUNK = 512  # rounds drawn at once


@dataclass(frozen=True, slots=True)
class Credits:
    """What a credits file says: an economy, apart from how many agents it has and how long it runs."""

    agents: Mapping[str, float] = field(
        default_factory=lambda: {"truthful": 0.4, "shading": 0.15, "hoarding": 0.15, "bursty": 0.2, "sybil": 0.1}
    )  # parts of the population, by weight
    capacity: Mapping[str, int] = field(
        default_factory=lambda: {"cpu": 400_000, "memory": 800 * 2**20, "bandwidth": 20_000_000}
    )  # base units by resource, of the one pool
    mechanism: str = "market"
    load: float = 1.8
    noise: float = 0.3  # sd of the logarithm
    duty: tuple[float, ...] = (0.25,)  # of bursty agents, in turn
    shade: float = 0.5
    save: float = 2.0
    identities: int = 4
    alpha: float = 0.5
    kappa: float = 4.0
    half_life: float | None = 100.0
    memory: Literal["total", "bought"] = "total"
    credits_per_round: float = 100.0
    supply: float = 2000.0
    gap: float = 1e-3  # of a round without memory


@dataclass(frozen=True, slots=True)
class Conduct:
    """What each agent does about what it wants. Arrays, so that thousands of rounds are a few operations each."""

    bid: Float[np.ndarray, " agent"]  # part of its ordinary bid
    save: Float[np.ndarray, " agent"]  # bids nothing until it holds so many times what it began with; 0: does not save
    identities: Int[np.ndarray, " agent"]
    factor: Float[np.ndarray, "agent resource"]  # what it says that it wants / what it wants
    idle: Float[np.ndarray, " agent"]  # part of its ordinary demand that it asks for when it wants nothing
    rest: Int[np.ndarray, " agent"]  # rounds in which it asks for nothing, between two in which it asks
    turns: tuple[bool, ...]  # its identities ask one at a time, a round each, instead of each for its part
    kinds: tuple[bool, ...]  # its identities are kinds of task in one account instead of accounts

    def but(self, agent: int, **changed) -> Conduct:
        """Give the conduct in which one agent does something else."""
        out = {}
        for name, x in changed.items():
            old = getattr(self, name)
            if isinstance(old, tuple):
                out[name] = (*old[:agent], x, *old[agent + 1 :])
            else:
                out[name] = old.copy()
                out[name][agent] = x
        return replace(self, **out)


class Population:
    """Agents of a credits file, drawn from a seed."""

    def __init__(self, credits: Credits, agents: int, seed: int):
        """Raises BadInput where there is nobody, or a kind that is not known."""
        if agents < 1:
            raise BadInput(f"{agents} agents make no economy: at least 1.")
        if unknown := credits.agents.keys() - set(KINDS):
            raise BadInput(f"agents: {sorted(unknown)[0]!r} is no kind of agent. Kinds: {', '.join(KINDS)}.")
        parts = np.array([credits.agents.get(kind, 0.0) for kind in KINDS])
        self.credits, self.seed = credits, seed
        self.kind = tuple(np.repeat(KINDS, split(agents, parts)).tolist())
        if len(self.kind) != agents:
            raise BadInput("agents: nobody takes part; give at least one kind a weight above 0.")
        self.total = np.array(list(credits.capacity.values()), float)
        self.duty = np.ones(agents)
        bursty = np.flatnonzero(np.array(self.kind) == "bursty")
        self.duty[bursty] = np.resize(np.array(credits.duty, float), len(bursty))
        ratio = np.random.default_rng([seed, 0]).uniform(0.25, 1.0, (agents, len(self.total)))
        ratio[np.arange(agents), np.arange(agents) % len(self.total)] = 1.0
        self.ordinary = ratio * self.total * credits.load / agents  # base units, mean over rounds

    def conduct(self) -> Conduct:
        """What agents of these kinds do."""
        c, n = self.credits, len(self.kind)
        of = lambda kind, x, other: np.array([x if k == kind else other for k in self.kind])  # noqa: E731
        return Conduct(
            bid=of("shading", float(c.shade), 1.0),
            save=of("hoarding", float(c.save), 0.0),
            identities=of("sybil", int(c.identities), 1),
            factor=np.ones((n, len(self.total))),
            idle=np.zeros(n),
            rest=np.zeros(n, np.int64),
            turns=(False,) * n,
            kinds=(False,) * n,
        )

    def wanted(self, rounds: int) -> Iterator[Float[np.ndarray, "agent resource"]]:
        """Give what each agent wants in each round, in whole base units."""
        rng, n, sd = np.random.default_rng([self.seed, 1]), len(self.kind), self.credits.noise
        for first in range(0, rounds, CHUNK):
            shape = (CHUNK, n)  # always: the first rounds of a longer run are the same
            on = rng.random(shape) < self.duty
            size = np.where(on, 1.0 / self.duty, 0.0)
            if sd:
                size = size * rng.lognormal(-(sd**2) / 2, sd, shape)
            yield from np.floor(size[: rounds - first, :, None] * self.ordinary + 1e-9)


class Identities:
    """The accounts and tasks as which agents come: a row is an identity."""

    def __init__(self, population: Population, conduct: Conduct):
        self.conduct, n = conduct, len(population.kind)
        count = conduct.identities
        self.owner = np.repeat(np.arange(n), count)  # of each row
        self.number = np.arange(len(self.owner)) - np.repeat(np.cumsum(count) - count, count)
        kinds = np.array(conduct.kinds)[self.owner]
        opens = ~kinds | (self.number == 0)  # rows that have an account of their own
        self.account = np.cumsum(opens) - 1
        self.of = self.owner[opens]  # the agent of each account
        self.entitlement = 1.0 / n / np.bincount(self.of, minlength=n)[self.of]
        self.kind = tuple(f"kind-{k}" if own else "agent" for k, own in zip(self.number, kinds, strict=True))
        names = [f"agent-{a}" for a in range(n)]
        self.task = tuple(f"{names[a]}-{k}" for a, k in zip(self.owner, self.number, strict=True))
        self.name = tuple(self.task[r] for r in np.flatnonzero(opens))
        self._ordinary = population.ordinary
        self._takes_turns = np.array(conduct.turns)[self.owner]
        self._honest = bool((conduct.factor == 1).all() and not conduct.idle.any() and not conduct.rest.any())
        self._single = bool((count == 1).all())

    def asked(self, number: int, wanted: Float[np.ndarray, "agent resource"]) -> Float[np.ndarray, "row resource"]:
        """Give what each row asks for in a round."""
        c, asked = self.conduct, wanted
        if not self._honest:
            on = np.any(wanted > 0, axis=1, keepdims=True)
            asked = np.where(on, wanted * c.factor, c.idle[:, None] * self._ordinary)
            asked = np.where((number % (c.rest + 1) == c.rest)[:, None], asked, 0.0)
        asked = asked if self._honest else np.floor(asked)
        if self._single:
            return asked
        count, whole = c.identities[self.owner, None], asked[self.owner]
        part = np.floor(
            (whole + (count - 1 - self.number[:, None])) / count
        )  # the first ones ask for what is left over
        mine = (number % count[:, 0] == self.number)[:, None]
        return np.where(self._takes_turns[:, None], np.where(mine, whole, 0.0), part)

    def by_agent(self, x: np.ndarray, agents: int) -> np.ndarray:
        """Sum over the rows of each agent."""
        if self._single:
            return x
        out = np.zeros((agents, *x.shape[1:]))
        np.add.at(out, self.owner, x)
        return out
