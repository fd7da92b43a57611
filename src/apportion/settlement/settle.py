"""What a round costs: charges, donations, dividends, overflow; every micro-credit that leaves one account reaches another.

    charge   price * what was bought and delivered, at most the bid                    (own account pays)
    floor    what a floor made the task buy beyond its bid                             (its sponsor pays, or it is waived)
    donor    the revenue of a resource, to those who left their guarantee to others    (at most price * donated)
    dividend what is left of the revenue, by entitlement
    overflow what an account holds above kappa * entitlement * supply, back by entitlement

A guarantee is floor(alpha * entitlement * capacity) of each resource of each pool, free; bought is what was granted beyond
it. The optimality conditions say what one owes: charge_i = bid_i eta u/((1-eta) mean + eta u) - rent_i + phi_i floor_i, so
without a floor an exact clearing never charges more than the bid. Ours is exact to its gap: what it charges too much is let
go. Only what the floor itself made the task buy is asked of a sponsor, so that nobody pays for a solver's last digits.

Why nobody falls below zero, whatever the prices: own charges are taken in task order and stop at the balance; sponsorships
come after, in task order, and stop at what own charges left; all other lines give, or take no more than is above a limit.

All is whole micro-credits and exact. Rounding favours whoever pays: charges and donor pay are rounded down; what rounding leaves
over is dividend. Order matters in two places: sponsorships while a purse runs out (task order), and the odd micro-credit of
a dividend or overflow (largest remainder, then the first account).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market, Tasks
from apportion.core.round import POSTING_KINDS, Bills, Outcome, Postings
from apportion.core.units import MICRO, PRICE, SHARE, cost, guarantee, part, split
from apportion.settlement.tree import Tree
from apportion.settlement.whole import by_account, pour, proportion, within


def settle(
    tasks: Tasks,
    allocation: Allocation,
    outcome: Outcome,
    balance: Int[np.ndarray, " account"],
    entitlement: Float[np.ndarray, " account"],
    alpha: float,
    kappa: float,
    supply: int,
    tree: Tree | None = None,
) -> Bills:
    """Bill one round, given balances in micro-credits; nothing is moved until the bills are posted.

    tree: whose child each account is, where accounts nest; what a guarantee leaves to siblings is not donated.
    """
    if not entitlement.sum() > 0:
        raise BadInput("nobody is entitled to anything: there is no one to pay the dividend to.")
    market, row, accounts = allocation.market, allocation.market.row, len(balance)
    price = np.rint(allocation.price * PRICE).astype(np.int64)
    free = part(market.demand[row], market.free_parts[:, None])

    listed = cost(price[market.indices], billed(allocation, outcome, free))
    if not listed.sum(dtype=float) < 2**62:
        raise BadInput("the charges of one round exceed 4.6e12 credits: lower credits_per_round.")
    owed = _by_task(market, listed)
    paid = within(balance, tasks.account, np.minimum(owed, np.rint(market.weight * MICRO).astype(np.int64)))
    beyond = np.maximum(0, floor_cost(allocation, owed) - paid)
    left = balance - by_account(tasks.account, paid, accounts)
    sponsored = _pledge(left, tasks.sponsor, beyond)
    left -= by_account(np.maximum(tasks.sponsor, 0), sponsored, accounts)  # sponsored is 0 where there is no sponsor

    collected = _collect(market, listed, paid + sponsored, owed)
    donor = donor_pay(market, tasks.account, price, free, collected, entitlement, alpha, tree)
    dividend = split(int(collected.sum() - donor.sum()), entitlement)
    overflow = overflowing(left + donor + dividend, entitlement, kappa, supply)
    return Bills(
        postings=_lines(
            charge=(tasks.account, -paid),
            floor=(tasks.sponsor, -sponsored),
            donor=(None, donor),
            dividend=(None, dividend),
            overflow=(None, overflow),
        ),
        paid=paid,
        sponsored=sponsored,
        waived=beyond - sponsored,
    )


def billed(
    allocation: Allocation, outcome: Outcome, free: Int[np.ndarray, "pair resource"]
) -> Int[np.ndarray, "pair resource"]:
    """What each pair pays for, in whole base units: bought and delivered. The free part is delivered first."""
    bought = np.maximum(0, allocation.granted - free)
    measured = np.minimum(bought, np.maximum(0, outcome.delivered - free))
    return np.where(outcome.delivered < 0, bought, measured)


def floor_cost(allocation: Allocation, owed: Int[np.ndarray, " task"]) -> Int[np.ndarray, " task"]:
    """What a task would owe had it bought no more than its floor makes it buy, in micro-credits.

    Guarantees count towards a floor. Where the floor binds this is all that is owed; where more was bought, the floor's part.
    """
    market = allocation.market
    bought = _by_task(market, (allocation.parts - market.free_parts)[:, None])
    promised = np.ceil(market.floor * SHARE - 1e-3).astype(np.int64)  # a floor of 1/3 is kept by .333333334
    needed = np.clip(promised - _by_task(market, market.free_parts[:, None]), 0, np.maximum(bought, 0))
    return proportion(owed, needed, bought)


def donor_pay(
    market: Market,
    account: Int[np.ndarray, " task"],
    price: Int[np.ndarray, "pool resource"],
    free: Int[np.ndarray, "pair resource"],
    collected: Int[np.ndarray, "pair resource"],
    entitlement: Float[np.ndarray, " account"],
    alpha: float,
    tree: Tree | None = None,
) -> Int[np.ndarray, " account"]:
    """Pay the revenue of each resource to those who donated of it, pro rata, at most price * donated each."""
    out = np.zeros(len(entitlement), np.int64)
    owner = account[market.row]
    promised = guarantee(alpha, entitlement, market.capacity)
    for j in range(len(market.capacity)):
        here = market.indices == j
        revenue = collected[here].sum(axis=0)
        for r in np.flatnonzero(revenue):
            taken = by_account(owner[here], free[here, r], len(entitlement))
            own = promised[:, j, r]
            donated = tree.left(own, taken) if tree else np.maximum(0, own - taken)
            if total := int(donated.sum()):
                out += np.minimum(proportion(donated, int(revenue[r]), total), cost(price[j, [r]], donated))
    return out


def overflowing(
    balance: Int[np.ndarray, " account"], entitlement: Float[np.ndarray, " account"], kappa: float, supply: int
) -> Int[np.ndarray, " account"]:
    """Move what lies above kappa * entitlement * supply to those below it, by entitlement, as far as they have room.

    As kappa >= 1 there is room for everything; were there not (entitlements far below 1 in all), what finds no room stays
    where it is. An account without entitlement has no limit and takes nothing: no dividend reaches it, so it holds only
    what an operator put there (a sponsor's purse), and a limit of 0 would empty it in one round.
    """
    limit = balance.copy()
    entitled = np.flatnonzero(entitlement > 0)
    limit[entitled] = np.ceil(np.minimum(kappa * entitlement[entitled] * supply, 2.0**62))
    above = np.maximum(0, balance - limit)
    if not above.any():
        return above
    taken = pour(int(above.sum()), entitlement, np.maximum(0, limit - balance))
    return taken - within(np.array([taken.sum()]), np.zeros(len(above), np.int64), above)


def _pledge(
    left: Int[np.ndarray, " account"], sponsor: Int[np.ndarray, " task"], beyond: Int[np.ndarray, " task"]
) -> Int[np.ndarray, " task"]:
    """What sponsors pay of what floors add, in task order, while their money lasts."""
    out = np.zeros(len(beyond), np.int64)
    backed = np.flatnonzero((sponsor >= 0) & (beyond > 0))
    out[backed] = within(left, sponsor[backed], beyond[backed])
    return out


def _collect(
    market: Market,
    listed: Int[np.ndarray, "pair resource"],
    due: Int[np.ndarray, " task"],
    owed: Int[np.ndarray, " task"],
) -> Int[np.ndarray, "pair resource"]:
    """Scale each task's charges from `owed` in all down to `due` in all, every resource alike.

    Its running sum is scaled and rounded down, so that a task's lines come to `due` exactly and none exceeds its list price.
    """
    running = np.cumsum(listed).reshape(listed.shape)
    before = np.append(0, running[:, -1])[market.indptr[:-1]][market.row]
    scaled = proportion(running - before[:, None], due[market.row][:, None], owed[market.row][:, None]).ravel()
    out = np.diff(scaled, prepend=0)
    first = market.indptr[:-1][np.diff(market.indptr) > 0] * listed.shape[1]
    out[first] = scaled[first]
    return out.reshape(listed.shape)


def _by_task(market: Market, amount: Int[np.ndarray, "pair resource"]) -> Int[np.ndarray, " task"]:
    return by_account(market.row, amount.sum(axis=1), len(market.demand))


def _lines(**moved: tuple[Int[np.ndarray, " task"] | None, np.ndarray]) -> Postings:
    """One line per amount that is not 0: of each task, whose account is given, or (None) of each account."""
    account, kind, amount, task = [], [], [], []
    for name, (payer, amounts) in moved.items():
        row = np.flatnonzero(amounts)
        account.append(row if payer is None else payer[row])
        kind.append(np.full(len(row), POSTING_KINDS.index(name)))
        amount.append(amounts[row])
        task.append(np.full(len(row), -1) if payer is None else row)
    return Postings(*(np.concatenate(column) for column in (account, kind, amount, task)))
