"""What a round leaves behind: what was delivered, who paid, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Pools, Tasks


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the machine did with a decision. A grant is not a delivery."""

    delivered: Int[np.ndarray, "pair resource"]  # whole base units, mean over the round; -1: not measured
    asked: Int[np.ndarray, " task"]  # operations asked of the task; -1: it did not say
    in_time: Int[np.ndarray, " task"]  # of these, finished within the deadline; -1: it did not say
    enforcer: str  # cgroup2, cgroup1, governor, none; sim
    source: tuple[str, ...]  # per resource, where `delivered` comes from; 'unmeasured' where nothing does
    notes: tuple[str, ...] = ()  # restarts, refusals: what an operator should read

    @property
    def experience(self) -> Float[np.ndarray, " task"]:
        """Operations finished in time / operations asked, in [0, 1]; nan where the task did not say."""
        with np.errstate(invalid="ignore", divide="ignore"):
            done = np.where(self.asked > 0, self.in_time / self.asked, 1.0)
        return np.where(self.asked < 0, np.nan, np.clip(done, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a round's double entry: credits that reach (+) or leave (-) an account."""

    account: int
    kind: str  # charge, floor, donor, dividend, overflow
    amount: int  # micro-credits
    task: int = -1  # row of the task it is about; -1: none


@dataclass(frozen=True, slots=True)
class Bills:
    """Who pays and who is paid for one round; amounts sum to 0."""

    postings: tuple[Posting, ...]
    paid: Int[np.ndarray, " task"]  # micro-credits charged to the task's own account
    sponsored: Int[np.ndarray, " task"]  # what its floor added, paid by the sponsor
    waived: Int[np.ndarray, " task"]  # what its floor added and nobody could pay


@dataclass(frozen=True, slots=True)
class Round:
    """One round, played."""

    number: int
    tasks: Tasks
    pools: Pools
    market: Market
    allocation: Allocation
    outcome: Outcome
    bills: Bills
    balance: Int[np.ndarray, " account"]  # micro-credits, after the bills
    stage_ms: dict[str, float] = field(default_factory=dict)  # what each stage took, waiting left out
