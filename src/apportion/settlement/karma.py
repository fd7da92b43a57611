"""Karma: who leaves its guaranteed slices to others earns credits, and borrows with them when it needs more.

Vuppalapati et al., *Karma: Resource Allocation for Dynamic Demands*, OSDI 2023, for accounts of any entitlement: a slice is a
millionth of all capacity, of whatever resource an account wants the largest part. Every round everybody earns the
slices of its entitlement that are not guaranteed; slices go one by one to the borrower with most credits, which pays one, taken from
the donor with fewest, which earns one, and from the shared rest when nobody donates. Most and fewest are by entitlement, so that who
is entitled to more is not always first; ties go to the first account.

These credits are a policy's own: they are made every round, no log holds them and nobody is billed. They
follow from the rounds that were played, so a run that is taken up again counts them again.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput
from apportion.core.market import Tasks
from apportion.core.units import split
from apportion.settlement.memory import dominant
from apportion.settlement.whole import pour

SLICES = 10**6
TIE = 1e-9  # heights by weight that differ by less are alike; two units of one account never do
BEGIN = 100  # rounds of its entitlement that an account could borrow at the start


class Karma:
    """Owns the credits of accounts while a world runs."""

    def __init__(self, entitlement: Float[np.ndarray, " account"], alpha: float):
        """entitlement: parts of one whole; alpha: the part of it that is guaranteed."""
        if not 0 <= alpha <= 1:
            raise BadInput(f"alpha is {alpha}: the guaranteed part lies between 0 and 1.")
        self.fair = split(SLICES, entitlement)
        self.guaranteed = np.floor(alpha * self.fair).astype(np.int64)
        self.credits = BEGIN * self.fair

    def play(self, tasks: Tasks, capacity: Float[np.ndarray, "pool resource"]) -> Float[np.ndarray, " task"]:
        """Give the share of its demand that each task gets in this round, and move the credits: each account's tasks alike."""
        size = dominant(tasks.demand, capacity) * tasks.cap
        wanted = np.bincount(tasks.account, size, minlength=len(self.credits)) * SLICES
        got = self._lend(np.minimum(np.ceil(wanted * (1 - 1e-12)), SLICES).astype(np.int64))
        part = np.divide(got, wanted, out=np.zeros(len(got)), where=wanted > 0)
        return tasks.cap * np.minimum(1.0, part[tasks.account])

    def _lend(self, wanted: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        credits, own = self.credits + self.fair - self.guaranteed, np.minimum(wanted, self.guaranteed)
        donated, more = self.guaranteed - own, wanted - own
        shared = SLICES - int(self.guaranteed.sum())
        can = np.minimum(more, credits)
        lent = min(int(donated.sum()) + shared, int(can.sum()))
        borrowed = highest(lent, credits, can, self.fair)
        given = highest(min(lent, int(donated.sum())), -credits, donated, self.fair)
        self.credits = credits - borrowed + given
        return own + borrowed


def highest(
    total: int,
    height: Int[np.ndarray, " account"],
    room: Int[np.ndarray, " account"],
    weight: Int[np.ndarray, " account"],
) -> Int[np.ndarray, " account"]:
    """Take units one by one, each from the account of most height / weight that has room, which it lowers by one; ties: the first."""
    weight = np.maximum(weight, 1)
    above = lambda level: np.clip(np.ceil(height - level * weight), 0, room).astype(np.int64)  # noqa: E731
    low, high = float(((height - room) / weight).min(initial=0.0)) - 1, float((height / weight).max(initial=0.0)) + 1
    for _ in range(80):
        if high - low <= TIE:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if int(above(middle).sum()) <= total else (middle, high)
    out = above(high)
    return out + pour(total - int(out.sum()), np.ones(len(out)), above(low) - out)
