"""Slow answers to small markets, by solvers that share no code with clearing: HiGHS where all is linear, else Clarabel.

The problem is stated again from the market alone (DESIGN, section 3): what is bought, z = share - free, fits what is not
given away, and a task *enters* if it has weight, wants something, and some pool of its holds one 10^-9 part of it.
"""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
from scipy.optimize import linprog

from apportion.clearing.objectives import Objective
from apportion.core.market import Market

PIECEWISE, SATURATING = 2, 1
SHARE = 10**9
TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class Statement:
    """max of something over y >= 0 with `lines` y <= `limit`.

    Loads are parts of what is left, and y is a part of the most that a pair could buy alone: else a solver's tolerance is
    large beside what is small.
    """

    def __init__(self, market: Market, alike: bool = False):
        n, row, pool = len(market.demand), market.row, market.indices
        free = np.bincount(row, market.free, n) if len(row) else np.zeros(n)
        taken = np.zeros(market.capacity.shape)
        np.add.at(taken, pool, market.demand[row] * market.free[:, None])
        left = np.maximum(market.capacity - taken, 0.0)
        self.upper = np.maximum(market.cap - free, 0.0)
        self.lower = np.clip(market.floor - free, 0.0, self.upper)
        can = (market.demand[row] <= left[pool] * SHARE).all(axis=1) & (self.upper[row] * SHARE >= 0.5)
        self.row, self.value = row[can], np.ones(can.sum()) if alike else market.value[can]
        wants = (market.demand > 0).any(axis=1)
        self.enters = (market.weight > 0) & wants & np.isin(np.arange(n), self.row)
        pool, demand = pool[can], market.demand[self.row]
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(demand > 0, demand / left[pool], 0.0)
        most = 1.0 / np.maximum(part.max(axis=1, initial=0.0), 1.0 / self.upper[self.row])
        sums = (self.row == np.arange(n)[:, None]) * most  # (task, pair)
        self.service = sums * self.value
        loads = [np.where(pool == j, part[:, r] * most, 0.0) for j, r in np.argwhere(left > 0)]
        floored, buys = self.lower > 0, sums.any(axis=1)
        rows = [
            *[x for x in loads if x.any()],
            *(sums[buys] / self.upper[buys, None]),
            *(-sums[floored] / self.lower[floored, None]),
        ]
        self.lines = np.array(rows).reshape(-1, len(self.row))
        self.limit = np.where(np.arange(len(rows)) < len(rows) - floored.sum(), 1.0, -1.0)


def levels(market: Market, weight: np.ndarray, alike: bool = False) -> np.ndarray:
    """Give every entering task's level u / weight in the lexicographic maximum, by a sequence of linear programs; else nan."""
    said = Statement(market, alike)
    active, found = said.enters & (weight > 0), np.full(len(weight), np.nan)
    while active.any():
        held = ~np.isnan(found)
        floors = -said.service[held] / (weight[held] * found[held])[:, None]
        lines, limit = np.vstack([said.lines, floors]), np.append(said.limit, np.full(held.sum(), 1e-9 - 1.0))
        level = _level(said, weight, np.flatnonzero(active), lines, limit)
        rising = said.service[active] / (weight[active] * level)[:, None]
        lines, limit = np.vstack([lines, -rising]), np.append(limit, np.full(active.sum(), 1e-9 - 1.0))
        for i, service in zip(np.flatnonzero(active), rising, strict=True):  # who can rise no further stands
            if -_least(-service, lines, limit) <= 1 + 1e-6:
                found[i], active[i] = level, False
    return found


def _level(said: Statement, weight: np.ndarray, active: np.ndarray, lines: np.ndarray, limit: np.ndarray) -> float:
    """Raise active tasks together; in the size of the answer, found by asking again: else it is lost beside a tolerance."""
    size = (said.service.max(axis=1, initial=0.0)[active] / weight[active]).min()
    for _ in range(8):
        rising = np.column_stack([-said.service[active] / (weight[active] * size)[:, None], np.ones(len(active))])
        both = np.vstack([np.column_stack([lines, np.zeros(len(lines))]), rising])
        cost = np.append(np.zeros(len(said.row)), -1.0)
        level = -_least(cost, both, np.append(limit, np.zeros(len(active))))
        size *= max(level, 1e-4)
        if level > 0.1:
            return size
    raise AssertionError(f"no level above {size}")


def best(market: Market, objective: Objective) -> float:
    """Give the optimum of an objective; its own numbers (weights, curves, memory) are read, none of its formulas."""
    said, weight = Statement(market, objective.name == "drf"), objective.weight
    enters = np.flatnonzero(weight > 0)
    assert set(enters) == set(np.flatnonzero(said.enters))
    if objective.name in ("maxmin", "leximin", "drf"):
        return _level(said, weight, enters, said.lines, said.limit)
    if objective.name == "welfare" or (objective.name == "experience" and not (objective.kind == SATURATING).any()):
        return _straight(said, objective)
    return _bent(said, objective, enters)


def _straight(said: Statement, objective: Objective) -> float:
    """Linear and piecewise: each piece is one more variable, and together a task's pieces are at most its service."""
    bent = np.flatnonzero((objective.weight > 0) & (objective.kind == PIECEWISE))
    knots = objective.curve.shape[1]
    rise = np.diff(objective.curve[bent], axis=1, prepend=0.0) * objective.weight[bent, None]
    linear = np.where(np.isin(np.arange(len(objective.weight)), bent), 0.0, objective.weight)
    reach = said.service[bent].sum(axis=1)
    length = np.minimum(1.0 / knots, reach)  # a piece longer than all that its task can have is as good cut
    cost = np.append(-(linear @ said.service), -(rise * (length * knots)[:, None]).ravel())
    pieces = np.kron(np.diag(length / reach), np.ones(knots))
    none, no_pairs = np.zeros((len(said.lines), rise.size)), np.zeros((rise.size, len(said.row)))
    lines = np.block(
        [[said.lines, none], [-said.service[bent] / reach[:, None], pieces], [no_pairs, np.eye(rise.size)]]
    )
    size = -cost.min(initial=-1e-300)
    return -_least(cost / size, lines, np.concatenate([said.limit, np.zeros(len(bent)), np.ones(rise.size)])) * size


def _bent(said: Statement, objective: Objective, enters: np.ndarray) -> float:
    z, scale, worth = cp.Variable(len(said.row), nonneg=True), objective.weight.sum(), 0.0
    for i in enters:
        worth += objective.weight[i] / scale * _worth(objective, i, said.service[i] @ z)
    problem = cp.Problem(cp.Maximize(worth), [said.lines @ z <= said.limit])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # less than was asked is still plenty
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status in ("optimal", "optimal_inaccurate"), problem.status
    return float(problem.value * scale)


def _worth(objective: Objective, i: int, u: cp.Expression) -> cp.Expression:
    if objective.name == "proportional":
        return cp.log(objective.eta * (objective.memory[i] + u))
    if objective.kind[i] == SATURATING:
        k = objective.curve[i, 0]
        return (1 - cp.exp(-k * u)) / (1 - np.exp(-k))
    if objective.kind[i] == PIECEWISE:
        q, knots = np.append(0.0, objective.curve[i]), objective.curve.shape[1]
        lines = [q[s] + (q[s + 1] - q[s]) * knots * (u - s / knots) for s in range(knots)]
        return cp.minimum(*lines, q[-1])
    return u


def _least(cost: np.ndarray, lines: np.ndarray, limit: np.ndarray) -> float:
    found = linprog(cost, lines, limit, method="highs-ds", options=TIGHT)
    assert found.status == 0, found.message
    return float(found.fun)
