"""Why a task got what it got, in one sentence, from the log alone."""

from __future__ import annotations

import difflib

import numpy as np

from apportion.core.errors import BadInput
from apportion.core.round import Round
from apportion.core.units import credits, resource


def sentence(round: Round, task: str) -> str:
    """Tell which resource was scarce, what it cost, what the task bid and paid, and what more would cost."""
    i = _row(round, task)
    market, allocation = round.market, round.allocation
    served, cap = allocation.served[i], market.cap[i]
    wanted = _amounts(round, market.demand[i])
    rent = _rent(round, i)
    opening = f"In round {round.number + 1} {task} wanted {wanted} and was served {served:.0%} of it"
    experience = round.outcome.experience[i]
    felt = "it did not report its experience" if np.isnan(experience) else f"its experience was {experience:.2f}"
    if not rent.sum() > 0:
        return f"{opening}; nothing it uses was scarce, so the price was 0, it paid nothing, and {felt}."
    j, r = np.unravel_index(int(rent.argmax()), rent.shape)
    unit = resource(round.pools.resources[r])
    price = allocation.price[j, r] * unit.scale
    free = market.per_task(market.free)[i]
    bill = (
        f"{unit.name} in {round.pools.name[j]} was scarce at {price:.4g} credits per {unit.unit} and round; "
        f"{free:.0%} was its guarantee and free, for the rest it bid {market.weight[i]:.2f} and paid "
        f"{credits(int(round.bills.paid[i])):.2f} credits, and {felt}"
    )
    if cap - served < 1e-6:
        return f"{opening}: {bill}."
    whole = rent.sum() * max(cap - free, 0.0)
    tenth = rent.sum() * min(0.1, cap - served)
    return (
        f"{opening}: {bill}. At this price another {min(0.1, cap - served):.0%} would have cost {tenth:.2f} credits, "
        f"and all it wanted {whole:.2f}."
    )


def _row(round: Round, task: str) -> int:
    names = round.tasks.name
    if task in names:
        return names.index(task)
    near = difflib.get_close_matches(task, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Tasks: {', '.join(names)}."
    raise BadInput(f"there is no task {task!r} in round {round.number + 1}.{hint}")


def _rent(round: Round, i: int) -> np.ndarray:
    """What all of task i would cost in each of its pools, per resource; zero in other pools."""
    market = round.market
    pools = market.indices[market.indptr[i] : market.indptr[i + 1]]
    rent = np.zeros(market.capacity.shape)
    rent[pools] = round.allocation.price[pools] * market.demand[i]
    cheapest = pools[np.argmin(rent[pools].sum(axis=1))] if len(pools) else None
    return np.where(np.arange(len(rent))[:, None] == cheapest, rent, 0.0)


def _amounts(round: Round, demand: np.ndarray) -> str:
    shown = [resource(r).show(d) for r, d in zip(round.pools.resources, demand, strict=True) if d > 0]
    return ", ".join(shown) if shown else "nothing"
