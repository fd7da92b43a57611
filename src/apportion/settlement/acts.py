"""What an operator does to accounts, as data: it is logged first and performed after, and a log replays it.

    join   a new account with its entitlement (everybody else's shrinks alike) and freshly minted credits
    leave  its entitlement returns to the others, what it holds is burned; its row stays, so that rows never change meaning
    mint, burn, transfer   credits made, destroyed, or given to another account

These are the only ways in which the supply changes. Their lines are what a log's transfer holds: those of kind transfer come
to 0; what is minted or burned has the supply as its other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput, Overdrawn
from apportion.core.round import Posting

KINDS = ("join", "leave", "mint", "burn", "transfer")


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that an operator did. Names, not rows, so that it reads alike wherever it is replayed."""

    what: str  # one of KINDS
    account: str  # of transfer: who gives
    amount: int = 0  # micro-credits; of leave: all it holds, whatever is said here
    taker: str = ""  # of transfer
    entitlement: float = 0.0  # of join: part of the whole, afterwards

    def __post_init__(self):
        if self.what not in KINDS:
            raise BadInput(f"an operator can {', '.join(KINDS)}; {self.what!r} is none of these.")
        if self.amount < 0:
            raise BadInput(f"{self.what} of {self.amount} micro-credits: at least 0.")
        if not 0 <= self.entitlement < 1:
            raise BadInput(f"an entitlement of {self.entitlement}: at least 0, and below 1 so that others keep some.")

    @property
    def details(self) -> dict[str, str]:
        """What a log writes down; `read` takes it back, to the last bit."""
        out = {"account": self.account, "amount": str(self.amount)}
        if self.what == "transfer":
            out["taker"] = self.taker
        if self.what == "join":
            out["entitlement"] = repr(self.entitlement)
        return out

    @staticmethod
    def read(what: str, details: Mapping[str, str]) -> Act:
        """Take an act from a log."""
        return Act(
            what,
            details["account"],
            int(details["amount"]),
            details.get("taker", ""),
            float(details.get("entitlement", 0)),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Names, entitlements and balances: what acts change."""

    name: tuple[str, ...]
    entitlement: Float[np.ndarray, " account"]
    balance: Int[np.ndarray, " account"]

    def row(self, name: str) -> int:
        """Find an account by name."""
        if name not in self.name:
            raise BadInput(f"there is no account {name!r}; accounts are {', '.join(map(repr, self.name))}.")
        return self.name.index(name)


def after(standing: Standing, act: Act) -> tuple[Standing, tuple[Posting, ...]]:
    """Give what an act makes of the accounts, and its lines; nothing is changed."""
    if act.what == "join":
        standing = _joined(standing, act)
    a = standing.row(act.account)
    amount = int(standing.balance[a]) if act.what == "leave" else act.amount
    if act.what == "transfer":
        lines = (Posting(a, "transfer", -amount), Posting(standing.row(act.taker), "transfer", amount))
    elif act.what in ("join", "mint"):
        lines = (Posting(a, "mint", amount),)
    else:
        lines = (Posting(a, "burn", -amount),)
    lines = lines if amount else ()
    entitlement = _without(standing, a) if act.what == "leave" else standing.entitlement
    return Standing(standing.name, entitlement, moved(standing, lines)), lines


def moved(standing: Standing, lines: Sequence[Posting]) -> Int[np.ndarray, " account"]:
    """Give the balances after these lines, or raise Overdrawn."""
    balance = standing.balance.copy()
    for line in lines:
        balance[line.account] += line.amount
    if (balance < 0).any():
        a = int(np.argmin(balance))
        owes = int(standing.balance[a] - balance[a])
        raise Overdrawn(
            f"account {standing.name[a]!r} holds {standing.balance[a]} micro-credits and owes {owes}; nothing was moved."
        )
    return balance


def _joined(standing: Standing, act: Act) -> Standing:
    others = standing.entitlement * (1 - act.entitlement)
    if act.account not in standing.name:
        return Standing(
            (*standing.name, act.account), np.append(others, act.entitlement), np.append(standing.balance, 0)
        )
    a = standing.row(act.account)
    if standing.entitlement[a] or standing.balance[a]:
        raise BadInput(f"account {act.account!r} is already here: mint or transfer instead.")
    others[a] = act.entitlement
    return Standing(standing.name, others, standing.balance)


def _without(standing: Standing, a: int) -> Float[np.ndarray, " account"]:
    """Entitlements when this account is gone: the others share its part as they share theirs."""
    others = standing.entitlement.copy()
    others[a] = 0.0
    if not others.sum() > 0:
        raise BadInput(f"account {standing.name[a]!r} is the last one entitled to anything: let another join first.")
    return others * (standing.entitlement.sum() / others.sum())
