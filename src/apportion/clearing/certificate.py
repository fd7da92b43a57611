"""How good an allocation can be at most, whoever found the prices.

Let p (prices), g (what a unit of service is worth to a task) and phi (what a floor lends its task) be any numbers >= 0.
For every allocation that fits, weak duality gives

    sum_i f_i(u_i) <= left.p - sum_i phi_i lower_i
                      + sum_i [ max_{0<=u<=reach_i} (f_i(u) - g_i u)  +  upper_i max(0, max_j (g_i v_ij + phi_i - c_ij)) ]

with c_ij = sum_r p_jr d_ir: multiply each constraint by its number, add, and let every task choose freely. Nothing here
asks where p and g come from, so a bound can be recomputed from what a log holds: demand, capacity, prices.

For given p and g the best phi is plain: with a = max_j (g v_ij - c_ij) a task adds upper*a if a > 0 and lower*a if not.
For given p the best g of each task is the least point of a convex curve: `best_slope` finds it.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Float

from apportion.clearing.objectives import Answers, Objective
from apportion.clearing.sale import Sale

SAFETY = 2.0**-48  # of the terms' sizes: more than what adding them in float64 can lose


def bound(
    sale: Sale,
    objective: Objective,
    price: Float[np.ndarray, "pool resource"],
    slope: Float[np.ndarray, " task"],
    rent: Float[np.ndarray, " task"] | None = None,
) -> float:
    """Give a number that no allocation's value exceeds. price is p, slope is g, rent is phi (None: the best)."""
    best, _ = _surplus(sale, slope, sale.charge(price))
    if rent is None:
        rent = np.where(sale.lower > 0, np.maximum(-best, 0.0), 0.0)
    terms = (
        sale.left * price,
        -rent * sale.lower,
        objective.conjugate(slope, sale.reach),
        sale.upper * np.maximum(best + rent, 0.0),
    )
    total = sum(float(term.sum()) for term in terms)
    size = sum(float(np.abs(term).sum()) for term in terms) + float((slope * sale.reach).sum())
    return total + SAFETY * size


def tightest(
    sale: Sale,
    objective: Objective,
    price: Float[np.ndarray, "pool resource"],
    value: float,
    slopes: tuple[np.ndarray, ...] = (),
) -> float:
    """Give the least bound that these prices prove: with the best slopes near `value`, or with one of `slopes`."""
    tried = (best_slope(sale, objective.near(value), price), *slopes)
    return min(bound(sale, objective, *objective.scaled(price, slope)) for slope in tried)


class Proof(TypedDict):
    """What an Allocation says of itself."""

    value: float
    bound: float
    gap: float


def certify(
    sale: Sale,
    objective: Objective,
    share: Float[np.ndarray, " pair"],
    price: Float[np.ndarray, "pool resource"],
    slopes: tuple[np.ndarray, ...] = (),
    top: float | None = None,
) -> Proof:
    """Give value, bound and gap of these shares at these prices. top: a bound that these prices are known to prove."""
    value = objective.value(sale.bought(share))
    if top is None:
        top = tightest(sale, objective, price, value, slopes)
    return {"value": value, "bound": top, "gap": objective.gap(value, top)}


def best_slope(
    sale: Sale, objective: Answers, price: Float[np.ndarray, "pool resource"], steps: int = 60
) -> Float[np.ndarray, " task"]:
    """Give the g that makes the bound least at these prices.

    A task's part of the bound is h(g) = conjugate(g) + S(g). S is a maximum of lines (slope: the service that the task
    would buy), conjugate falls with slope -respond(g). Two lines of S, one left and one right of the least point, give
    the next guess: where one of them meets the objective's slope, else where they cross. A few steps, then exact.
    """
    cost = sale.charge(price)
    g = np.nan_to_num(objective.slope(sale.reach), posinf=0.0)
    best, value = _surplus(sale, g, cost)
    left_at, left = _line(sale, g, best, value)
    right = sale.reach  # at the largest g a task takes its best pool, the cheapest of them
    top = np.where(sale.usable & (sale.value * sale.upper[sale.row] >= right[sale.row]), cost, np.inf)
    cheapest = np.full(len(right), np.inf)
    np.minimum.at(cheapest, sale.row, top)
    right_at = -sale.upper * np.where(np.isfinite(cheapest), cheapest, 0.0)
    todo = sale.enters & (left < right)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(steps):
            if not todo.any():
                break
            cross = (left_at - right_at) / (right - left)
            guess = np.minimum(objective.slope(left), np.maximum(objective.slope(right), cross))
            guess = np.where(todo & np.isfinite(guess), guess, g)
            best, value = _surplus(sale, guess, cost)
            at, rise = _line(sale, guess, best, value)
            drawn = np.maximum(left_at + left * guess, right_at + right * guess)
            todo &= at + rise * guess > drawn + 1e-15 * (np.abs(at) + rise * guess)
            g = guess
            before = rise < objective.respond(guess, sale.reach)
            left_at, left = np.where(todo & before, at, left_at), np.where(todo & before, rise, left)
            right_at, right = np.where(todo & ~before, at, right_at), np.where(todo & ~before, rise, right)
    return np.where(sale.enters, g, 0.0)


def _surplus(sale: Sale, slope: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a_i = max over usable pairs of g_i v_ij - c_ij, and the v there; 0 for a task that can buy nowhere."""
    best, value = np.full(len(sale.upper), -np.inf), np.zeros(len(sale.upper))
    gain = np.where(sale.usable, slope[sale.row] * sale.value - cost, -np.inf)
    np.maximum.at(best, sale.row, gain)
    hit = sale.usable & (gain >= best[sale.row])
    np.maximum.at(value, sale.row[hit], sale.value[hit])
    return np.where(np.isfinite(best), best, 0.0), value


def _line(sale: Sale, slope: np.ndarray, best: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give S's line at g, where S is upper*a for a > 0 and lower*a below: its height at 0 and its rise."""
    share = np.where(best > 0, sale.upper, sale.lower)
    return share * (best - slope * value), share * value
