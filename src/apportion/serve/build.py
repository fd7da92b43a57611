"""From a world file to an engine: the one place that knows every room."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from apportion.clearing.clear import clear
from apportion.clearing.rules import against, equal, fair, softmax, spread, static
from apportion.core.allocation import Allocation
from apportion.core.clock import Clock, VirtualClock, WallClock
from apportion.core.market import Market, Tasks
from apportion.core.policies import Policy, named
from apportion.core.round import Round
from apportion.engine import Engine
from apportion.execution import Executor, machine, places
from apportion.execution.crowd import Crowd
from apportion.execution.local import LocalExecutor, retire
from apportion.execution.programs import Probe, Program, own, shipped
from apportion.execution.sim import SimExecutor
from apportion.intake.gate import Gate
from apportion.ledger import reading
from apportion.ledger.journal import Journal
from apportion.serve.folder import Folder
from apportion.settlement.accounts import Accounts
from apportion.settlement.budgets import Budgets
from apportion.settlement.karma import Karma
from apportion.settlement.memory import Memory
from apportion.valuing.projection import scores
from apportion.worlds.file import Event
from apportion.worlds.world import World

GAP = 1e-3  # what a round without memory is cleared to


@dataclass(frozen=True, slots=True)
class Rule:
    """How a policy answers a round's market, and how it takes in one that was played before a resume."""

    allocate: Callable[[Market], Allocation]
    recall: Callable[[Market], object] | None = None


def _measured(rule: Callable[[Market], Allocation]) -> Rule:
    """Judge a rule without prices by the bound that the market's prices prove."""
    return Rule(lambda market: against(rule(market), clear(market)))


def _market(market: Market) -> Allocation:
    """Clear, by so much more closely as this round counts less than what is remembered.

    A gap is a part of all that is used and remembered: with a half-life of 110 rounds, 0.1 % of it is a sixth of a round.
    """
    return clear(market, gap=GAP * market.eta)


def _karma(world: World, tasks: Tasks) -> Rule:
    karma = Karma(world.accounts[1], world.alpha)
    play = lambda market: karma.play(replace(tasks, demand=market.demand, cap=market.cap), market.capacity)  # noqa: E731
    return replace(_measured(lambda market: spread(market, "karma", play(market))), recall=play)


def _entitled(world: World, tasks: Tasks) -> Float[np.ndarray, " task"]:
    """What a task's account is entitled to, divided among its tasks by weight."""
    among = np.bincount(tasks.account, tasks.weight)[tasks.account]
    return world.accounts[1][tasks.account] * tasks.weight / among


RULES: dict[str, Callable[[World, Tasks, int], Rule]] = {  # from a world, an ordinary day's tasks and a seed
    "market": lambda world, tasks, seed: Rule(_market),
    "static": lambda world, tasks, seed: _measured(lambda market: static(market, tasks.base)),
    "drf": lambda world, tasks, seed: _measured(lambda market: fair(market, "drf", _entitled(world, tasks))),
    "maxmin": lambda world, tasks, seed: _measured(lambda market: fair(market, "leximin", np.ones(len(tasks.name)))),
    "karma": lambda world, tasks, seed: _karma(world, tasks),
    "equal": lambda world, tasks, seed: _measured(equal),
    "softmax": lambda world, tasks, seed: _measured(lambda market: softmax(market, scores(market, seed))),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the caller of `up` chose beside the world file."""

    engine: str = "local"
    policy: str | None = None  # None: the world's
    seed: int | None = None  # None: the world's
    rounds: int | None = None  # to play from here on; None: what the world leaves
    advise: bool = False  # price and measure, enforce nothing; a simulation has nothing to hold, and goes on as ever
    resume: bool = False
    fresh: bool = False


def clock_of(engine: str) -> Clock:
    """Give the clock that an engine runs by."""
    return VirtualClock() if engine == "sim" else WallClock()


class Running:
    """A world that is up, with all that must be closed again. Use as a context."""

    def __init__(self, world: World, choice: Choice, out: Path, clock: Clock | None = None):
        """Check the world, open its log in `out`, start its programs: in this order, so that no error leaves any running."""
        name = choice.policy or world.policy
        policy, seed = named(name), world.seed if choice.seed is None else choice.seed
        capacity = machine.capacity()
        world.check(capacity)
        if choice.engine != "sim":
            world.check_commands()
        self.clock = clock or clock_of(choice.engine)
        self.folder = Folder(out)
        self.advised = choice.advise and choice.engine != "sim"
        self.found: list[str] = []  # of an earlier run, and on the machine: for people
        self.notes: list[str] = []  # what they should know before it starts
        self.enforcer = ""  # that the programs start under; in a simulation there is none
        self.engine: Engine | None = None  # until there is something to play
        self._world, self._seed = world, seed if choice.engine == "sim" else None  # chance moves simulated worlds only
        memory, budgets = _memory(world, policy), _budgets(world)
        rule = RULES[policy.name](world, world.tasks(0), seed)
        with contextlib.ExitStack() as stack:
            if choice.resume:
                self.log, state, self.found = self.folder.resume(
                    world, policy=name, engine=choice.engine, seed=seed, advise=self.advised, clock=self.clock
                )
                self.first, balance = state.number, state.balance
                if choice.engine == "sim":
                    self.clock.sleep_until(self.first * world.round_seconds)
            else:
                self.log = self.folder.begin(
                    world,
                    policy=name,
                    alpha=_alpha(world, policy),
                    half_life=memory.half_life,
                    engine=choice.engine,
                    seed=seed,
                    advise=self.advised,
                    fresh=choice.fresh,
                    clock=self.clock,
                )
                self.first, balance = 0, world.balance
            stack.callback(self.log.close)
            if choice.resume and (budgets or rule.recall or memory.half_life is not None):
                for logged in reading.rounds(self.log):
                    if logged.allocation and logged.outcome and logged.bills:
                        memory.learn(logged.tasks, logged.allocation)
                        if rule.recall:
                            rule.recall(logged.market)
                        if budgets:
                            budgets.count(logged.number, logged.tasks, logged.allocation, logged.outcome, logged.bills)
            self.count = choice.rounds  # how many are to be played; None: until stopped
            if self.count is None and world.rounds is not None:
                self.count = max(world.rounds - self.first, 0)
            if self.count == 0:
                self.found += retire(out)
                self._close = stack.pop_all()
                return
            arrivals: Callable[[int], Tasks]
            executor: Executor
            if choice.engine == "sim":
                executor, arrivals = _simulated(world, seed, self.clock), lambda number: world.tasks(number, seed)
            else:
                executor = LocalExecutor(programs(world), "none" if choice.advise else "auto", out, self.clock)
                arrivals = _crowded(world, Crowd(out))
                self.found += executor.greeting
                self.enforcer = executor.enforcer
                self.notes += machine.oversold(_totals(world, capacity), capacity)
            stack.callback(executor.close)
            journal = Journal(self.log, name, self.clock)
            self.engine = _engine(
                world, policy, rule, capacity, balance, memory, budgets, arrivals, executor, journal, self.clock
            )
            self._close = stack.pop_all()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def awake(self, seconds: float = 5.0) -> list[str]:
        """Wait until every program is up, unthrottled, and name those that have told little or nothing by then."""
        until = self.clock.now() + seconds
        executor = self.engine.executor if self.engine else None
        while isinstance(executor, LocalExecutor) and (silent := executor.silent()):
            if self.clock.now() >= until:
                return silent
            self.clock.sleep_until(self.clock.now() + 0.05)
        return []

    def rounds(self, count: int | None = None) -> Iterator[Round]:
        """Play `count` rounds; None: those that are to be played."""
        return self.engine.run(self.first, self.count if count is None else count) if self.engine else iter(())

    def happening(self, number: int) -> list[tuple[Event, float]]:
        """Give the events that are on in a round, and how many seconds longer."""
        return self._world.happening(number, self._seed)

    @property
    def released(self) -> bool:
        """Whether `release` lifted the limits of this run."""
        return self.engine is not None and places.flag(self.folder.path).exists()


def play(
    world: World, policy: str | None = None, seed: int | None = None, rounds: int | None = None
) -> Iterator[Round]:
    """Play a world in virtual time, with nothing written; what is left out is the world's (no `rounds`: without end)."""
    chosen, seed = named(policy or world.policy), world.seed if seed is None else seed
    clock = VirtualClock()
    executor = _simulated(world, seed, clock)
    engine = _engine(
        world,
        chosen,
        RULES[chosen.name](world, world.tasks(0), seed),
        machine.capacity(),
        world.balance,
        _memory(world, chosen),
        _budgets(world),
        lambda number: world.tasks(number, seed),
        executor,
        Journal(None, chosen.name, clock),
        clock,
    )
    return engine.run(0, world.rounds if rounds is None else rounds)


def _engine(
    world: World,
    policy: Policy,
    rule: Rule,
    capacity: dict[str, int],
    balance: Int[np.ndarray, " account"],
    memory: Memory,
    budgets: Budgets | None,
    arrivals: Callable[[int], Tasks],
    executor: Executor,
    journal: Journal,
    clock: Clock,
) -> Engine:
    (names, entitlement), tree = world.accounts, world.tree
    return Engine(
        arrivals=arrivals,
        pools=world.pools(capacity),
        gate=Gate(entitlement, _alpha(world, policy), tree.lend if tree else None),
        accounts=Accounts(names, entitlement, balance, world.credits_per_round, world.kappa, tree),
        memory=memory,
        policy=rule.allocate,
        executor=executor,
        journal=journal,
        clock=clock,
        round_seconds=world.round_seconds,
        budgets=budgets,
        reservations=world.reservations,
    )


def programs(world: World) -> list[Program]:
    """Give what each task runs."""
    out = []
    for name, task in world.specs.items():
        if task.command is None:
            out.append(shipped(name, task.kind, task.size, task.needs))
        else:
            page = None if task.probe is None or isinstance(task.probe, str) else task.probe
            told = Probe() if page is None else Probe(page.url, page.asked or "", page.in_time or "")
            out.append(own(name, task.command, told, task.needs))
    return out


def _simulated(world: World, seed: int, clock: Clock) -> SimExecutor:
    kinds = {name: task.kind for name, task in world.specs.items()}
    return SimExecutor(kinds, {name: task.needs for name, task in world.specs.items()}, clock, seed)


def _totals(world: World, capacity: dict[str, int]) -> dict[str, float]:
    """What the pools promise together, in base units by resource."""
    pools = world.pools(capacity)
    return dict(zip(pools.resources, pools.capacity.sum(axis=0).tolist(), strict=True))


def _alpha(world: World, policy: Policy) -> float:
    return world.alpha if policy.priced else 0.0


def _memory(world: World, policy: Policy) -> Memory:
    return Memory(world.half_life if policy.priced else None, world.accounts[1])


def _budgets(world: World) -> Budgets | None:
    limits = world.budgets
    return Budgets(*limits, world.tree) if limits else None


def _crowded(world: World, crowd: Crowd) -> Callable[[int], Tasks]:
    """Let the players of a round arrive at the real programs too."""

    def arrivals(number: int) -> Tasks:
        tasks = world.tasks(number)
        crowd.play(tasks)
        return tasks

    return arrivals
