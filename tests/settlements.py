"""One settlement after another on the same accounts, all of it drawn: what is lost, and who falls lowest.

python tests/settlements.py [how many] [seed]      without the type checks of the test run, which cost ten times the sums
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from scenes import draw

from apportion.core.allocation import Allocation
from apportion.core.units import MICRO
from apportion.settlement.settle import settle
from apportion.settlement.tree import Tree

ACCOUNTS = 5


@dataclass(frozen=True)
class Tally:
    """What some settlements did to five accounts."""

    settlements: int
    drift: int  # micro-credits made or lost in all
    lowest: int  # the least balance anyone ever had after one, in micro-credits
    moved: int  # micro-credits that changed hands


def settled(count: int, seed: int = 0, scenes: int = 500) -> Tally:
    """Settle drawn rounds, bids beyond balances among them, each from the balances that the last one left."""
    rng = np.random.default_rng(seed)
    rounds, k = [], seed * 10**6
    while len(rounds) < scenes:
        scene = draw(k, bold=bool(k % 2))
        k += 1
        if len(scene.balance) == ACCOUNTS:
            rounds.append(scene)
    trees = [_tree(rng) for _ in range(20)]
    balance = split = rng.integers(0, 20 * MICRO, ACCOUNTS)
    supply, lowest, moved, drift = int(split.sum()), 0, 0, 0
    for scene, at, factor, alpha, kappa in zip(
        rng.integers(0, scenes, count).tolist(),
        rng.integers(-20, 20, count).tolist(),
        np.exp(rng.normal(0, 2, count)).tolist(),
        rng.random(count).tolist(),
        rng.uniform(1, 4, count).tolist(),
        strict=True,
    ):
        round, tree = rounds[scene], trees[at] if at >= 0 else None
        allocation: Allocation = replace(round.allocation, price=np.minimum(round.allocation.price * factor, 1e3))
        entitlement = tree.entitlement if tree else round.entitlement
        bills = settle(round.tasks, allocation, round.outcome, balance, entitlement, alpha, kappa, supply, tree)
        change = bills.postings.net(ACCOUNTS)
        balance = balance + change
        drift += abs(int(change.sum()))
        lowest = min(lowest, int(balance.min()))
        moved += int(np.abs(change).sum()) // 2
    return Tally(count, drift + abs(int(balance.sum()) - supply), lowest, moved)


def _tree(rng: np.random.Generator) -> Tree:
    parent = np.array([rng.integers(-1, k) if k else -1 for k in range(ACCOUNTS)])
    return Tree(parent, rng.integers(1, 5, ACCOUNTS).astype(float))


if __name__ == "__main__":
    print(settled(*map(int, sys.argv[1:3])))
