"""Accounts: what each participant is entitled to, what it holds, and what its tasks bid with it.

    bid_i = entitlement_a * credits_per_round * surge_i * weight_i / (sum of weight over a's tasks)

An event raises `surge`, which raises demand and bid together. Bids are spent by accounts, not by tasks: where
an account's bids exceed its balance, all of them shrink alike, so that together they never do; where accounts nest,
so at every level of the tree. A bid is therefore always covered, and whatever a round charges within it can be paid.

Whole micro-credits, fixed supply: `post` moves them between accounts and refuses anything that would make or
lose one; only an operator's act (`perform`) may. Both change everything or nothing: what is new replaces what was
once all of it has been checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from apportion.core.errors import BadInput, Overdrawn, Refused
from apportion.core.market import Tasks
from apportion.core.round import Bills, Posting
from apportion.core.units import MICRO, whole_down
from apportion.settlement import acts
from apportion.settlement.acts import Act, Standing
from apportion.settlement.tree import Tree


class Accounts:
    """Who may spend what. Owns the balances while a world runs; the log owns the truth."""

    def __init__(
        self,
        name: Sequence[str],
        entitlement: ArrayLike,
        balance: ArrayLike,
        credits_per_round: float,
        kappa: float,
        tree: Tree | None = None,
    ):
        """entitlement: parts of one whole; balance: micro-credits; kappa: times its part of the supply an account may hold.

        tree: whose child each account is, if they nest; then entitlement is the tree's.
        """
        self.name = tuple(name)
        self.entitlement = np.array(entitlement, float)
        self._balance = np.array(balance, np.int64)
        self.tree = tree
        self.credits_per_round, self.kappa = float(credits_per_round), float(kappa)
        self._check()

    @property
    def balance(self) -> Int[np.ndarray, " account"]:
        """Micro-credits of each account: a copy."""
        return self._balance.copy()

    @property
    def supply(self) -> int:
        """All the micro-credits there are."""
        return int(self._balance.sum())

    def bids(self, tasks: Tasks, limit: Int[np.ndarray, " account"] | None = None) -> Int[np.ndarray, " task"]:
        """What each task may spend this round, in whole micro-credits; an account's bids never exceed its balance.

        limit: what each account may spend at most, all below it included (see budgets).
        """
        of = tasks.account
        among = np.bincount(of, tasks.weight, minlength=len(self.name))[of]  # weight of all the account's tasks
        share = np.divide(tasks.weight, among, out=np.zeros(len(of)), where=among > 0)
        wanted = self.entitlement[of] * self.credits_per_round * MICRO * share * tasks.surge
        if not wanted.sum() < 2**62:
            raise BadInput(
                f"the bids of one round come to {wanted.sum() / MICRO:.3g} credits: lower credits_per_round."
            )
        bid = whole_down(wanted)
        tree = self.tree or Tree.flat(len(self.name))
        held = tree.below(self._balance)
        return tree.shrink(of, bid, held if limit is None else np.minimum(held, limit))

    def perform(self, act: Act) -> tuple[Posting, ...]:
        """Do what an operator decided (and logged), wholly or not at all; gives its lines."""
        standing, lines = self.would(act)
        self.name, self.entitlement = standing.name, standing.entitlement
        self._balance, self.tree = standing.balance, standing.tree
        return lines

    def would(self, act: Act) -> tuple[Standing, tuple[Posting, ...]]:
        """Give what an act would make of the accounts, and its lines, to be logged before it is performed."""
        return acts.after(Standing(self.name, self.entitlement, self._balance, self.tree), act)

    def after(self, bills: Bills) -> Int[np.ndarray, " account"]:
        """What the accounts will hold once these bills are posted; raises and moves nothing if they can't be."""
        if drift := int(bills.postings.amount.sum()):
            raise Refused(
                f"these bills would {'make' if drift > 0 else 'lose'} {abs(drift)} micro-credits; nothing was moved."
            )
        after = self._balance + bills.postings.net(len(self.name))
        if (after < 0).any():
            a = int(np.argmax(after < 0))
            owes = int(self._balance[a] - after[a])
            raise Overdrawn(
                f"account {self.name[a]!r} holds {self._balance[a]} micro-credits and owes {owes}; nothing was moved."
            )
        return after

    def post(self, bills: Bills) -> None:
        """Move the credits of one round, wholly or not at all."""
        self._balance = self.after(bills)

    def _check(self) -> None:
        if not len(self.name) == len(self.entitlement) == len(self._balance):
            raise BadInput(
                f"{len(self.name)} account names, {len(self.entitlement)} entitlements and {len(self._balance)} balances: one each."
            )
        wrong = ~(np.isfinite(self.entitlement) & (self.entitlement >= 0))
        if wrong.any():
            a = int(np.argmax(wrong))
            raise BadInput(
                f"account {self.name[a]!r} is entitled to {self.entitlement[a]}: it must be finite and at least 0."
            )
        if not 0 < self.entitlement.sum() <= 1 + 1e-9:
            raise BadInput(f"entitlements come to {self.entitlement.sum():.6g}: they are parts of 1.")
        if (self._balance < 0).any():
            a = int(np.argmax(self._balance < 0))
            raise BadInput(f"account {self.name[a]!r} would begin with {self._balance[a]} micro-credits: at least 0.")
        if not self.kappa >= 1:
            raise BadInput(f"kappa is {self.kappa}: below 1 the accounts together could not hold the supply.")
        if not self.credits_per_round >= 0:
            raise BadInput(f"credits_per_round is {self.credits_per_round}: it must be at least 0.")
