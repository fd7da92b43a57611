"""A world: read from its file, checked once, and then asked for its tasks round by round.

    load(path)                  -> World; raises BadWorld, naming file, line, key, value and the way out
    world.check(machine)        refuses floors that cannot fit
    world.check_commands()      refuses programs that cannot be started
    world.pools(machine)        -> Pools
    world.tasks(number, seed)   -> Tasks of that round, at world time number * round_seconds

Demand follows the load: an event 'x6' multiplies the demand of its tasks for every resource they do not call `steady`, and
their bid with it. A floor stays what was promised, in base units, so in a surge it is a smaller share. As a task gets
the same share of all its resources, a floor of one resource floors the others too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadWorld
from apportion.core.market import Pools, Tasks
from apportion.core.units import MICRO, RESOURCES, SHARE, Resource, micro, resource
from apportion.intake.floors import Layout, Overload, overload
from apportion.settlement.budgets import UNLIMITED, Limits
from apportion.settlement.escrow import Reservation, reserved
from apportion.settlement.tree import Tree
from apportion.worlds.amounts import OfMachine
from apportion.worlds.file import Event, Task, WorldFile
from apportion.worlds.lines import Place, Source, dotted, read
from apportion.worlds.problems import checked
from apportion.worlds.surge import Surge, moments


def load(path: str | Path) -> World:
    """Read and check a world file; whatever is wrong with it is one BadWorld, up to five lines long."""
    source, raw = read(path)
    return World(checked(source), source, hashlib.sha256(raw).hexdigest())


class World:
    """What a world file says, and the arrays that follow from it. Nothing in it changes."""

    def __init__(self, file: WorldFile, source: Source, digest: str):
        self.file, self.source, self.digest = file, source, digest
        self.path = source.path
        self.name = file.name or Path(source.path).stem
        self.description = file.description
        self.round_seconds, self.rounds, self.seed = file.round_seconds, file.rounds, file.seed
        self.policy, self.alpha, self.kappa = file.policy, file.alpha, file.kappa
        self.half_life, self.quantile = file.half_life, file.quantile
        self.credits_per_round = file.credits_per_round
        self.specs: Mapping[str, Task] = file.tasks
        self.events: tuple[Event, ...] = file.events
        self.resources = _resources(file)
        self.reservations = tuple(_reservation(file, name, self.resources) for name in file.reservations)
        self._names = (*file.accounts, *(one.purse for one in self.reservations))
        self._static = _Static.of(file, self.resources)
        rows = tuple(tuple(self._static.name.index(name) for name in event.tasks) for event in file.events)
        self._surge = Surge(file.events, rows, len(file.tasks))

    @staticmethod
    def schema() -> dict[str, Any]:
        """Give the JSON Schema of world files, for editors."""
        schema = WorldFile.model_json_schema(by_alias=True)
        for named in schema["properties"].values():
            if "patternProperties" in named:
                named["additionalProperties"] = False  # a name that is none is underlined
        return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema

    @property
    def accounts(self) -> tuple[tuple[str, ...], Float[np.ndarray, " account"]]:
        """Names and entitlements, in the file's order; they come to 1 although 0.333333333 was written three times.

        The purses of reservations come after them, entitled to nothing.
        """
        return self._names, self._and_purses(self.file.tree.entitlement, 0.0)

    @property
    def tree(self) -> Tree | None:
        """Whose child each account is; None where none of them nests."""
        tree = self.file.tree
        return Tree.of(self._and_purses(tree.parent, -1), self._and_purses(tree.weight, 0.0))

    def _and_purses(self, of_accounts: np.ndarray, of_purses: float | int) -> np.ndarray:
        wide = [(0, len(self.reservations))] + [(0, 0)] * (of_accounts.ndim - 1)
        return np.pad(of_accounts, wide, constant_values=of_purses)

    @property
    def budgets(self) -> Limits | None:
        """What accounts may spend and use in a period: its rounds, credits and amounts; None where none has a budget."""
        accounts = self.file.accounts.values()
        if not any(a.budget for a in accounts):
            return None
        rounds, credits = np.ones(len(accounts), np.int64), np.full(len(accounts), UNLIMITED)
        amounts = np.full((len(accounts), len(self.resources)), UNLIMITED)
        for k, budget in enumerate(a.budget for a in accounts):
            if budget is not None:
                rounds[k], use = budget.counted(self.round_seconds)
                credits[k] = UNLIMITED if budget.credits is None else micro(budget.credits)
                amounts[k] = [use.get(r, UNLIMITED) for r in self.resources]
        return self._and_purses(rounds, 1), self._and_purses(credits, UNLIMITED), self._and_purses(amounts, UNLIMITED)

    @property
    def supply(self) -> float:
        """Credits in the world."""
        return self.file.held / MICRO

    @property
    def balance(self) -> Int[np.ndarray, " account"]:
        """Micro-credits that each account starts with, reservations paid; they come to the supply, exactly."""
        names, out = self._names, self._and_purses(self.file.opening, 0)
        for one in self.reservations:
            out[[names.index(one.payer), names.index(one.purse)]] += [-one.paid, one.paid]
        return out

    def pools(self, machine: Mapping[str, float | int]) -> Pools:
        """Give what there is to share, on a machine with this capacity in base units per resource."""
        capacity = [[float(self._capacity(pool, name, machine)) for name in self.resources] for pool in self.file.pools]
        return Pools(tuple(self.file.pools), self.resources, np.array(capacity))

    def tasks(self, number: int, seed: int | None = None) -> Tasks:
        """Give what tasks want in a round; with a seed, chance moves load and events a little."""
        s = self._static
        surge = self._surge.at(number * self.round_seconds, seed)
        load = surge if seed is None else surge * self._surge.noise(number, seed)
        demand = s.demand(load)
        tasks = Tasks(
            name=s.name,
            kind=s.kind,
            account=s.account,
            sponsor=s.sponsor,
            demand=demand,
            base=s.base,
            surge=surge,
            floor=s.floor(demand),
            cap=s.cap,
            weight=s.weight,
            priority=s.priority,
            target=s.target,
            eligible=s.eligible,
        )
        return reserved(tasks, number, self.reservations, self._names) if self.reservations else tasks

    def happening(self, number: int, seed: int | None = None) -> list[tuple[Event, float]]:
        """Give the events that are on in a round, and how many seconds longer they are."""
        left = self._surge.left(number * self.round_seconds, seed)
        return [(event, seconds) for event, seconds in zip(self.events, left.tolist(), strict=True) if seconds > 0]

    def check(self, machine: Mapping[str, float | int]) -> None:
        """Refuse floors that cannot fit, on an ordinary day or when an event or a reservation begins or ends.

        One base unit of each resource is left for rounding. Guarantees are no part of this: where floors and free shares
        cannot both be had, free shares give way.
        """
        pools = self.pools(machine)
        layout = Layout.of(self._static.eligible, len(pools.name))
        moved = np.any(self._static.steady, axis=1)  # of no other task does a surge move the floor
        times = {*(map(float, moments(self.events)) if moved.any() else ())}
        times |= {n * self.round_seconds for one in self.reservations for n in (one.first, one.last + 1)}
        cases = {self._promised(np.ones(len(moved)), -1.0): ""}
        for t in sorted(times):
            cases.setdefault(self._promised(np.where(moved, self._surge.at(t), 1.0), t), f" at {t:g} s")
        for promised, when in cases.items():
            need = np.frombuffer(promised).reshape(self._static.base.shape)
            best = overload(layout, need, np.maximum(pools.capacity - 1, 0.0))
            if best is not None and best.factor > 1:  # unsolved: the gate shrinks what does not fit
                raise BadWorld(self._too_much(pools, need, best, when))

    def _promised(self, load: Float[np.ndarray, " task"], seconds: float) -> bytes:
        """Give what floors take in base units by task and resource, those included that are reserved for this moment."""
        demand = self._static.demand(load)
        share = self._static.promised(demand)
        for one in self.reservations:
            if one.first * self.round_seconds - 1e-9 <= seconds < (one.last + 1) * self.round_seconds - 1e-9:
                i, wants = self._static.name.index(one.task), one.amount > 0
                share[i] = max(share[i], min(float((one.amount[wants] / demand[i, wants]).max()), self._static.cap[i]))
        return (demand * share[:, None]).tobytes()

    def check_commands(self) -> None:
        """Refuse commands that this machine cannot start."""
        for name, task in self.specs.items():
            if task.command and not shutil.which(task.command[0]):
                place: Place = ("tasks", name, "command")
                raise BadWorld(
                    f"{self.source.at(place)}: {dotted(place)} is {self.source.shown(place)}: {task.command[0]!r} is no"
                    " program that can be run from here. Name one that is there and may be run, by its path or on PATH."
                )

    def _too_much(self, pools: Pools, need: np.ndarray, best: Overload, when: str) -> str:
        """Say which resource of which pools binds, by how much, and what would mend it."""
        r = int(best.dual.sum(axis=0).argmax())
        binding = np.flatnonzero(best.dual[:, r] > 1e-6 * best.dual[:, r].max())
        names = [pools.name[j] for j in binding]
        kind = resource(self.resources[r])
        have = float(np.maximum(pools.capacity[binding, r] - 1, 0.0).sum())
        asks = [i for i in np.flatnonzero(need[:, r] > 0) if set(self._static.eligible[i]) & set(binding.tolist())]
        bound = [i for i in asks if set(self._static.eligible[i]) <= set(binding.tolist())] or asks
        most = max(bound, key=lambda i: (need[i, r], -i))
        promised = best.factor * have if np.isfinite(best.factor) else float(need[bound, r].sum())
        place: Place = ("tasks", self._static.name[most], "floor")
        who = f"the floors of {len(bound)} tasks together promise" if len(bound) > 1 else "this floor promises"
        where = f"pool '{names[0]}' has" if len(names) == 1 else f"pools {', '.join(map(repr, names))} together have"
        bounded = [p for p in names if self.resources[r] in self.file.pools[p].at_most]
        room = f"pools.{bounded[0]}.at_most.{kind.name}" if bounded else f"pools.{names[0]}.capacity.{kind.name}"
        return (
            f"{self.source.at(place)}: {dotted(place)} is {self.source.shown(place)}: {who} {_show(kind, promised)} of"
            f" {kind.name}{when}, and {where} {_show(kind, have)} (a {kind.base} less, for rounding):"
            f" {_show(kind, promised - have)} too much."
            f" Lower floors (this one takes {_show(kind, float(need[most, r]))}) or raise {room}."
        )

    def _capacity(self, pool: str, name: str, machine: Mapping[str, float | int]) -> int:
        spec = self.file.pools[pool]
        amount = spec.capacity.get(name, 0)
        if isinstance(amount, OfMachine):
            if name not in machine:
                place = ("pools", pool, "capacity", name)
                kind = resource(name)
                raise BadWorld(
                    f"{self.source.at(place)}: {dotted(place)} is {self.source.shown(place)}: this machine does not tell its {name}"
                    f" (it tells {', '.join(sorted(machine)) or 'nothing'}). Write an amount, for example '100 {kind.unit}'."
                )
            amount = int(Decimal(repr(float(machine[name]))) * amount.part)
        return min(amount, spec.at_most.get(name, amount))


@dataclass(frozen=True, slots=True)
class _Static:
    """What stays the same from round to round."""

    name: tuple[str, ...]
    kind: tuple[str, ...]
    account: Int[np.ndarray, " task"]
    sponsor: Int[np.ndarray, " task"]
    base: Float[np.ndarray, "task resource"]
    steady: np.ndarray  # (task, resource): events leave it as it is
    promise: Float[np.ndarray, "task resource"]  # floors, in base units
    cap: Float[np.ndarray, " task"]
    weight: Float[np.ndarray, " task"]
    priority: Int[np.ndarray, " task"]
    target: Float[np.ndarray, " task"]
    eligible: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, file: WorldFile, resources: tuple[str, ...]) -> _Static:
        tasks = tuple(file.tasks.values())
        accounts = {name: a for a, name in enumerate(file.accounts)}
        put = lambda get: np.array([[float(get(t, r)) for r in resources] for t in tasks])  # noqa: E731
        base = put(lambda t, r: t.demand.get(r, 0))
        return cls(
            name=tuple(file.tasks),
            kind=tuple(t.kind for t in tasks),
            account=np.array([accounts[t.account] for t in tasks], np.int64),
            sponsor=np.array([-1 if t.sponsor is None else accounts[t.sponsor] for t in tasks], np.int64),
            base=base,
            steady=put(lambda t, r: r in t.steady) > 0,
            promise=np.array([_promise(t, b, resources) for t, b in zip(tasks, base, strict=True)]),
            cap=np.floor(np.array([t.cap for t in tasks]) * SHARE + 1e-6) / SHARE,  # less than a part can't be bought
            weight=np.array([float(t.weight) for t in tasks]),
            priority=np.array([t.priority for t in tasks], np.int64),
            target=np.array([t.target for t in tasks]),
            eligible=tuple(_eligible(file, t) for t in tasks),
        )

    def demand(self, load: Float[np.ndarray, " task"]) -> Float[np.ndarray, "task resource"]:
        """Give whole base units, rounded up, forgiving what a float adds to a whole number."""
        return np.ceil(self.base * np.where(self.steady, 1.0, load[:, None]) * (1 - 1e-12))

    def promised(self, demand: Float[np.ndarray, "task resource"]) -> Float[np.ndarray, " task"]:
        """Give promises as shares of this demand: the resource that needs the largest share decides."""
        share = np.divide(self.promise, demand, out=np.zeros(demand.shape), where=demand > 0)
        return np.minimum(share.max(axis=1, initial=0.0), self.cap)

    def floor(self, demand: Float[np.ndarray, "task resource"]) -> Float[np.ndarray, " task"]:
        """Give promises in whole 10^-9 parts, rounded up, so that they are kept to the base unit."""
        return np.minimum(np.ceil(self.promised(demand) * SHARE - 1e-6) / SHARE + 0.0, self.cap)  # -0 becomes 0


def _reservation(file: WorldFile, name: str, resources: tuple[str, ...]) -> Reservation:
    one = file.reservations[name]
    amount = np.array([one.floor.get(r, 0) for r in resources], np.int64)
    return Reservation(name, one.account, one.task, amount, *one.rounds(file.round_seconds), micro(one.pays))


def _promise(task: Task, base: np.ndarray, resources: tuple[str, ...]) -> list[float]:
    if isinstance(task.floor, dict):
        return [float(task.floor.get(r, 0)) for r in resources]
    return [float(x) for x in task.floor * base]  # a share of the ordinary day


def _eligible(file: WorldFile, task: Task) -> tuple[int, ...]:
    """The pools that may serve a task: those it names, or all, that have whatever it wants."""
    wants = {name for name, amount in task.demand.items() if amount}
    named = task.pools if task.pools is not None else tuple(file.pools)
    return tuple(
        j for j, (name, pool) in enumerate(file.pools.items()) if name in named and wants <= set(pool.capacity)
    )


def _resources(file: WorldFile) -> tuple[str, ...]:
    """All that some pool has: the usual ones in their usual order, then the world's own."""
    names = dict.fromkeys(name for pool in file.pools.values() for name in pool.capacity)
    return tuple(sorted(names, key=lambda r: list(RESOURCES).index(r) if r in RESOURCES else len(RESOURCES)))


def _show(kind: Resource, base: float) -> str:
    """Write an amount with as many digits as its base unit has, so that too much never reads as 0."""
    places = len(str(kind.scale)) - 1
    return f"{np.ceil(base - 1e-6) / kind.scale:.{places}f}".rstrip("0").rstrip(".") + f" {kind.unit}"
