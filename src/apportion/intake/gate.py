"""Tasks, pools and bids become a market: guarantees are set aside, and floors are made to fit.

    G_a = floor(alpha * entitlement_a * capacity)        free of charge, of every resource of every pool
    free_i = max-min over the account's tasks            sum_i demand_ir free_i <= G_ar, in whole parts, exactly

What an account does not use of its guarantee is for sale, like all the rest (`guarantees.py`: or lent to siblings first). A task takes its free share from
its pools in their order. Floors stand beside that: see `floors.py` for who gives way when both do not fit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput
from apportion.core.market import Market, Pools, Tasks
from apportion.core.units import MICRO, SHARE
from apportion.intake.fill import Count, Groups, fill, trim, whole_parts
from apportion.intake.floors import Layout, fit
from apportion.intake.guarantees import Lend, allowed


class Gate:
    """Admits one round's tasks. Remembers only who may be served where, while that stays the same object."""

    def __init__(self, entitlement: Float[np.ndarray, " account"], alpha: float, lend: Lend | None = None):
        """entitlement: parts of one whole; alpha: the part of every pool that is given, not sold; lend: see `allowed`."""
        if not 0 <= alpha <= 1:
            raise BadInput(f"alpha is {alpha}: the guaranteed part of a pool lies between 0 and 1.")
        if not (np.isfinite(entitlement) & (entitlement >= 0)).all() or entitlement.sum() > 1 + 1e-9:
            raise BadInput(f"entitlements come to {entitlement.sum():.6g}: they are at least 0 and parts of 1.")
        self.entitlement, self.alpha, self.lend = np.array(entitlement, float), float(alpha), lend
        self._known: tuple[object, object, int, Layout, list[tuple[np.ndarray, Groups]]] | None = None

    def admit(
        self,
        tasks: Tasks,
        pools: Pools,
        bid: Int[np.ndarray, " task"],
        mean: Float[np.ndarray, " task"] | None = None,
        eta: float = 1.0,
        cap: Float[np.ndarray, " task"] | None = None,
    ) -> Market:
        """Give this round's market; bids are micro-credits; mean: what was used lately, as a share, which weighs 1 - eta;
        cap: what budgets leave of the tasks' caps, never below a floor."""
        layout, payers = self._layout(tasks, pools)
        most = tasks.cap if cap is None else cap
        parts = np.floor(most * SHARE + 1e-6).astype(np.int64)
        promise = np.minimum(np.ceil(tasks.floor * SHARE - 1e-6).astype(np.int64), parts)
        rooms = allowed(tasks, most, pools.capacity, self.entitlement, self.alpha, self.lend) if self.alpha else None
        free = np.zeros(len(layout.row), np.int64) if rooms is None else self._free(layout, payers, tasks, rooms, parts)
        floor, free = fit(layout, tasks.demand, pools.capacity, promise, free, tasks.priority)
        return Market(
            tasks.demand,
            pools.capacity,
            bid / MICRO,
            indptr=layout.indptr,
            indices=layout.indices,
            floor=np.where(floor >= promise, tasks.floor, floor / SHARE),
            cap=most,
            mean=mean,
            eta=eta,
            free=free / SHARE,
            tasks=tasks.name,
            pools=pools.name,
            resources=pools.resources,
        )

    def _free(
        self,
        layout: Layout,
        payers: list[tuple[np.ndarray, Groups]],
        tasks: Tasks,
        rooms: Int[np.ndarray, "account pool resource"],
        cap: Int[np.ndarray, " task"],
    ) -> Int[np.ndarray, " pair"]:
        """Share what each account may use for nothing among its tasks, pool by pool, in whole parts."""
        free, left = np.zeros(len(layout.row), np.int64), cap.copy()
        most = float(tasks.demand.sum(axis=0).max(initial=0.0))
        for j, (pairs, groups) in enumerate(payers):
            i = layout.row[pairs]
            need, room = tasks.demand[i], rooms[:, j].astype(float)
            level, _ = fill(need, left[i] / SHARE, room, groups)
            count = Count(need, most)
            parts = trim(whole_parts(level, left[i]), count, groups, count.limit(room))
            free[pairs] = parts
            left[i] -= parts
        return free

    def _layout(self, tasks: Tasks, pools: Pools) -> tuple[Layout, list[tuple[np.ndarray, Groups]]]:
        """Lay out pairs, and the payers of each pool's pairs; kept while tasks name the same pools and accounts."""
        count, known = len(pools.name), self._known
        if known is None or known[0] is not tasks.eligible or known[1] is not tasks.account or known[2] != count:
            layout = Layout.of(tasks.eligible, count)
            payers = []
            for j in range(count):
                pairs = np.flatnonzero(layout.indices == j)
                payers.append((pairs, Groups(tasks.account[layout.row[pairs]], len(self.entitlement))))
            self._known = known = (tasks.eligible, tasks.account, count, layout, payers)
        return known[3], known[4]
