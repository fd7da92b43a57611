"""What was used lately, so that who used little gets more now: the `mean` and `eta` of a market.

    mean <- (1 - eta) mean + eta * use,     eta = 1 - 2^(-1/H),  H rounds of half-life

Use is counted in parts of all capacity (of a task's dominant resource), because a share of ten cores now and of one core
yesterday don't compare; a market wants shares of today's demand, so use is divided by what is wanted today. It belongs to
an account, not to a task or a kind of task: what is split, renamed, restarted or run by turns keeps its past. (Kept per kind, an
account that ran one load as two kinds by turns had 12 % more use of it: decision 0010.) An account that comes starts where its
entitlement would put it, never at 0 (else everybody would be new every day), and is counted from there, be it idle: begun
at its first wish instead, who wants rarely got a tenth less.

Memory is of use and not of money: spending a fraction of the balance remembers too, and was measured to even out far less.
It is a float and forgets; it moves nothing, and the market that it shaped is logged with it. Rounds that were aborted don't
count. Without a half-life nothing is remembered: eta is 1 and every mean is 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Tasks


class Memory:
    """Mean use per account. Owns it while a world runs; a crash forgets nothing that a replay can't count again."""

    def __init__(
        self,
        half_life: float | None,
        entitlement: Float[np.ndarray, " account"],
        of: Literal["bought", "total"] = "total",
    ):
        """half_life: rounds, None for none; of: what counts as use (total evens out far better: decision 0010)."""
        if half_life is not None and not half_life > 0:
            raise BadInput(f"half_life is {half_life} rounds: above 0, or leave it out for no memory.")
        self.half_life = half_life
        self.eta = 1.0 if half_life is None else float(-np.expm1(-np.log(2) / half_life))
        self.entitlement, self.of = np.array(entitlement, float), of
        self._use = self.entitlement.copy()  # of an account that is not known yet: where it will begin
        self._known = np.zeros(len(self.entitlement), bool)

    def mean(self, tasks: Tasks, capacity: Float[np.ndarray, "pool resource"]) -> Float[np.ndarray, " task"]:
        """Give what each task used lately, as a share of what it wants now; 0 for one that wants nothing."""
        if self.half_life is None:
            return np.zeros(len(tasks.demand))
        size, accounts = dominant(tasks.demand, capacity), len(self._use)
        wanted = np.bincount(tasks.account, size, minlength=accounts)
        mean = np.divide(self._use, wanted, out=np.zeros(accounts), where=wanted > 0)
        return np.where(size > 0, mean[tasks.account], 0.0)

    def learn(self, tasks: Tasks, allocation: Allocation) -> None:
        """Remember what an allocation gave; who has no task in it used nothing."""
        if self.half_life is None:
            return
        market = allocation.market
        share = allocation.share - market.free if self.of == "bought" else allocation.share
        use = market.per_task(share) * dominant(tasks.demand, market.capacity)
        self._known[tasks.account] = True
        now = np.bincount(tasks.account, use, minlength=len(self._use))
        self._use = np.where(self._known, (1 - self.eta) * self._use + self.eta * now, self._use)


def dominant(
    demand: Float[np.ndarray, "task resource"], capacity: Float[np.ndarray, "pool resource"]
) -> Float[np.ndarray, " task"]:
    """Give each task's demand as a part of all capacity, of the resource of which it wants the largest part."""
    total = capacity.sum(axis=0)
    parts = np.divide(demand, total, out=np.zeros_like(demand), where=total > 0)
    return parts.max(axis=1, initial=0.0)
