"""Accounts inside accounts: a guild has teams, a team has worlds.

    entitlement_a = entitlement_parent * weight_a / (sum of weight over its siblings)       at the top, of the whole
    bid_i        <- bid_i * min(1, limit_a / sum of bids below a)                           at every a above i's account
    guarantee       what a child can't use of its own goes to its siblings first, then up, then on sale

Only accounts without children have tasks and are entitled in their own name: entitlements of the leaves come to 1, so charges,
dividends and guarantees are settled between leaves and nothing is counted twice. An inner account may hold credits (a guild's
chest) and limits what is spent below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput
from apportion.settlement.whole import by_account, pour, proportion


@dataclass(frozen=True, slots=True)
class Tree:
    """Whose child each account is. Parents stand before their children."""

    parent: Int[np.ndarray, " account"]  # -1: at the top
    weight: Float[np.ndarray, " account"]  # among its siblings

    def __post_init__(self):
        late = np.flatnonzero(self.parent >= np.arange(len(self.parent)))
        if len(late):
            raise BadInput(f"account {late[0]} stands before its parent {self.parent[late[0]]}: list parents first.")
        if not (np.isfinite(self.weight) & (self.weight >= 0)).all():
            raise BadInput("weights among siblings are finite and at least 0.")

    @staticmethod
    def of(parent: Int[np.ndarray, " account"], weight: Float[np.ndarray, " account"]) -> Tree | None:
        """Give the tree of these accounts; None where none of them nests."""
        return Tree(parent, weight) if (parent >= 0).any() else None

    @staticmethod
    def flat(accounts: int) -> Tree:
        """Accounts that do not nest."""
        return Tree(np.full(accounts, -1), np.ones(accounts))

    @property
    def leaf(self) -> np.ndarray:
        """Whether an account has no children."""
        leaf = np.ones(len(self.parent), bool)
        leaf[self.parent[self.parent >= 0]] = False
        return leaf

    @property
    def entitlement(self) -> Float[np.ndarray, " account"]:
        """Parts of the whole; inner accounts are entitled through their leaves and have 0."""
        out = np.zeros(len(self.parent))
        for node, children in self._families():
            weight = self.weight[children]
            out[children] = (out[node] if node >= 0 else 1.0) * weight / max(weight.sum(), 1e-300)
        return np.where(self.leaf, out, 0.0)

    def above(self, account: int) -> list[int]:
        """Give an account and those that it stands inside, the innermost first."""
        out = [account]
        while (account := int(self.parent[account])) >= 0:
            out.append(account)
        return out

    def below(self, amount: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        """Add up whole amounts over each account and all below it."""
        out, depth = amount.copy(), self._depth
        for level in range(depth.max(initial=0), 0, -1):
            here = depth == level
            np.add.at(out, self.parent[here], out[here])
        return out

    def divide(self, total: int, need: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        """Divide a whole total down the tree by weight, no leaf getting more than it needs.

        What a child can't use goes to its siblings first, so an account's children together get less than their part only
        if they need no more. (Weighted max-min at each level; what nobody needs is left over.)
        """
        wanted, out = self.below(np.where(self.leaf, need, 0)), np.zeros(len(need), np.int64)
        for node, children in self._families():
            out[children] = pour(int(out[node]) if node >= 0 else total, self.weight[children], wanted[children])
        return np.where(self.leaf, out, 0)

    def lend(self, own: Int[np.ndarray, " account"], need: Int[np.ndarray, " account"]) -> Int[np.ndarray, " account"]:
        """What each leaf may use of a guarantee: its own as far as it needs it, and what its siblings do not need of theirs.

        At every level a child has what it needs of its own before any sibling borrows, and what is left over is divided by
        weight. What a family at the top does not need is for sale.
        """
        whole, wanted = self.below(np.where(self.leaf, own, 0)), self.below(np.where(self.leaf, need, 0))
        out = np.minimum(whole, wanted)
        for node, children in self._families():
            spare = int(out[node] - out[children].sum()) if node >= 0 else 0
            if spare:
                out[children] += pour(spare, self.weight[children], wanted[children] - out[children])
        return np.where(self.leaf, out, 0)

    def left(
        self, guarantee: Int[np.ndarray, " account"], taken: Int[np.ndarray, " account"]
    ) -> Int[np.ndarray, " account"]:
        """What each leaf leaves of its guarantee to others than its siblings: what it does not take, less what they do.

        At every level, what a family took beyond its members' own is borne by those who left something, pro rata.
        """
        whole, used = self.below(guarantee), self.below(taken)
        out = np.zeros(len(guarantee), np.int64)
        for node, children in self._families():
            spare = np.maximum(0, whole[children] - used[children])
            most = int(spare.sum()) if node < 0 else int(out[node])
            out[children] = spare if most >= spare.sum() else _pro_rata(most, spare)
        return np.where(self.leaf, out, 0)

    def shrink(
        self, account: Int[np.ndarray, " task"], bid: Int[np.ndarray, " task"], limit: Int[np.ndarray, " account"]
    ) -> Int[np.ndarray, " task"]:
        """Shrink bids, all below an account alike, until no account's tasks spend more than its limit; rounded down."""
        bid = bid.copy()
        for at, here in self.upwards(account):  # an account sees what its children left
            total, most = by_account(at, bid[here], len(limit))[at], limit[at]
            bid[here] = np.where(total > most, proportion(bid[here], most, total), bid[here])
        return bid

    def upwards(
        self, account: Int[np.ndarray, " task"]
    ) -> Iterator[tuple[Int[np.ndarray, " here"], Int[np.ndarray, " here"]]]:
        """Go through the levels, deepest first: the account of that level above some tasks, and which tasks they are."""
        at, depth = account.copy(), self._depth
        for level in range(depth.max(initial=0), -1, -1):
            here = np.flatnonzero(depth[at] == level)
            yield at[here], here
            at[here] = np.maximum(0, self.parent[at[here]])  # at the top this is the last level

    @property
    def _depth(self) -> Int[np.ndarray, " account"]:
        """How many accounts stand above each."""
        out, at = np.zeros(len(self.parent), np.int64), self.parent
        while (at >= 0).any():
            out += at >= 0
            at = np.where(at >= 0, self.parent[at], -1)
        return out

    def _families(self) -> Iterator[tuple[int, Int[np.ndarray, " child"]]]:
        """Give each account that has children with them, parents before children; -1 is the whole."""
        order = np.argsort(self.parent, kind="stable")
        nodes, first = np.unique(self.parent[order], return_index=True)
        yield from zip(nodes.tolist(), np.split(order, first[1:]), strict=True)


def _pro_rata(total: int, spare: Int[np.ndarray, " child"]) -> Int[np.ndarray, " child"]:
    """Divide by what there is to give, never more than that: rounding's rest goes to the first that have it."""
    out = proportion(spare, total, int(spare.sum()))
    out[np.flatnonzero(spare > out)[: total - int(out.sum())]] += 1
    return out
