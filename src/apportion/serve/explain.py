"""Why a task got what it got, in one sentence, from the log alone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.units import MICRO, credits, resource
from apportion.ledger.log import Log
from apportion.ledger.reading import LoggedRound, rounds
from apportion.serve.folder import advised, began
from apportion.settlement.budgets import Budgets
from apportion.settlement.tree import Tree
from apportion.settlement.whole import by_account


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened to a task in a round, in words; `chosen` says why this round, where nobody named one."""

    round: int  # as the log counts, from 0
    text: str
    chosen: str = ""
    aborted: str | None = None  # why, if the round was


def explain(log: Log, task: str, number: int | None = None) -> Explanation:
    """Explain round `number`; None: the last one in which the task had to bid for something scarce, else the last."""
    last = scarce = asked = None
    end = -1
    for logged in rounds(log):
        if not logged.closed:
            continue
        if logged.number == number:
            asked = logged
        if logged.bills is not None or last is None:
            last = logged
        if number is None and logged.allocation and logged.bills and task in logged.tasks.name:
            scarce = logged if _had_to_bid(logged, logged.allocation, logged.tasks.name.index(task)) else scarce
        end = logged.number
    if last is None:
        raise BadInput(f"{log.path}: no round was played to its end yet.")
    if number is not None and asked is None:
        raise BadInput(f"{log.path}: there is no round {number} that is over; the last one is {end} (the first is 0).")
    logged = asked or scarce or last
    text = sentence(logged, task, advised(began(log))) + floor_bill(log, logged, task) + ran_dry(log, logged, task)
    if asked:
        return Explanation(logged.number, text, aborted=logged.aborted)
    why = f"the last in which {task} had to bid for something scarce" if scarce else "the last one"
    chosen = f"Round {logged.number} is {why}" + (f"; the last of all is {end}" if end != logged.number else "")
    return Explanation(logged.number, text, f"{chosen}. Another: --round N.", logged.aborted)


def sentence(round: LoggedRound, task: str, advised: bool = False) -> str:
    """Tell which resource was scarce, what it cost, what the task bid and paid, and what more would cost."""
    i = _row(round, task)
    market, allocation, outcome, bills = round.market, round.allocation, round.outcome, round.bills
    wanted = _amounts(round, market.demand[i])
    if allocation is None or outcome is None or bills is None:
        granted = "nothing was decided yet" if allocation is None else f"{allocation.served[i]:.0%} of it were granted"
        why = round.aborted or "not said why"
        return f"Round {round.number} was aborted: {why}; {task} wanted {wanted}, {granted}, and nothing was charged."
    served, cap = allocation.served[i], market.cap[i]
    rent = _rent(round, allocation, i)
    if advised:
        opening = f"In round {round.number}, which was advice alone, {task} wanted {wanted} and would have been granted {served:.0%} of it"
        paid, after = "would have paid", "; nothing was enforced, and the accounts moved in this trial log only"
    else:
        opening = f"In round {round.number} {task} wanted {wanted} and was granted {served:.0%} of it"
        paid, after = "paid", ""
    experience = outcome.experience[i]
    felt = "it did not report its experience" if np.isnan(experience) else f"its experience was {experience:.2f}"
    if not rent.sum() > 0:
        return f"{opening}; nothing it uses was scarce, so the price was 0, it {paid} nothing, and {felt}{after}."
    j, r = np.unravel_index(int(rent.argmax()), rent.shape)
    unit = resource(round.pools.resources[r])
    price = allocation.price[j, r] * unit.scale
    free = market.per_task(market.free)[i]
    if _had_to_bid(round, allocation, i):
        cost = f"{free:.0%} was its guarantee and free, for the rest it bid {market.weight[i]:.2f} and {paid} {credits(int(bills.paid[i])):.2f} credits"
    else:
        cost = f"its guarantee covered all of that, so it {paid} nothing"
    bill = f"{unit.name} in {round.pools.name[j]} was scarce at {price:.4g} credits per {unit.one} and round; {cost}, and {felt}{after}"
    if cap - served < 1e-6:
        return f"{opening}: {bill}."
    whole = rent.sum() * max(cap - free, 0.0)
    tenth = rent.sum() * min(0.1, cap - served)
    return (
        f"{opening}: {bill}. At this price another {min(0.1, cap - served):.0%} would have cost {tenth:.2f} credits, "
        f"and all it wanted {whole:.2f}."
    )


def floor_bill(log: Log, round: LoggedRound, task: str) -> str:
    """Tell who paid for what the task's floor made it buy beyond its bid, and what nobody paid."""
    i, bills = _row(round, task), round.bills
    if bills is None or not bills.sponsored[i] + bills.waived[i]:
        return ""
    share, sponsor = round.market.floor[i], int(round.tasks.sponsor[i])
    paid, waived = credits(int(bills.sponsored[i])), credits(int(bills.waived[i]))
    by = [f"{began(log).accounts[sponsor]} paid {paid:.2f}"] if paid else []
    return f" Its floor of {share:.0%} added {paid + waived:.2f} credits: {' and '.join([*by, *([f'{waived:.2f} were waived'] if waived else [])])}."


def ran_dry(log: Log, round: LoggedRound, task: str) -> str:
    """Name the account, the task's own or one that it stands inside, whose money or budget held the task back."""
    genesis, i = began(log), _row(round, task)
    tree = Tree.of(genesis.parent, genesis.share) or Tree.flat(len(genesis.accounts))
    chain, market = tree.above(int(round.tasks.account[i])), round.market
    bids = tree.below(
        by_account(round.tasks.account, np.rint(market.weight * MICRO).astype(np.int64), len(tree.parent))
    )
    spent = lambda most: bids[a] >= most - len(round.tasks.name)  # noqa: E731  # each bid is rounded down
    told = []
    if genesis.budgets:
        budgets = Budgets(*genesis.budgets, tree)
        for before in rounds(log):
            if before.number < round.number and before.allocation and before.outcome and before.bills:
                budgets.count(before.number, before.tasks, before.allocation, before.outcome, before.bills)
        credits_left, left = budgets.left(round.number)
        until = lambda: f"left until round {(round.number // budgets.rounds[a] + 1) * budgets.rounds[a] - 1}"  # noqa: E731
        for a in chain:
            if budgets.credits[a] >= 0 and spent(credits_left[a]):
                had = f"{credits(int(credits_left[a])):.4g} of {credits(int(budgets.credits[a])):.4g} credits"
                told.append(f"{genesis.accounts[a]} had {had} {until()}")
        bound = [(a, r) for a in chain for r in np.flatnonzero(market.demand[i] > 0) if budgets.amounts[a, r] >= 0]
        if market.cap[i] < round.tasks.cap[i] and bound:
            a, r = min(bound, key=lambda at: left[at] / max(budgets.amounts[at], 1))
            kind = resource(genesis.resources[r])
            hours = genesis.round_seconds / 3600 / kind.scale
            had = f"{left[a, r] * hours:.4g} of {budgets.amounts[a, r] * hours:.4g} {kind.one}-hours of {kind.name}"
            told.append(f"{genesis.accounts[a]} had {had} {until()}")
    a = chain[0]
    if not told and bids[a] and spent(round.balance_before[a]):
        told.append(f"{genesis.accounts[a]} held no more than {credits(int(round.balance_before[a])):.4g} credits")
    return f" It was held back: {' and '.join(told)}." if told else ""


def _had_to_bid(round: LoggedRound, allocation: Allocation, i: int) -> bool:
    """Whether something that task i uses was scarce, and its guarantee did not cover all that it could use."""
    market = round.market
    return bool(_rent(round, allocation, i).sum() > 0 and market.cap[i] - market.per_task(market.free)[i] > 1e-6)


def _row(round: LoggedRound, task: str) -> int:
    names = round.tasks.name
    if task in names:
        return names.index(task)
    near = difflib.get_close_matches(task, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Tasks: {', '.join(names)}."
    raise BadInput(f"there is no task {task!r} in round {round.number}.{hint}")


def _rent(round: LoggedRound, allocation: Allocation, i: int) -> np.ndarray:
    """What all of task i would cost in the cheapest of its pools, per pool and resource; zero in the other pools."""
    market = round.market
    pools = market.indices[market.indptr[i] : market.indptr[i + 1]]
    rent = np.zeros(market.capacity.shape)
    rent[pools] = allocation.price[pools] * market.demand[i]
    cheapest = pools[np.argmin(rent[pools].sum(axis=1))] if len(pools) else None
    return np.where(np.arange(len(rent))[:, None] == cheapest, rent, 0.0)


def _amounts(round: LoggedRound, demand: np.ndarray) -> str:
    shown = [resource(r).show(d) for r, d in zip(round.pools.resources, demand, strict=True) if d > 0]
    return ", ".join(shown) if shown else "nothing"
