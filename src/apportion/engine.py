"""One round after another: what the second floor does, in its order.

Who owns what: the log owns the truth, `accounts`, `memory` and `budgets` what follows from it, the executor the machine. After a
crash at any line, the log tells what was promised: a demand without a decision never happened, a decision
without an outcome is closed as aborted and charged nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from apportion.clearing.fix import fix
from apportion.core.allocation import Allocation
from apportion.core.clock import Clock
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome, Round
from apportion.execution import Executor
from apportion.intake.gate import Gate
from apportion.ledger.journal import Journal
from apportion.settlement.accounts import Accounts
from apportion.settlement.budgets import Budgets
from apportion.settlement.escrow import Reservation
from apportion.settlement.memory import Memory
from apportion.settlement.settle import settle


class Engine:
    """Plays the rounds of one world."""

    def __init__(
        self,
        *,
        arrivals: Callable[[int], Tasks],
        pools: Pools,
        gate: Gate,
        accounts: Accounts,
        memory: Memory,
        policy: Callable[[Market], Allocation],
        executor: Executor,
        journal: Journal,
        clock: Clock,
        round_seconds: float,
        budgets: Budgets | None = None,
        reservations: Sequence[Reservation] = (),
    ):
        """arrivals: the tasks of a round, by its number; policy: a market's allocation; budgets: None where there are none;
        reservations: whose rest is given back when they are over (their floors come with the tasks)."""
        self.arrivals, self.pools, self.gate, self.accounts = arrivals, pools, gate, accounts
        self.memory, self.policy, self.executor, self.journal = memory, policy, executor, journal
        self.clock, self.round_seconds, self.budgets = clock, round_seconds, budgets
        self.reservations = reservations
        self._due = clock.now()
        self._stage_ms: dict[str, float] = {}

    def round(self, number: int) -> Round:
        """Play one round."""
        self._stage_ms = {}
        with self._timed("ledger"):
            self._refund(number)
        with self._timed("intake"):
            tasks = self.arrivals(number)
            limit = self.budgets and self.budgets.limit(number, self.accounts.balance)
            cap = self.budgets and self.budgets.caps(number, tasks)
            bid, mean = self.accounts.bids(tasks, limit), self.memory.mean(tasks, self.pools.capacity)
            market = self.gate.admit(tasks, self.pools, bid, mean, self.memory.eta, cap)
        with self._timed("ledger"):  # before the solve: bids can't be fitted to prices
            self.journal.demand(number, tasks, self.pools, market, self.accounts.balance)
        with self._timed("clearing"):
            allocation = fix(self.policy(market))
        with self._timed("ledger"):  # before anything runs: after a crash we know what was promised
            self.journal.decision(number, allocation)
        with self._timed("execution"):
            self.executor.grant(allocation)
        self.journal.rest()  # while programs run, so that no commit has to wait for it
        self._wait()
        with self._timed("execution"):
            outcome = self.executor.observe()
        with self._timed("settlement"):
            bills = self._settle(tasks, allocation, outcome)
        with self._timed("ledger"):
            self.journal.closed(number, tasks, allocation, outcome, bills, self.accounts.after(bills))
        with self._timed("settlement"):  # what stands in the log is posted and remembered, and nothing else
            self.accounts.post(bills)
            self.memory.learn(tasks, allocation)
            if self.budgets:
                self.budgets.count(number, tasks, allocation, outcome, bills)
        balance = self.accounts.balance
        return Round(number, tasks, self.pools, market, allocation, outcome, bills, balance, self._stage_ms)

    def run(self, first: int, count: int | None) -> Iterator[Round]:
        """Play `count` rounds from number `first`; None: until stopped."""
        self._due = self.clock.now()
        try:
            for number in range(first, first + count) if count is not None else itertools.count(first):
                yield self.round(number)
        except BaseException as why:  # also Ctrl-C: no promise is left open
            self.journal.abort(type(why).__name__)
            raise

    def _refund(self, number: int) -> None:
        """Give back what reservations that are over did not use. The log first: after a crash it is not given twice."""
        for one in self.reservations:
            left = int(self.accounts.balance[self.accounts.name.index(one.purse)])
            if number > one.last and left:
                after, lines = self.accounts.would(act := one.refund(left))
                self.journal.transfer(lines, after.balance, f"reservation {one.name} is over")
                self.accounts.perform(act)

    def _settle(self, tasks: Tasks, allocation: Allocation, outcome: Outcome) -> Bills:
        a = self.accounts
        return settle(tasks, allocation, outcome, a.balance, a.entitlement, self.gate.alpha, a.kappa, a.supply, a.tree)

    def _wait(self) -> None:
        """Until the round is over; one that began late ends late, and the next ones do not hurry after it."""
        self._due = max(self._due, self.clock.now() - self.round_seconds) + self.round_seconds
        self.clock.sleep_until(self._due)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._stage_ms[stage] = self._stage_ms.get(stage, 0.0) + (time.perf_counter() - begin) * 1e3
