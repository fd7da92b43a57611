"""Water-filling with several resources: raise the level of all, and stop each where a resource runs out.

    level_i <= top_i,      sum_i need_ir level_i <= room_gr  over the rows i of group g

Levels are max-min fair: none can be raised without lowering one that is no higher. All rise together; when a resource is
spent, the rows that need it stop, the others go on (progressive filling: Bertsekas and Gallager, *Data
Networks*, 1992, section 6.5). There are no more passes than resources.

Levels are floats. What is promised is whole 10^-9 parts whose load is counted in whole numbers: `Count` and `trim`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from apportion.core.units import SHARE


class Groups:
    """Rows that share something, summed group by group."""

    def __init__(self, label: Int[np.ndarray, " row"], count: int):
        self.label, self.count = label, count
        self._order = np.argsort(label, kind="stable")
        ordered = label[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], np.diff(ordered) != 0])) if len(label) else ordered
        self._present = ordered[self._starts] if len(label) else ordered

    def sum(self, x: Shaped[np.ndarray, "row resource"]) -> Shaped[np.ndarray, "group resource"]:
        """Add up the rows of each group; whole numbers stay whole."""
        out = np.zeros((self.count, x.shape[1]), x.dtype)
        if len(x):
            out[self._present] = np.add.reduceat(x[self._order], self._starts, axis=0)
        return out


def fill(
    need: Float[np.ndarray, "row resource"],
    top: Float[np.ndarray, " row"],
    room: Float[np.ndarray, "group resource"],
    groups: Groups,
) -> tuple[Float[np.ndarray, " row"], Bool[np.ndarray, "group resource"]]:
    """Give the max-min level of each row, and which resources of each group it has spent."""
    label = groups.label
    level = np.zeros(len(top))
    spent = np.zeros(room.shape, bool)
    rising = top > 0
    for _ in range(room.shape[1] + 1):  # each pass but the last spends a resource in every group that still rises
        left = np.maximum(room - groups.sum(need * np.where(rising, 0.0, level)[:, None]), 0.0)
        reach = _reach(need * rising[:, None], top, left, groups)
        until = reach.min(axis=1, initial=np.inf)
        level = np.where(rising, np.minimum(top, until[label]), level)
        tight = np.isfinite(reach) & (reach <= until[:, None] * (1 + 1e-12))
        spent |= tight
        rising = rising & (level < top) & ~((need > 0) & tight[label]).any(axis=1)
        if not rising.any():
            break
    return level, spent


def _reach(
    need: Float[np.ndarray, "row resource"],
    top: Float[np.ndarray, " row"],
    left: Float[np.ndarray, "group resource"],
    groups: Groups,
) -> Float[np.ndarray, "group resource"]:
    """Give the level at which each resource is spent; inf where there is enough for all.

    Newton's method on sum need * min(top, level), concave and piecewise linear: from below it never passes the root, and it
    is there after as many steps as there are different tops under it.
    """
    over = groups.sum(need * top[:, None]) > left
    level = np.where(over, 0.0, np.inf)
    while over.any():
        under = top[:, None] <= level[groups.label]
        served = groups.sum(np.where(under, need * top[:, None], 0.0))
        slope = groups.sum(np.where(under, 0.0, need))
        root = np.divide(np.maximum(left - served, 0.0), slope, out=level.copy(), where=over & (slope > 0))
        if not (root > level).any():
            break
        level = np.maximum(root, level)
    return level


class Count:
    """Exact load: demand in whole base units times shares in whole parts, in units of 10^-9 base units.

    64 bits hold 9.2 thousand million base units in all (9.2 million cores); beyond that Python's integers count.
    """

    def __init__(self, demand: Float[np.ndarray, "row resource"], most: float):
        """most: what all tasks together want of any resource, in base units."""
        small = most < 2**63 // SHARE
        self._most = 2**63 // SHARE if small else None
        self.demand = demand.astype(np.int64) if small else demand.astype(np.int64).astype(object)

    def load(self, parts: Int[np.ndarray, " row"], groups: Groups) -> Shaped[np.ndarray, "group resource"]:
        """Give the exact load of each group."""
        return groups.sum(self.demand * parts[:, None])

    def limit(self, capacity: Float[np.ndarray, "group resource"]) -> Shaped[np.ndarray, "group resource"]:
        """Give a capacity in the same units."""
        whole = np.floor(capacity).astype(np.int64)
        return whole.astype(object) * SHARE if self._most is None else np.minimum(whole, self._most - 1) * SHARE

    def of(self, rows: np.ndarray) -> Count:
        """Give the count for some of the rows."""
        out = object.__new__(Count)
        out._most, out.demand = self._most, self.demand[rows]
        return out


def trim(
    parts: Int[np.ndarray, " row"], count: Count, groups: Groups, limit: Shaped[np.ndarray, "group resource"]
) -> Int[np.ndarray, " row"]:
    """Take parts back where a float's last digits put a group above its limit: one or two from each row."""
    step = 1
    while (over := count.load(parts, groups) > limit).any():
        hit = ((count.demand > 0) & over[groups.label]).any(axis=1)
        parts = np.where(hit, np.maximum(parts - step, 0), parts)
        step *= 2
    return parts


def whole_parts(level: Float[np.ndarray, " row"], top: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Give a level as whole parts, rounded down, at most `top`; forgives what float loses of a whole number."""
    return np.minimum(np.floor(level * SHARE + 1e-6).astype(np.int64), top)
