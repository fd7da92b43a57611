"""Budgets over a period: "500 core-hours a month", "20 credits a day".

    credits    what an account's tasks may bid in this round is at most what is left: Accounts.bids(tasks, limit)
    amounts    an account's tasks may use at most what is left in this round: a factor on what their caps leave above their floors

A budget holds for an account and all that stand inside it. A period is a number of rounds, counted from round 0; what is left
over is not carried on. Amounts are base units times rounds, counted as delivered where that was measured, else as granted;
free parts count too, for a core-hour is one. What floors will still take until the period ends is set aside, and floors
are kept whatever is left. So amounts can't be overdrawn, up to what a machine delivers beyond its grant and what a floor takes
more of later than it does now; a new period forgives that. What an account pays as a sponsor counts, and is not held back.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Tasks
from apportion.core.round import Bills, Outcome
from apportion.core.units import SHARE
from apportion.settlement.tree import Tree
from apportion.settlement.whole import by_account

UNLIMITED = -1
# Rounds of a period, micro-credits, and base units times rounds: what accounts may spend and use in a period.
Limits = tuple[Int[np.ndarray, " account"], Int[np.ndarray, " account"], Int[np.ndarray, "account resource"]]


class Budgets:
    """What accounts may still spend and use in this period. Owns the counts; they can be counted again from the log."""

    def __init__(
        self,
        rounds: int | Int[np.ndarray, " account"],
        credits: Int[np.ndarray, " account"],
        amounts: Int[np.ndarray, "account resource"],
        tree: Tree | None = None,
    ):
        """rounds: of a period, of all or of each; credits: micro-credits, amounts: base units times rounds; -1 is unlimited."""
        if (least := int(np.min(rounds))) < 1:
            raise BadInput(f"a budget's period is {least} rounds: at least 1.")
        if min(credits.min(initial=0), amounts.min(initial=0)) < UNLIMITED:
            raise BadInput("a budget is at least 0, or -1 for unlimited.")
        self.rounds = np.broadcast_to(np.asarray(rounds, np.int64), credits.shape)
        self.credits, self.amounts = credits.copy(), amounts.copy()
        self.tree = tree or Tree.flat(len(credits))
        self._period = np.zeros_like(self.rounds)
        self._spent, self._used = np.zeros_like(credits), np.zeros_like(amounts)

    def limit(self, number: int, balance: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        """Give the micro-credits that each account, and all inside it together, may bid in this round."""
        held, (credits, _) = self.tree.below(balance), self.left(number)
        return np.where(self.credits == UNLIMITED, held, np.minimum(held, credits))

    def left(self, number: int) -> tuple[Int[np.ndarray, " account"], Int[np.ndarray, "account resource"]]:
        """Give the credits and amounts that are left in a round; of what is unlimited this says nothing."""
        self._turn(number)
        return np.maximum(0, self.credits - self._spent), np.maximum(0, self.amounts - self._used)

    def caps(self, number: int, tasks: Tasks) -> Float[np.ndarray, " task"]:
        """Give caps under which no account uses more in this round than is left to it; all its tasks give way alike.

        In whole parts, rounded down: what is less than a part can't be bought, and nobody should bid for it.
        """
        _, left = self.left(number)
        coming = self.rounds - number % self.rounds  # rounds of the period, this one included
        cap, accounts = tasks.cap.copy(), len(self.credits)
        for at, here in self.tree.upwards(tasks.account):  # an account sees what its children's budgets leave
            factor = np.ones(accounts)
            for r in range(tasks.demand.shape[1]):
                kept = np.bincount(at, tasks.demand[here, r] * tasks.floor[here], minlength=accounts)
                more = np.bincount(at, tasks.demand[here, r] * (cap - tasks.floor)[here], minlength=accounts)
                room = np.maximum(0, left[:, r] - kept * coming)
                over = (self.amounts[:, r] != UNLIMITED) & (more > room)
                factor[over] = np.minimum(factor[over], room[over] / more[over])
            cap[here] = tasks.floor[here] + (cap - tasks.floor)[here] * factor[at]
        lowered = np.maximum(np.floor(cap * SHARE + 1e-6) / SHARE, tasks.floor)
        return np.where(cap < tasks.cap, lowered, tasks.cap)

    def count(self, number: int, tasks: Tasks, allocation: Allocation, outcome: Outcome, bills: Bills) -> None:
        """Count a round that was played."""
        self._turn(number)
        used = np.where(outcome.delivered >= 0, outcome.delivered, allocation.granted)
        payer, accounts = tasks.account[allocation.market.row], len(self.credits)
        for r in range(used.shape[1]):
            self._used[:, r] += self.tree.below(by_account(payer, used[:, r], accounts))
        spent, sponsored = by_account(tasks.account, bills.paid, accounts), np.flatnonzero(bills.sponsored)
        spent += by_account(tasks.sponsor[sponsored], bills.sponsored[sponsored], accounts)
        self._spent += self.tree.below(spent)

    def _turn(self, number: int) -> None:
        """Begin new periods when their first round comes."""
        new = number // self.rounds != self._period
        self._period = number // self.rounds
        self._spent[new], self._used[new] = 0, 0
