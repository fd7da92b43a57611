"""Other people's mechanisms, for comparison only: nothing else here imports this.

Small, slow and by the book: each function says whose rule it is. Karma's credits are not ours: it makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize


def karma(
    demand: Int[np.ndarray, " user"],
    credits: Int[np.ndarray, " user"],
    guaranteed: Int[np.ndarray, " user"],
    shared: int,
    free_credits: int | Int[np.ndarray, " user"],
) -> tuple[Int[np.ndarray, " user"], Int[np.ndarray, " user"]]:
    """Share one quantum's slices; gives what each user gets and its credits afterwards (Vuppalapati et al., OSDI 2023).

    Everybody earns `free_credits`; who leaves guaranteed slices donates them. Slices go one by one to the borrower with
    most credits, which pays one, to the donor with fewest if there is one; a slice of the shared pool pays nobody. Ties
    go to the first user.
    """
    credits, got = credits + free_credits, np.minimum(demand, guaranteed)
    donated, wanted = guaranteed - got, demand - got
    while donated.sum() + shared > 0 and (borrowers := (wanted > 0) & (credits > 0)).any():
        taker = int(np.argmax(np.where(borrowers, credits, -1)))
        if donated.any():
            giver = int(np.argmin(np.where(donated > 0, credits, np.iinfo(np.int64).max)))
            donated[giver] -= 1
            credits[giver] += 1
        else:
            shared -= 1
        got[taker] += 1
        wanted[taker] -= 1
        credits[taker] -= 1
    return got, credits


def asset_fairness(
    capacity: Float[np.ndarray, " resource"], demand: Float[np.ndarray, "user resource"]
) -> Float[np.ndarray, " user"]:
    """Give tasks of each user such that all hold an equal sum of resource fractions, as many as fit.

    Ghodsi et al., NSDI 2011, section 5: the baseline that may give less than an equal split would.
    """
    tasks = 1 / (demand / capacity).sum(axis=1)
    return tasks / ((tasks @ demand) / capacity).max()


def drf_discrete(
    capacity: Float[np.ndarray, " resource"], demand: Float[np.ndarray, "user resource"], first: int = 0
) -> tuple[Int[np.ndarray, " user"], list[int]]:
    """Start whole tasks, always of the user with the smallest dominant share; ends when that one's does not fit.

    Ghodsi et al., NSDI 2011, algorithm 1. Gives tasks and the order of starts; `first` goes first at the tie of nothing.
    """
    dominant = (demand / capacity).max(axis=1)
    tasks, order, used = np.zeros(len(demand), np.int64), [], np.zeros_like(capacity)
    while True:
        share = tasks * dominant
        user = first if not order else int(np.argmin(share))
        if (used + demand[user] > capacity).any():
            return tasks, order
        tasks[user] += 1
        used += demand[user]
        order.append(user)


def kelly(capacity: float, bid: Float[np.ndarray, " user"]) -> tuple[Float[np.ndarray, " user"], float]:
    """Share in proportion to bids; gives amounts and the price (Kelly 1997). Users take the price as it is."""
    price = float(bid.sum() / capacity)
    return bid / price, price


def kelly_nash(capacity: float, slope: Float[np.ndarray, " user"]) -> tuple[Float[np.ndarray, " user"], float, float]:
    """Give amounts, price and efficiency when users of linear value foresee their effect on the price.

    Johari & Tsitsiklis 2004: at the Nash equilibrium slope_i (1 - x_i / capacity) = price for all who get anything, and
    the total value is no less than 3/4 of the best.
    """
    order = np.argsort(-slope)
    for k in range(len(slope), 1, -1):  # the k steepest take part
        active = order[:k]
        price = (k - 1) / (1 / slope[active]).sum()
        if price < slope[active].min():
            break
    amount = np.zeros(len(slope))
    amount[active] = capacity * (1 - price / slope[active])
    return amount, float(price), float(slope @ amount / (slope.max() * capacity))


def proportional_response(
    budget: Float[np.ndarray, " user"],
    supply: Float[np.ndarray, " good"],
    value: Float[np.ndarray, "user good"],
    steps: int,
    *,
    rho: float = 1.0,
    keeps: bool = False,
) -> Float[np.ndarray, "user good"]:
    """Give bids after some steps from an equal split: each user bids in proportion to what each good gave it.

    Wu & Zhang 2007; Zhang 2011: converges to the Fisher market's equilibrium without anyone knowing a price. rho: utility
    is (sum value x^rho)^(1/rho), 0 < rho <= 1. keeps: money that is not bid is a good too, worth 1 (quasi-linear, after
    Cole et al. 2017).
    """
    ways = len(supply) + keeps
    bid = np.repeat(budget[:, None] / ways, ways, axis=1)
    for _ in range(steps):
        goods = bid[:, : len(supply)]
        gave = value * (goods / (goods.sum(axis=0) / supply)) ** rho
        if keeps:
            gave = np.column_stack([gave, bid[:, -1]])
        bid = budget[:, None] * gave / gave.sum(axis=1, keepdims=True)
    return bid[:, : len(supply)]


def hdrf(capacity: Float[np.ndarray, " resource"], tree: Mapping[str, dict]) -> dict[str, int]:
    """Start whole tasks down a tree, at every node for the child with the smallest dominant share by weight.

    Bhattacharya et al., SoCC 2013, section 4. A leaf has `demand_per_task` and `tasks`, an inner node `children`, all a
    `weight`. What a node holds is the sum of its children's, each first scaled down to the least dominant share among
    those that can still start something: so a child that complements its siblings is not held against them.
    """
    tasks: dict[str, int] = {}
    free = capacity.copy()

    def start(children: Mapping[str, dict]) -> bool:
        for name in sorted(children, key=lambda name: _dominant(held(name, children[name]), capacity, children[name])):
            node = children[name]
            if "children" in node:
                if start(node["children"]):
                    return True
            elif can(name, node):
                free[:] -= node["demand_per_task"]
                tasks[name] = tasks.get(name, 0) + 1
                return True
        return False

    def can(name: str, node: dict) -> bool:
        if "children" in node:
            return any(can(child, below) for child, below in node["children"].items())
        return tasks.get(name, 0) < node["tasks"] and bool((np.array(node["demand_per_task"]) <= free).all())

    def held(name: str, node: dict) -> np.ndarray:
        if "children" not in node:
            return tasks.get(name, 0) * np.array(node["demand_per_task"], float)
        each = {child: held(child, below) for child, below in node["children"].items()}
        size = {child: float((each[child] / capacity).max()) for child in each}
        least = min((size[child] for child in each if can(child, node["children"][child])), default=0.0)
        blocked = {child for child in each if not can(child, node["children"][child])}
        return sum(
            (x if child in blocked or not size[child] else x * least / size[child] for child, x in each.items()),
            np.zeros(len(capacity)),
        )

    while start(tree):
        pass
    return tasks


def _dominant(held: np.ndarray, capacity: np.ndarray, node: dict) -> float:
    return float((held / capacity).max()) / node["weight"]


def vickrey_revenue(value: Float[np.ndarray, "sample bidder"], reserve: float = 0.0) -> Float[np.ndarray, " sample"]:
    """Give what one lot earns from each drawn row of truthful bids: the second highest or the reserve (Myerson 1981)."""
    top = np.sort(value, axis=1)[:, ::-1]
    second = np.maximum(reserve, top[:, 1]) if top.shape[1] > 1 else np.full(len(top), reserve)
    return np.where(top[:, 0] >= reserve, second, 0.0)


def menu_revenue(item: float, bundle: float) -> float:
    """Give what a menu earns of one buyer with two values, uniform in [0, 1] each and adding up: either for `item`, both for
    `bundle`, item <= bundle <= 2 item. The buyer's squares: nothing is the corner below all three prices."""
    one = (1 - item) * (bundle - item)  # values this one at least `item`, the other too little to add it
    nothing = item**2 - (2 * item - bundle) ** 2 / 2
    return 2 * one * item + (1 - 2 * one - nothing) * bundle


def best_menu() -> tuple[float, float]:
    """Give the item and bundle price that earn most; no mechanism earns more (Manelli & Vincent 2006)."""
    best = minimize(lambda p: -menu_revenue(*p), [0.5, 0.8], bounds=[(0, 1), (0, 2)], tol=1e-12)
    return float(best.x[0]), float(best.x[1])


def gini(holding: Sequence[float] | np.ndarray, normalised: bool = False) -> float:
    """Give the Gini index of inequality: 0 where all hold alike; normalised, 1 where one holds everything."""
    x = np.sort(np.asarray(holding, float))
    n = len(x)
    if n == 0 or x.sum() == 0:
        return 0.0
    index = float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))
    return index * n / (n - 1) if normalised and n > 1 else index
