"""What an operator does to accounts, as data: it is logged first and performed after, and a log replays it.

    join   a new account with its entitlement (everybody else's shrinks alike) and freshly minted credits
    leave  its entitlement returns to the others, what it holds is burned; its row stays, so that rows never change meaning
           where accounts nest: "others" are those beside it inside its parent, and all that stand inside it leave with it
    mint, burn, transfer   credits made, destroyed, or given to another account

These are the only ways in which the supply changes. Their lines are what a log's transfer holds: those of kind transfer come
to 0; what is minted or burned has the supply as its other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput, Overdrawn
from apportion.core.round import Posting
from apportion.settlement.tree import Tree

KINDS = ("join", "leave", "mint", "burn", "transfer")


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that an operator did. Names, not rows, so that it reads alike wherever it is replayed."""

    what: str  # one of KINDS
    account: str  # of transfer: who gives
    amount: int = 0  # micro-credits; of leave: all it holds, whatever is said here
    taker: str = ""  # of transfer
    entitlement: float = 0.0  # of join: part of the whole, afterwards; of what is its parent's, if it has one
    parent: str = ""  # of join: the account that it stands inside

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
        if self.parent:
            out["parent"] = self.parent
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
            details.get("parent", ""),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Names, entitlements, balances, and whose child each is: what acts change."""

    name: tuple[str, ...]
    entitlement: Float[np.ndarray, " account"]
    balance: Int[np.ndarray, " account"]
    tree: Tree | None = None  # where accounts nest; then entitlement is the tree's

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
    if act.what == "transfer":
        lines = (Posting(a, "transfer", -act.amount), Posting(standing.row(act.taker), "transfer", act.amount))
    elif act.what == "leave":
        gone = [b for b in range(len(standing.name)) if a in (standing.tree.above(b) if standing.tree else [b])]
        lines = tuple(Posting(b, "burn", -int(standing.balance[b])) for b in gone)
        standing = _without(standing, a)
    else:
        lines = (Posting(a, "burn", -act.amount) if act.what == "burn" else Posting(a, "mint", act.amount),)
    lines = tuple(line for line in lines if line.amount)
    return replace(standing, balance=moved(standing, lines)), lines


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
    """Let an account in, beside those of its parent: all of theirs shrink alike."""
    parent = standing.row(act.parent) if act.parent else -1
    tree = standing.tree or Tree(np.full(len(standing.name), -1), standing.entitlement)
    if parent >= 0 and tree.leaf[parent]:
        raise BadInput(
            f"account {act.parent!r} has nobody inside, so it may have tasks: let {act.account!r} join beside it."
        )
    if act.account not in standing.name:
        tree = Tree(np.append(tree.parent, parent), np.append(tree.weight, 0.0))
        nothing = np.append(standing.entitlement, 0.0), np.append(standing.balance, 0)
        standing = Standing((*standing.name, act.account), *nothing, standing.tree)
    a = standing.row(act.account)
    if tree.weight[a] or standing.balance[a] or tree.parent[a] != parent:
        raise BadInput(f"account {act.account!r} is already here: mint or transfer instead.")
    beside = tree.parent == parent
    weight = np.where(beside, tree.weight * (1 - act.entitlement), tree.weight)
    weight[a] = act.entitlement * (float(tree.weight[beside].sum()) if standing.tree else 1.0)
    return _with(standing, Tree(tree.parent, weight))


def _without(standing: Standing, a: int) -> Standing:
    """Let an account go: those beside it share its part as they share theirs."""
    tree = standing.tree or Tree(np.full(len(standing.name), -1), standing.entitlement)
    beside, weight = tree.parent == tree.parent[a], tree.weight.copy()
    weight[a] = 0.0
    if not (left := weight[beside].sum()) > 0:
        what = f"inside {standing.name[tree.parent[a]]!r}" if tree.parent[a] >= 0 else "entitled to anything"
        raise BadInput(f"account {standing.name[a]!r} is the last one {what}: let another join first.")
    return _with(standing, Tree(tree.parent, np.where(beside, weight * (tree.weight[beside].sum() / left), weight)))


def _with(standing: Standing, tree: Tree) -> Standing:
    """Give the same accounts with other weights; where they do not nest, these are their entitlements."""
    if standing.tree is None:
        return replace(standing, entitlement=tree.weight)
    return replace(standing, entitlement=tree.entitlement, tree=tree)
