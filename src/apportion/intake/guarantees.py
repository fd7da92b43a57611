"""What accounts may use of each pool for nothing: alpha of their part, and what siblings lend each other of theirs.

An account lends what its own tasks could not use in that pool, were they served there alone: so what is lent follows from what is
asked for, pool by pool, in whole base units, and an auditor counts it again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
from jaxtyping import Float, Int

from apportion.core.market import Tasks
from apportion.core.units import guarantee

# What each account may use of a guarantee, given what is its own and what it needs: whole amounts by account.
Lend = Callable[[Int[np.ndarray, " account"], Int[np.ndarray, " account"]], Int[np.ndarray, " account"]]


def allowed(
    tasks: Tasks,
    cap: Float[np.ndarray, " task"],
    capacity: Float[np.ndarray, "pool resource"],
    entitlement: Float[np.ndarray, " account"],
    alpha: float,
    lend: Lend | None = None,
) -> Int[np.ndarray, "account pool resource"]:
    """Give whole base units; cap: the largest share of use; lend: None where accounts do not nest."""
    own = guarantee(alpha, entitlement, capacity)
    if lend is None:
        return own
    width = np.fromiter(map(len, tasks.eligible), np.int64, len(tasks.eligible))
    pool = np.fromiter(chain.from_iterable(tasks.eligible), np.int64, int(width.sum()))
    row, most, out = np.repeat(np.arange(len(width)), width), np.ceil(tasks.demand * cap[:, None]), np.empty_like(own)
    for j in range(len(capacity)):
        here = row[pool == j]
        for r in range(capacity.shape[1]):  # a sum that floats can't hold is far above the capacity, where it is cut
            need = np.bincount(tasks.account[here], most[here, r], minlength=len(entitlement))
            out[:, j, r] = lend(own[:, j, r], np.minimum(need, capacity[j, r]).astype(np.int64))
    return out
