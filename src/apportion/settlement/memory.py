"""What was used lately, so that who used little gets more now: the `mean` and `eta` of a market.

    mean <- (1 - eta) mean + eta * use,     eta = 1 - 2^(-1/H),  H rounds of half-life

Use is counted in parts of all capacity (of a task's dominant resource), because a share of ten cores now and of one core
yesterday don't compare; a market wants shares of today's demand, so use is divided by what is wanted today. It belongs to
an account and a kind of task, not to a task: a task that is split, renamed or restarted keeps its past, and one that is new
starts where its account stands, or where its entitlement would put it, never at 0 (else everybody would be new every day).

Memory is of use and not of money: spending a fraction of the balance remembers too, and was measured to even out far less.
It is a float and forgets; it moves nothing, and the market that it shaped is logged with it. Rounds that were aborted don't
count. Without a half-life nothing is remembered: eta is 1 and every mean is 0.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from jaxtyping import Float

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Tasks

Key = tuple[int, str]  # account and kind


class Memory:
    """Mean use per account and kind. Owns it while a world runs; a crash forgets nothing that a replay can't count again."""

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
        self._use: dict[Key, float] = {}

    def mean(self, tasks: Tasks, capacity: Float[np.ndarray, "pool resource"]) -> Float[np.ndarray, " task"]:
        """Give what each task used lately, as a share of what it wants now; 0 for one that wants nothing."""
        if self.half_life is None:
            return np.zeros(len(tasks.demand))
        return self._mean(tasks, dominant(tasks.demand, capacity))

    def _mean(self, tasks: Tasks, size: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
        keys, wanted = _keys(tasks), dict[Key, float]()
        known = np.array([key in self._use for key in keys], bool)
        for key, s in zip(keys, size.tolist(), strict=True):
            wanted[key] = wanted.get(key, 0.0) + s
        used = np.array([self._use.get(key, 0.0) for key in keys])
        total = np.array([wanted[key] for key in keys])

        accounts = len(self.entitlement)
        before = np.zeros(accounts)  # use of the account's kinds that are here and were here before
        for key in dict.fromkeys(keys):  # in their order: the same rounds give the same bytes
            before[key[0]] += self._use.get(key, 0.0)
        familiar = np.bincount(tasks.account, np.where(known, size, 0.0), minlength=accounts)
        everything = np.bincount(tasks.account, size, minlength=accounts)
        at_entitlement = np.divide(self.entitlement, everything, out=np.zeros(accounts), where=everything > 0)
        like_its_account = np.divide(before, familiar, out=at_entitlement, where=familiar > 0)
        mine = np.divide(used, total, out=np.zeros(len(keys)), where=total > 0)
        return np.where(size > 0, np.where(known, mine, like_its_account[tasks.account]), 0.0)

    def learn(self, tasks: Tasks, allocation: Allocation) -> None:
        """Remember what an allocation gave."""
        if self.half_life is None:
            return
        market = allocation.market
        size = dominant(tasks.demand, market.capacity)
        share = allocation.share - market.free if self.of == "bought" else allocation.share
        use = market.per_task(share) * size
        start = self._start(tasks, size)
        now = dict.fromkeys([*self._use, *start], 0.0)  # who is away used nothing
        for key, amount in zip(_keys(tasks), use.tolist(), strict=True):
            if key in now:
                now[key] += amount
        for key, amount in now.items():
            past = self._use.get(key, start.get(key, 0.0))
            self._use[key] = (1 - self.eta) * past + self.eta * amount

    def _start(self, tasks: Tasks, size: Float[np.ndarray, " task"]) -> dict[Key, float]:
        """What new kinds begin with, in parts of all capacity.

        An account that comes begins at its entitlement and is counted from there, be it idle: begun at its first wish instead,
        who wants rarely got a tenth less (decision 0010). A new kind of an account that is known begins when it first wants
        something: else an account could keep idle kinds in store.
        """
        out: dict[Key, float] = {}
        known = {account for account, _ in self._use}
        awake = np.bincount(tasks.account, size, minlength=len(self.entitlement)) > 0
        kinds = Counter(account for account, _ in dict.fromkeys(_keys(tasks)))
        for i, (key, share) in enumerate(zip(_keys(tasks), self._mean(tasks, size).tolist(), strict=True)):
            if key in self._use:
                continue
            if size[i] > 0:
                out[key] = out.get(key, 0.0) + share * float(size[i])
            elif key[0] not in known and not awake[key[0]]:
                out[key] = float(self.entitlement[key[0]]) / kinds[key[0]]
        return out


def _keys(tasks: Tasks) -> list[Key]:
    return list(zip(tasks.account.tolist(), tasks.kind, strict=True))


def dominant(
    demand: Float[np.ndarray, "task resource"], capacity: Float[np.ndarray, "pool resource"]
) -> Float[np.ndarray, " task"]:
    """Give each task's demand as a part of all capacity, of the resource of which it wants the largest part."""
    total = capacity.sum(axis=0)
    parts = np.divide(demand, total, out=np.zeros_like(demand), where=total > 0)
    return parts.max(axis=1, initial=0.0)
