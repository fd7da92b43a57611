"""What a round leaves behind: what was delivered, who paid, and the whole of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload, runtime_checkable

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

    def by_task(self, market: Market) -> Float[np.ndarray, "task resource"]:
        """What each task was delivered, in base units; nan where any part of it was not measured."""
        known = np.where(self.delivered < 0, np.nan, self.delivered)
        return market.per_task(known)


POSTING_KINDS = ("charge", "floor", "donor", "dividend", "overflow", "transfer", "mint", "burn")  # the last three: acts


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a round's double entry: credits that reach (+) or leave (-) an account."""

    account: int
    kind: str  # one of POSTING_KINDS
    amount: int  # micro-credits
    task: int = -1  # row of the task it is about; -1: none


@dataclass(frozen=True, slots=True, eq=False)
class Postings(Sequence[Posting]):
    """Lines of a double entry, a column per field; read one by one they are Posting."""

    account: Int[np.ndarray, " line"]
    kind: Int[np.ndarray, " line"]  # place in POSTING_KINDS
    amount: Int[np.ndarray, " line"]  # micro-credits
    task: Int[np.ndarray, " line"]  # -1: none

    @staticmethod
    def of(*lines: Posting) -> Postings:
        """Make them of single lines."""
        rows = [(p.account, POSTING_KINDS.index(p.kind), p.amount, p.task) for p in lines]
        return Postings(*np.array(rows, np.int64).reshape(-1, 4).T)

    def net(self, accounts: int) -> Int[np.ndarray, " account"]:
        """What the lines do to each account, in micro-credits."""
        out = np.zeros(accounts, np.int64)
        np.add.at(out, self.account, self.amount)
        return out

    def __len__(self) -> int:
        return len(self.amount)

    def __iter__(self) -> Iterator[Posting]:
        columns = (self.account.tolist(), self.kind.tolist(), self.amount.tolist(), self.task.tolist())
        for account, kind, amount, task in zip(*columns, strict=True):
            yield Posting(account, POSTING_KINDS[kind], amount, task)

    @overload
    def __getitem__(self, k: int) -> Posting: ...
    @overload
    def __getitem__(self, k: slice) -> Postings: ...
    def __getitem__(self, k: int | slice) -> Posting | Postings:
        if isinstance(k, slice):
            return Postings(self.account[k], self.kind[k], self.amount[k], self.task[k])
        return Posting(int(self.account[k]), POSTING_KINDS[self.kind[k]], int(self.amount[k]), int(self.task[k]))

    def __eq__(self, other: object) -> bool:
        columns = ("account", "kind", "amount", "task")
        return isinstance(other, Postings) and all(np.array_equal(getattr(self, c), getattr(other, c)) for c in columns)


@dataclass(frozen=True, slots=True)
class Bills:
    """Who pays and who is paid for one round; amounts sum to 0."""

    postings: Postings
    paid: Int[np.ndarray, " task"]  # micro-credits charged to the task's own account
    sponsored: Int[np.ndarray, " task"]  # what its floor added, paid by the sponsor
    waived: Int[np.ndarray, " task"]  # what its floor added and nobody could pay


@runtime_checkable
class Played(Protocol):
    """What a round tells, just played or read from the log: one that was aborted has no bills, perhaps no outcome either
    and no allocation; `balance` (micro-credits, after the bills) is None while it is open."""

    number: int
    tasks: Tasks
    pools: Pools
    market: Market
    allocation: Allocation | None
    outcome: Outcome | None
    bills: Bills | None
    balance: Int[np.ndarray, " account"] | None


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
