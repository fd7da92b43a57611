"""Reservations: pay now for a floor later. What is paid lies in an account of its own until it is used or given back.

A reservation is a floor with a sponsor, and the sponsor is the reservation's own purse `escrow/NAME`: opened without entitlement
(so it never overflows, earns nothing, and bids nothing), filled from the payer when it is made, charged round by round
for what the floor adds beyond the task's bid, emptied back to the payer before the first round after its last. Nothing else in a round knows about it, and
no credit is ever anywhere but in an account. What a floor costs beyond what was paid is waived, as any floor's: the price was
promised when it was quoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from apportion.core.errors import BadInput
from apportion.core.market import Tasks
from apportion.core.units import PRICE_PER_MICRO, SHARE
from apportion.settlement.acts import Act


@dataclass(frozen=True, slots=True)
class Reservation:
    """A floor for one task over some rounds."""

    name: str
    payer: str  # account
    task: str
    amount: Int[np.ndarray, " resource"]  # base units that the floor holds, in every round
    first: int
    last: int  # rounds, both included
    paid: int  # micro-credits, in advance

    def __post_init__(self):
        if not 0 <= self.first <= self.last:
            raise BadInput(f"reservation {self.name!r} is for rounds {self.first} to {self.last}: first comes first.")

    @property
    def purse(self) -> str:
        """The account that holds what was paid."""
        return f"escrow/{self.name}"

    @property
    def opening(self) -> tuple[Act, ...]:
        """What puts the payment into escrow."""
        return Act("join", self.purse), Act("transfer", self.payer, self.paid, self.purse)

    def closing(self, left: int) -> tuple[Act, ...]:
        """What gives the rest back and closes the purse."""
        return self.refund(left), Act("leave", self.purse)

    def refund(self, left: int) -> Act:
        """What gives the rest back."""
        return Act("transfer", self.purse, left, self.payer)


def quote(price: Int[np.ndarray, " resource"], amount: Int[np.ndarray, " resource"], rounds: int) -> int:
    """Give the micro-credits that an amount would cost at these prices over some rounds, rounded up."""
    a_round = sum(int(p) * int(q) for p, q in zip(price, amount, strict=True))
    return -(-a_round * rounds // PRICE_PER_MICRO)


def reserved(tasks: Tasks, number: int, reservations: Sequence[Reservation], accounts: Sequence[str]) -> Tasks:
    """Give the tasks of a round with the floors that were reserved for it; accounts: their names, in rows.

    A reserved floor is in absolute amounts; it is the share of today's demand that holds the reserved amount of every resource,
    rounded up to whole parts, at most the cap. One that a task has anyway, and is no lower, stays and keeps its sponsor.
    """
    floor, sponsor, rows = tasks.floor.copy(), tasks.sponsor.copy(), {name: i for i, name in enumerate(tasks.name)}
    for one in reservations:
        i = rows.get(one.task)
        if i is None or not one.first <= number <= one.last:
            continue
        if one.purse not in accounts:
            raise BadInput(f"reservation {one.name!r} has no purse {one.purse!r}: perform its opening first.")
        wants = tasks.demand[i] > 0
        share = float((one.amount[wants] / tasks.demand[i, wants]).max(initial=0.0))
        share = min(math.ceil(share * SHARE - 1e-6) / SHARE, float(tasks.cap[i]))
        if share > floor[i]:
            floor[i], sponsor[i] = share, accounts.index(one.purse)
    return replace(tasks, floor=floor, sponsor=sponsor)
