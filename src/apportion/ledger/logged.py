"""What a log says, as it is read: its world, its rounds, the money between them, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Bills, Outcome, Postings
from apportion.ledger.canonical import Json
from apportion.ledger.numbers import to_real


@runtime_checkable
class Store(Protocol):
    """Anything that entries and their tables can be read from."""

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the exact bytes of entries, in order."""
        ...

    def blob(self, digest: str) -> bytes:
        """Give a table by its SHA-256."""
        ...


# By account, over a period: its rounds, micro-credits, and base units times rounds by resource; -1: no bound.
Limits = tuple[Int[np.ndarray, " account"], Int[np.ndarray, " account"], Int[np.ndarray, "account resource"]]


@dataclass(frozen=True, slots=True)
class Genesis:
    """What a log says of its world before the first round."""

    at: str
    world: str
    digest: str
    resources: tuple[str, ...]
    accounts: tuple[str, ...]
    entitlement: Float[np.ndarray, " account"]
    parent: Int[np.ndarray, " account"]  # row of the account that each stands inside; -1: none
    share: Float[np.ndarray, " account"]  # among its siblings
    budgets: Limits | None  # None where no account has one
    balance: Int[np.ndarray, " account"]  # micro-credits
    alpha: float
    kappa: float
    supply: int  # micro-credits
    credits_per_round: int  # micro-credits
    policy: str
    seed: int
    engine: str
    round_seconds: float
    settings: dict[str, str]

    @property
    def half_life(self) -> float | None:
        """Rounds after which past use counts half; None where none is stated."""
        return to_real(self.settings["half_life"]) if "half_life" in self.settings else None


@dataclass(slots=True)
class LoggedRound:
    """One round as far as it is written; what is not written yet is None."""

    number: int
    at: str
    tasks: Tasks
    pools: Pools
    market: Market
    balance_before: Int[np.ndarray, " account"]
    broken: tuple[dict[str, Json], ...] = ()  # floors that could not be kept, as written
    policy: str = ""
    allocation: Allocation | None = None
    outcome: Outcome | None = None
    bills: Bills | None = None
    balance: Int[np.ndarray, " account"] | None = None
    aborted: str | None = None  # why
    entries: dict[str, int] = field(default_factory=dict)  # where each of its entries stands

    @property
    def closed(self) -> bool:
        return self.bills is not None or self.aborted is not None


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money that moved, was made or was burnt between two rounds, by an operator's logged act."""

    why: str
    postings: Postings
    balance: Int[np.ndarray, " account"]  # micro-credits, after it
    supply: int  # micro-credits, after it


@dataclass(frozen=True, slots=True)
class State:
    """Where a log stands: all that going on with it takes."""

    genesis: Genesis
    balance: Int[np.ndarray, " account"]  # micro-credits
    number: int  # of the next round
    open: LoggedRound | None  # a round that has neither bills nor `aborted`
    size: int  # entries
