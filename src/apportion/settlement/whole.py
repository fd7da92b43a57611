"""Whole-number arithmetic over arrays, exact whatever the size: proportions, running limits, sums by account."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.units import split

LARGEST = 2**63 - 1


def proportion(amount: np.ndarray, numerator: np.ndarray | int, denominator: np.ndarray | int) -> np.ndarray:
    """Give floor(amount * numerator / denominator) exactly, for whole numbers >= 0; 0 where the denominator is 0."""
    amount, numerator, denominator = np.broadcast_arrays(
        np.asarray(amount, np.int64), np.asarray(numerator, np.int64), np.asarray(denominator, np.int64)
    )
    below = np.maximum(denominator, 1)
    large = amount.astype(float) * numerator > 9e18  # would not fit into 63 bits: Python's own integers there
    out = np.where(large, 0, amount) * np.where(large, 0, numerator) // below
    if large.any():
        exact = amount[large].astype(object) * numerator[large].astype(object) // below[large].astype(object)
        out[large] = exact.astype(np.int64)
    return np.where(denominator > 0, out, 0)


def by_account(account: Int[np.ndarray, " row"], amount: Int[np.ndarray, " row"], accounts: int) -> np.ndarray:
    """Sum whole amounts over the rows of each account."""
    out = np.zeros(accounts, np.int64)
    np.add.at(out, account, amount)
    return out


def within(
    limit: Int[np.ndarray, " account"], account: Int[np.ndarray, " row"], amount: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " row"]:
    """Give what each row may take of its account's limit, first come first served, in row order."""
    order = np.argsort(account, kind="stable")
    owner = account[order]
    asked = np.minimum(amount[order], limit[owner])  # asking for more than all there is changes nothing
    if len(asked) * int(asked.max(initial=0)) > LARGEST:
        asked = asked.astype(object)
    before = np.cumsum(asked) - asked
    first = np.searchsorted(owner, owner)  # where each account's rows begin
    taken = np.clip(limit[owner] - (before - before[first]), 0, asked).astype(np.int64)
    out = np.empty(len(amount), np.int64)
    out[order] = taken
    return out


def pour(total: int, weight: Float[np.ndarray, " row"], room: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Divide a whole total by weight, none getting more than its room: what one can't take goes to the others.

    Each pass fills somebody or gives all that is left, so there are no more passes than rows. What nobody with weight has
    room for is not given.
    """
    out, room = np.zeros(len(room), np.int64), np.where(weight > 0, room, 0)
    left = min(total, int(room.sum()))
    while left:
        given = np.minimum(split(left, np.where(room > 0, weight, 0.0)), room)
        out += given
        room -= given
        left -= int(given.sum())
    return out
