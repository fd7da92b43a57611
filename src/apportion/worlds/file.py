"""The world file, key by key: what each means, its unit and its default.

The models are what `apportion schema` prints for editors and what `load` checks a file against. Each looks at
its own keys only; whether names refer to something, and whether all of it fits, is `world.py`'s question.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from apportion.core.policies import POLICIES
from apportion.core.units import micro, split
from apportion.execution.programs import KINDS
from apportion.settlement.tree import Tree
from apportion.worlds.accounts import Account, Reservation
from apportion.worlds.amounts import (
    Amounts,
    Capacities,
    Factor,
    Floor,
    Limits,
    Seconds,
    Share,
    instead,
    wrong,
    wrong_entries,
)
from apportion.worlds.entry import MOST_CREDITS, Entry, Name, Names, Number, Whole


def _kind(written: Any) -> Any:
    if not isinstance(written, str) or written not in KINDS:
        raise wrong(f"it is no kind of task. {instead(str(written), KINDS)}")
    return written


def _argv(written: Any) -> Any:
    """A list, as the kernel takes it: a string would need a shell."""
    if not isinstance(written, list) or not written:
        raise wrong("a command is a list of words, no shell reads it. Write for example '[python, -u, my_server.py]'.")
    if bad := [word for word in written if isinstance(word, (dict, list, bool)) or word is None]:
        raise wrong(f"a command is a list of words, and {bad[0]!r} is none. Put it in quotes.")
    if bad := [word for word in written if "\0" in str(word)]:
        raise wrong(f"a command is a list of words, and {bad[0]!r} holds a NUL, which no program can be given.")
    return [str(word) for word in written]


def _probe(written: Any) -> Any:
    if isinstance(written, dict):
        return Metrics.model_validate(written)
    if written not in (None, "stdout"):
        raise wrong(
            "a probe is 'stdout' or a mapping: '{url: http://127.0.0.1:9100/metrics, asked: ..., in_time: ...}'."
        )
    return written


_POLICIES = ", ".join(f"'{policy.name}' ({policy.says})" for policy in POLICIES.values())


class Pool(Entry):
    """Machines whose resources are shared as one."""

    capacity: Capacities = Field(
        description="What the pool has of each resource: an amount, or 'machine' (what this machine has, read when the"
        " world starts), or '75% of machine' (which leaves the rest to everything else that runs here). Rounded down."
    )
    at_most: Limits = Field(
        {},
        description="An upper bound on each capacity, so that a world does not take all of a large machine. Default: none.",
    )


class Metrics(Entry):
    """Where a process serves its counters."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+(/\S*)?$")] = Field(
        description="A page that answers with one probe line of JSON, or with metrics in the Prometheus text format; then name two"
        " counters. For example http://127.0.0.1:9100/metrics."
    )
    asked: str = Field("", strict=True, description="Name of the counter of operations asked for.")
    in_time: str = Field(
        "", strict=True, description="Name of the counter of operations finished within their deadline."
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> Metrics:
        if bool(self.asked) != bool(self.in_time):
            raise wrong("it names one counter of two. Write both 'asked' and 'in_time', or neither for a page of JSON.")
        return self


_COMMAND_FOR_PROCESS: dict[str, Any] = {
    "if": {"properties": {"kind": {"const": "process"}}, "required": ["kind"]},
    "then": {"required": ["command"], "properties": {"size": False}},
    "else": {"properties": {"command": False, "probe": False}},
}


class Task(Entry):
    """A program that wants a part of the pools."""

    model_config = ConfigDict(json_schema_extra=_COMMAND_FOR_PROCESS)

    kind: Annotated[str, BeforeValidator(_kind)] = Field(
        json_schema_extra={"enum": list(KINDS)},
        description="What runs: one of the shipped programs, or 'process', your own command.",
    )
    account: Name = Field(description="The account that bids and pays for it.")
    size: Whole = Field(
        100,
        ge=1,
        le=10**9,
        description="Players, members, traders or clients of a shipped program on an ordinary day. Default 100.",
    )
    demand: Amounts = Field(
        description="What it wants on an ordinary day, by resource, for example {cpu: 0.15 cores, memory: 96 MiB}. It is"
        " served in equal parts of all of them: half its CPU comes with half its memory. Rounded up to base units."
    )
    steady: Names = Field(
        (),
        description="Resources of its demand that events leave as they are; all others follow the load. Default: none.",
    )
    floor: Floor = Field(
        0.0,
        description="What it is promised whatever it can pay: amounts, {cpu: 0.1 cores}, or a share of its ordinary demand,"
        " 40%. Absolute: a surge does not raise it. Default: nothing.",
    )
    cap: Share = Field(
        1.0, gt=0, description="The largest share of its demand that is of any use to it. A share above 0, default 1."
    )
    weight: Number = Field(1.0, gt=0, le=1e9, description="Importance among its account's tasks. Above 0, default 1.")
    priority: Whole = Field(
        0,
        ge=-(2**31),
        lt=2**31,
        description="Whose floor is kept longest when a lost pool leaves too little for all: the highest. Whole, default 0.",
    )
    target: Share = Field(
        0.95,
        description="Service-level objective: the experience (operations finished in time / asked) it should not fall below."
        " From 0 to 1, default 0.95.",
    )
    sponsor: Name | None = Field(
        None,
        description="The account that pays for what the floor adds. Default: nobody; that part is waived and logged.",
    )
    preemptible: bool = Field(
        False, strict=True, description="Whether it may be stopped and moved for others. Default false. Reserved."
    )
    needs: Names = Field((), description="Tasks that it calls; it suffers when they are short. Default: none.")
    pools: Names | None = Field(None, description="The pools that may serve it. Default: all that have what it wants.")
    description: str = Field(
        "", strict=True, description="What it is, in words, for readers and later for models. Default: empty."
    )
    command: Annotated[tuple[str, ...], BeforeValidator(_argv)] | None = Field(
        None, description="For kind 'process': the program and its arguments, a list; no shell reads it."
    )
    probe: Annotated[Literal["stdout"] | Metrics | None, BeforeValidator(_probe)] = Field(
        None,
        description="For kind 'process': how it tells its experience. 'stdout' (the default): it prints a line of JSON once a"
        ' second, with "asked" and "in_time". Or {url, asked, in_time}: its metrics page and the names of two counters.',
    )

    @model_validator(mode="after")
    def _kind_and_command(self) -> Task:
        given = self.model_fields_set
        if self.kind == "process":
            if self.command is None:
                raise wrong("kind 'process' needs a command. Write for example 'command: [python, -u, my_server.py]'.")
            if "size" in given:
                raise wrong_entries(
                    {"size": "a process has no size: its command says how large it is. Remove 'size'."},
                    {"size": self.size},
                )
        else:
            for key in ("command", "probe"):
                if key in given:
                    why = f"kind '{self.kind}' brings its own program and probe. Remove '{key}', or write 'kind: process'."
                    raise wrong_entries({key: why}, {key: getattr(self, key)})
        if not any(self.demand.values()):
            raise wrong("its demand is nothing at all. Write for example 'demand: {cpu: 0.15 cores, memory: 96 MiB}'.")
        return self

    @property
    def kept(self) -> float:
        """Its floor as a share of its ordinary demand: as it gets the same share of all, the largest decides."""
        if not isinstance(self.floor, dict):
            return self.floor
        return max((x / self.demand[r] for r, x in self.floor.items() if self.demand.get(r)), default=0.0)


class Event(Entry):
    """Something that multiplies the load of tasks for a while, and with it what they bid."""

    name: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
    ] = Field(description="What it is called in tables and logs.")
    at: Seconds = Field(description="When it begins, in world time: seconds, or '20 s', '2 min'.")
    lasts: Seconds = Field(alias="for", gt=0, description="How long it lasts: seconds, or '20 s', '2 min'.")
    task: Name | Names = Field(description="The task whose load it multiplies, or a list of tasks.")
    load: Factor = Field(description="What it multiplies the load by: 'x6' or 6. Overlapping events multiply.")
    every: Annotated[Seconds, Field(ge=0.001)] | None = Field(
        None,
        description="Period after which it comes again, at least as long as it lasts. Default: it comes once.",
    )

    @model_validator(mode="after")
    def _ends_before_it_returns(self) -> Event:
        if self.every is not None and self.every < self.lasts:
            raise wrong(f"it lasts {self.lasts:g} s and would begin again after {self.every:g} s. Raise 'every'.")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it is about."""
        return (self.task,) if isinstance(self.task, str) else self.task


class WorldFile(Entry):
    """A world: what there is, who shares it, what runs, what happens, and by which rules."""

    version: Literal[1] = Field(description="Version of this format: 1.")
    name: Name | None = Field(None, description="What the world is called. Default: the file's name.")
    description: str = Field("", strict=True, description="What the world is about. Default: empty.")
    round_seconds: Seconds = Field(1.0, ge=0.05, le=3600, description="Length of a round. Seconds, default 1.")
    rounds: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="How many rounds are played. Default: until stopped."
    )
    seed: Whole = Field(0, ge=0, lt=2**53, description="What chance is drawn from in simulation. Whole, default 0.")
    policy: Literal[tuple(POLICIES)] = Field(  # type: ignore[valid-type]  # the names that core lists
        "market",
        description=f"How pools are shared: {_POLICIES}.",
    )
    credits_per_round: Number = Field(
        100.0,
        ge=1e-6,
        le=1e9,
        description="Credits that all accounts together bid in an ordinary round. Above 0, default 100.",
    )
    supply: Annotated[Number, Field(ge=1e-6, le=MOST_CREDITS)] | None = Field(
        None, description="Credits in the world; it never changes. Default: 20 x credits_per_round."
    )
    alpha: Share = Field(
        0.5,
        description="Part of each pool that accounts get free, by entitlement; the rest is sold. 0 to 1, default 0.5.",
    )
    kappa: Number = Field(
        4.0,
        ge=1,
        le=1e9,
        description="An account holds at most kappa x its entitlement x the supply. At least 1, default 4.",
    )
    half_life: Annotated[Number, Field(gt=0, le=1e6)] | None = Field(
        None,
        description="Rounds after which past use counts half: who used little lately gets more now. Default: no memory.",
    )
    quantile: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None, description="Quantile of forecast demand that is asked for. Between 0 and 1. Reserved."
    )
    pools: dict[Name, Pool] = Field(min_length=1, description="What there is to share, by name.")
    accounts: dict[Name, Account] = Field(min_length=1, description="Who shares it, by name. Entitlements come to 1.")
    tasks: dict[Name, Task] = Field(min_length=1, description="What runs, by name.")
    events: tuple[Event, ...] = Field((), description="What happens, and when. Default: nothing.")
    reservations: dict[Name, Reservation] = Field(
        {}, description="Floors for some time, paid for in advance, by name. Default: none."
    )

    @property
    def tree(self) -> Tree:
        """Whose child each account is."""
        row = {name: a for a, name in enumerate(self.accounts)}
        parent = [-1 if a.parent is None else row[a.parent] for a in self.accounts.values()]
        return Tree(np.array(parent, np.int64), np.array([a.weight for a in self.accounts.values()]))

    @property
    def opening(self) -> Int[np.ndarray, " account"]:
        """Micro-credits that each account holds before it pays for reservations; they come to `held`, exactly."""
        given = [None if a.balance is None else micro(a.balance) for a in self.accounts.values()]
        rest = split(
            self.held - sum(g for g in given if g is not None),
            np.where([g is None for g in given], self.tree.entitlement, 0.0),
        )
        return np.array([r if g is None else g for g, r in zip(given, rest, strict=True)], np.int64)

    @property
    def held(self) -> int:
        """Micro-credits in the world: stated, or what the accounts state together, or 20 rounds of bids."""
        given = [a.balance for a in self.accounts.values() if a.balance is not None]
        if self.supply is not None:
            return micro(self.supply)
        return sum(map(micro, given)) if len(given) == len(self.accounts) else 20 * micro(self.credits_per_round)
