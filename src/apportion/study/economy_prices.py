"""Prices of one pool, fast: a simulated economy clears thousands of rounds, each a little different from the last.

Where every task has one pool and the objective is a sum of logarithms, a task's answer to prices is a clip, so the dual

    D(p) = left . p + sum_i max_{0 <= u <= upper_i} ( w_i log((1 - eta) mean_i + eta u) - c_i u ),      c_i = sum_r d_ir p_r

has as many variables as there are resources. Newton's method goes down D less mu sum log p, from the last round's prices, and mu
falls to nothing (primal-dual: slack * p = mu). D is convex with one continuous derivative; its bend jumps where a task meets a
limit, so each step has to lower it. The mechanism is clearing's own: the same objective, repair and certificate; where the gap
that was asked for is not proven, `clear` answers.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float

from apportion.clearing.certificate import bound, certify
from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.clearing.kernels import compiled
from apportion.clearing.objectives import pose
from apportion.clearing.proportional import Proportional
from apportion.clearing.repair import repair
from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.units import PRICE, SHARE

STEPS = 200
EXACT = 1e-11  # of all weight: what the barrier falls to
FALL = 0.1  # what it falls by
NOTHING = 1e-8  # of all weight: a resource that earns less has no price


def priced(market: Market, gap: float, last: Float[np.ndarray, "pool resource"] | None = None) -> Allocation:
    """Clear for proportional fairness; prices are whole 10^-12 credits, as a log would hold them. last: prices to begin with."""
    one = len(market.capacity) == 1 and len(market.indices) == len(market.demand) and not market.floor.any()
    found = _one_pool(market, last) if one else None
    return found if found is not None and found.gap <= gap else fix(clear(market, gap=gap))


def _one_pool(market: Market, last: np.ndarray | None) -> Allocation | None:
    sale, goal = pose(market, "proportional")
    assert isinstance(goal, Proportional)
    left, total = sale.left[0], float(goal.weight.sum())
    if total == 0 or not (left > 0).all() or (sale.value != 1.0).any():
        return None
    rows = np.flatnonzero(sale.enters)
    tasks = market.demand[rows] / left, goal.weight[rows] / total, goal.memory[rows], sale.upper[rows]
    mu = 0.1 if last is None else 1e-3
    start = np.full(len(left), 0.5) if last is None else last[0] * left / total
    rent, steps = _descend(*tasks, np.maximum(start, 1e-2 * mu), mu)
    part, weight, memory, upper = tasks
    plan = np.zeros(len(market.demand))
    plan[rows] = np.clip(weight / (part @ rent) - memory, 0.0, upper)
    price = np.floor(np.where(rent < NOTHING, 0.0, rent) * total / left * PRICE)[None] / PRICE
    cost = sale.charge(price)
    share = repair(sale, plan, goal.weight) / SHARE
    slope = np.where(
        sale.enters, np.maximum(cost, goal.slope(sale.reach)), 0.0
    )  # more than its cost where its cap holds it back
    proof = certify(sale, goal, share, price, top=bound(sale, goal, price, slope))
    return Allocation(market, share, price, goal.name, **proof, steps=int(steps))


@compiled
@no_type_check
def _descend(part, weight, memory, upper, rent, mu):
    """Give the rents (price * what is left) that minimise D, weights summing to 1, and how many passes it took."""
    resources, passes = len(rent), 1
    slope, bend, told = np.empty(resources), np.empty((resources, resources)), np.empty(resources)
    also = np.empty((resources, resources))
    here = _pass(part, weight, memory, upper, rent, slope, bend)
    slack = np.maximum(slope, mu / rent)
    while passes < STEPS:
        matrix = bend.copy()
        for r in range(resources):
            matrix[r, r] += slack[r] / rent[r]
        pull = mu / rent - slope
        step = np.linalg.solve(matrix, pull)
        fall = (pull * step).sum()
        close = fall < 0.3 * mu
        if close and mu <= EXACT:
            break
        change = mu / rent - slack - slack / rent * step
        length, level = 1.0 / max((-step / rent).max() / 0.95, 1.0), here - mu * np.log(rent).sum()
        while True:
            there = rent + length * step
            value = _pass(part, weight, memory, upper, there, told, also)
            passes += 1
            if close or value - mu * np.log(there).sum() <= level - 1e-4 * length * fall + 1e-14 * abs(level):
                break
            length *= 0.5
            if length < 1e-9:
                return rent, passes
        slack = np.maximum(np.maximum(slack + length * change, 0.05 * slack), 0.5 * told)
        rent, here = there, value
        slope[:], bend[:] = told, also
        if close:
            mu *= FALL
    return rent, passes


@compiled
@no_type_check
def _pass(part, weight, memory, upper, rent, slope, bend):
    """Give D at these rents; write its slope, 1 - load, and its bend."""
    resources, out = len(rent), rent.sum()
    slope[:], bend[:] = 1.0, 0.0
    for i in range(len(weight)):
        cost = 0.0
        for r in range(resources):
            cost += part[i, r] * rent[r]
        bought = min(max(weight[i] / cost - memory[i], 0.0), upper[i])
        if memory[i] + bought > 0.0:
            out += weight[i] * np.log(memory[i] + bought) - cost * bought
        inside = 0.0 < bought < upper[i]
        for r in range(resources):
            slope[r] -= part[i, r] * bought
            if inside:
                for q in range(resources):
                    bend[r, q] += part[i, r] * part[i, q] * weight[i] / cost**2
    return out
