"""Prices as they are logged: whole 10^-12 credits, rounded down, with the bound and gap that they still prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from apportion.clearing.certificate import certify
from apportion.clearing.objectives import Objective, pose
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.units import PRICE

LARGEST = 2.0**53  # parts of a price: what a double counts one by one


def fix(allocation: Allocation, objective: str | Callable[[Sale], Objective] | None = None) -> Allocation:
    """Round prices down to whole 10^-12 credits and certify again: what a log holds is what it proves.

    objective: what was maximised, where its name does not say it all (response curves).
    A price that no log can hold (a sliver is left for sale, and everybody wants it) becomes the largest that one can: buyers
    pay less, and the gap says how much less is proven.
    Prices that are whole already (rules have none but 0) leave the allocation, and its gap, as they are.
    """
    whole = np.floor(allocation.price * PRICE * (1 + 2.0**-50))
    price = np.minimum(whole, LARGEST) / PRICE
    if (price == allocation.price).all():
        return allocation
    sale, goal = pose(allocation.market, objective or allocation.objective)
    return replace(allocation, price=price, **certify(sale, goal, allocation.share, price))
