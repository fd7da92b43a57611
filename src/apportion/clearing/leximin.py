"""Max-min, then the next to least, and so on: levels found one after another.

At a level's solution a task that could rise no further has a positive dual (the interior point ends where all duals that
can be positive are). Such tasks stand still at their level; the others rise on, until none is left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from apportion.clearing import interior
from apportion.clearing.maxmin import Maxmin
from apportion.clearing.sale import Sale

KEPT = 1e-6  # of its level: what a task may seem to lose while others rise


def solve(sale: Sale, objective: Maxmin, *, tolerance: float = 1e-9) -> interior.Point:
    """Give the lexicographic plan, with the first level's prices and slopes: they are what proves the least service."""
    point = first = interior.solve(sale, objective, tolerance=tolerance)
    steps, active = point.steps, objective.weight > 0
    for _ in range(int(active.sum())):
        rising = objective.level > 0
        served = sale.market.per_task(sale.value * point.share)
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(rising, served / objective.level, np.inf)
        least = level.min(initial=np.inf)
        pays = point.slope * objective.level * rising.sum()  # 1 on average over rising tasks
        stands = rising & ((pays > level / least - 1.0) | (pays >= pays.max()))
        base = np.where(stands, least * objective.level * (1 - 1e-10), objective.base)
        objective = replace(objective, level=np.where(stands, 0.0, objective.level), base=base)
        if not (objective.level > 0).any():
            break
        higher = interior.solve(sale, objective, tolerance=tolerance)
        steps += higher.steps
        now = sale.market.per_task(sale.value * higher.share)
        due = np.where(objective.level > 0, least * objective.level, objective.base)
        if (now < due * (1 - KEPT)).any():  # weights too far apart for floats: what is won already stays
            break
        point = higher
    return interior.Point(point.share, first.price, first.slope, steps)
