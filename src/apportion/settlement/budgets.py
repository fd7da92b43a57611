"""Budgets over a period: "500 core-hours a month", "20 credits a day".

    credits    what an account's tasks may bid in this round is at most what is left: Accounts.bids(tasks, limit)
    amounts    an account's tasks may use at most what is left in this round: a factor on their caps

A period is a number of rounds, counted from round 0; what is left over is not carried on. Amounts are base units times
rounds, counted as delivered where that was measured, else as granted; free parts count too, for a core-hour is one. Amounts
can't be overdrawn, up to what a machine delivers beyond its grant; a new period forgives that.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Tasks
from apportion.core.round import Bills, Outcome
from apportion.settlement.whole import by_account

UNLIMITED = -1


class Budgets:
    """What accounts may still spend and use in this period. Owns the counts; they can be counted again from the log."""

    def __init__(self, rounds: int, credits: Int[np.ndarray, " account"], amounts: Int[np.ndarray, "account resource"]):
        """rounds: of a period; credits: micro-credits, amounts: base units times rounds; -1 is unlimited."""
        if rounds < 1:
            raise BadInput(f"a budget's period is {rounds} rounds: at least 1.")
        if min(credits.min(initial=0), amounts.min(initial=0)) < UNLIMITED:
            raise BadInput("a budget is at least 0, or -1 for unlimited.")
        self.rounds, self.credits, self.amounts = rounds, credits.copy(), amounts.copy()
        self._period = 0
        self._spent, self._used = np.zeros_like(credits), np.zeros_like(amounts)

    def limit(self, number: int, balance: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        """Give the micro-credits that each account may bid in this round."""
        self._turn(number)
        left = np.maximum(0, self.credits - self._spent)
        return np.where(self.credits == UNLIMITED, balance, np.minimum(balance, left))

    def caps(self, number: int, tasks: Tasks) -> Float[np.ndarray, " task"]:
        """Give caps under which no account uses more in this round than is left to it; all its tasks give way alike."""
        self._turn(number)
        accounts = len(self.credits)
        factor = np.ones(accounts)
        for r in range(tasks.demand.shape[1]):
            most = np.bincount(tasks.account, tasks.demand[:, r] * tasks.cap, minlength=accounts)
            left = np.maximum(0, self.amounts[:, r] - self._used[:, r])
            over = (self.amounts[:, r] != UNLIMITED) & (most > left)
            factor[over] = np.minimum(factor[over], left[over] / most[over])
        return tasks.cap * factor[tasks.account]

    def count(self, number: int, tasks: Tasks, allocation: Allocation, outcome: Outcome, bills: Bills) -> None:
        """Count a round that was played."""
        self._turn(number)
        used = np.where(outcome.delivered >= 0, outcome.delivered, allocation.granted)
        payer, accounts = tasks.account[allocation.market.row], len(self.credits)
        for r in range(used.shape[1]):
            self._used[:, r] += by_account(payer, used[:, r], accounts)
        self._spent += by_account(tasks.account, bills.paid, accounts)
        sponsored = np.flatnonzero(bills.sponsored)
        self._spent += by_account(tasks.sponsor[sponsored], bills.sponsored[sponsored], accounts)

    def _turn(self, number: int) -> None:
        """Begin a new period when its first round comes."""
        if number // self.rounds != self._period:
            self._period = number // self.rounds
            self._spent[:], self._used[:] = 0, 0
