"""When a round writes what: the acts of a round in, entries in the log."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from apportion.core.allocation import Allocation
from apportion.core.clock import Clock
from apportion.core.errors import LogUnavailable
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome, Posting
from apportion.ledger import records
from apportion.ledger.log import Log


class Journal:
    """Writes each stage of a round before the next one begins. Every method returns once its entry is durable."""

    def __init__(self, log: Log | None, policy: str, clock: Clock):
        """log: None for studies, whose thousands of rounds nobody will audit; policy: its name."""
        self.log, self.policy, self.clock = log, policy, clock
        self._begun: int | None = None  # the round whose demand is written and whose bills are not

    def demand(
        self, number: int, tasks: Tasks, pools: Pools, market: Market, balance: Int[np.ndarray, " account"]
    ) -> None:
        """Before the solve, so that nobody can fit bids to prices."""
        if self.log:
            self.log.append([records.demand(number, self.clock.stamp(), tasks, pools, market, balance)])
            self._begun = number

    def decision(self, number: int, allocation: Allocation) -> None:
        """Before anything runs, so that after a crash we know what was promised."""
        if self.log:
            self.log.append([records.decision(number, self.clock.stamp(), allocation, self.policy)])

    def rest(self) -> None:
        """While programs run and nobody waits: the store does what a commit would else stop for."""
        if self.log:
            self.log.tidy()

    def closed(
        self,
        number: int,
        tasks: Tasks,
        allocation: Allocation,
        outcome: Outcome,
        bills: Bills,
        balance: Int[np.ndarray, " account"],
    ) -> None:
        """Outcome, bills and the balances after them, together or not at all."""
        if self.log:
            at = self.clock.stamp()
            done = records.outcome(number, at, outcome, allocation)
            self.log.append([done, records.bills(number, at, bills, balance, tasks)])
            self._begun = None

    def transfer(self, postings: Sequence[Posting], balance: Int[np.ndarray, " account"], why: str) -> None:
        """Between rounds, before the money moves; balance: after it."""
        if self.log:
            self.log.append([records.transfer(self.clock.stamp(), postings, balance, why)])

    def abort(self, why: str) -> None:
        """Close a round that was begun and will not be finished: it is charged nothing.

        Where the log can't be written any more the round stays open in it, and whoever resumes closes it.
        """
        if self.log and self._begun is not None:
            with contextlib.suppress(LogUnavailable):
                self.log.append([records.aborted(self._begun, self.clock.stamp(), why)])
            self._begun = None
