"""Attention that fits: softmax over pools at prices, every task served in full (*must-serve*).

    maximise  sum_ij x_ij s_ij + tau * entropy(x)    with  sum_j x_ij = mass_i,   sum_i d_ir x_ij <= capacity_jr
    answer    x_i = mass_i * softmax_j( (s_ij - sum_r p_jr d_ir) / tau )

The prices p are the capacities' duals, the least point of the convex  capacity.p + tau sum_i mass_i log sum_j exp(...)
over p >= 0, found by a primal-dual barrier Newton. With slack pools p = 0, and this is plain softmax attention.
"""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp, xlogy

from apportion.clearing.certificate import SAFETY
from apportion.clearing.repair import repair
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.errors import BadMarket
from apportion.core.market import Market
from apportion.core.units import SHARE


def attend(
    scores: ArrayLike,
    capacity: ArrayLike,
    temperature: float,
    *,
    demand: ArrayLike | None = None,
    mass: ArrayLike | None = None,
    steps: int = 200,
) -> tuple[Float[np.ndarray, "task pool"], Float[np.ndarray, "pool resource"]]:
    """Give shares and prices. scores: -inf keeps a task out of a pool; demand: 1 of one resource unless given."""
    return _solved(scores, capacity, temperature, demand, mass, steps)[:2]


def serve_all(market: Market, score: Float[np.ndarray, " pair"], temperature: float, steps: int = 200) -> Allocation:
    """Serve every task of a market up to its cap, wherever its scores and the prices send it; in whole parts that fit.

    score: of each pair, in the unit of the temperature. Rounding down may leave a task a part (10^-9) or a few short. The gap
    is relative to the value's size, which may be below 0.
    """
    started, scores = time.perf_counter(), np.full((len(market.demand), len(market.capacity)), -np.inf)
    scores[market.row, market.indices] = score
    share, price, taken = _solved(scores, market.capacity, temperature, market.demand, market.cap, steps)
    plain = Market(  # without weights and values, which say nothing here
        market.demand, market.capacity, indptr=market.indptr, indices=market.indices, cap=market.cap,
        tasks=market.tasks, pools=market.pools, resources=market.resources,
    )  # fmt: skip
    x = repair(Sale(plain), share[market.row, market.indices]) / SHARE
    value = float(x @ score) - temperature * float(xlogy(x, x).sum())
    with np.errstate(divide="ignore"):  # any prices >= 0 prove a bound: every task answers them freely
        worth = market.cap * logsumexp((scores - market.demand @ price.T) / temperature, axis=1)
    bound = float((market.capacity * price).sum()) + temperature * float((worth - xlogy(market.cap, market.cap)).sum())
    bound += SAFETY * float(np.abs(worth).sum() * temperature + (market.capacity * price).sum())
    gap = (bound - value) / (abs(value) or 1.0)
    return Allocation(plain, x, price, "attention", value, bound, gap, taken, time.perf_counter() - started)


def _solved(scores, capacity, temperature, demand, mass, steps):
    """Give shares, prices and the steps that they took."""
    scores = np.asarray(scores, float)
    tasks, pools = scores.shape
    capacity = np.asarray(capacity, float).reshape(pools, -1)
    demand = np.ones((tasks, 1)) if demand is None else np.asarray(demand, float)
    mass = np.ones(tasks) if mass is None else np.asarray(mass, float)
    if not temperature > 0:
        raise BadMarket(
            f"temperature is {temperature}: it must be above 0; a small one comes near to choosing one pool."
        )
    if (wrong := np.flatnonzero(~np.isfinite(scores.max(axis=1, initial=-np.inf)))).size:
        raise BadMarket(f"task {wrong[0]} may use no pool, but must be served: give one of its scores a finite number.")
    short = (mass @ demand) > capacity.sum(axis=0)
    if short.any():
        r = int(np.argmax(short))
        raise BadMarket(
            f"resource {r}: all tasks together must be served {mass @ demand[:, r]:.6g}, the pools hold"
            f" {capacity[:, r].sum():.6g}. Lower the mass (a file's cap), or use an objective that may leave tasks unserved."
        )
    share = mass[:, None] * _softmax(scores / temperature)
    if (share.T @ demand <= capacity).all():
        return share, np.zeros_like(capacity), 0
    return _fit(scores, capacity, temperature, demand, mass, steps)


def _softmax(score: np.ndarray) -> np.ndarray:
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def _fit(scores, capacity, temperature, demand, mass, steps):
    live = (capacity > 0).all(axis=1) | (demand.max(axis=0) == 0).all()
    scores = np.where(live[None, :], scores, -np.inf)
    part = demand[:, None, :] / np.where(live[:, None], capacity, 1.0)  # of each pool, per unit of share

    def answer(lam):
        net = (scores - (part * lam).sum(axis=2)) / temperature
        share = mass[:, None] * _softmax(net)
        peak = net.max(axis=1)
        worth = temperature * (mass * (peak + np.log(np.exp(net - peak[:, None]).sum(axis=1)))).sum()
        return share, np.einsum("ij,ijr->jr", share, part), float(lam.sum() + worth)

    spread = np.ptp(np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].mean())) + temperature
    mu = spread * mass.sum() / capacity.size
    lam, slack = np.full(capacity.shape, mu), np.ones(capacity.shape)
    share, load, worth = answer(lam)
    with np.errstate(divide="ignore"):
        for step in range(steps):
            if step == steps - 1 or not lam.max() < 1e7 * spread * mass.sum():
                raise BadMarket(
                    "these masses cannot all be served by the pools that their tasks may use: lower some, or add pools."
                )
            off = 1.0 - load - slack
            if mu < 1e-13 * spread * mass.sum() and np.abs(off).max() < 1e-10:
                break
            each = np.einsum("ij,ijr,ijs->jrs", share, part, part) / temperature
            weighted = (share[:, :, None] * part).reshape(len(mass), -1) / np.sqrt(np.maximum(mass, 1e-300))[:, None]
            h = -(weighted.T @ weighted) / temperature
            size = capacity.shape[1]
            for j, block in enumerate(each):
                h[j * size : (j + 1) * size, j * size : (j + 1) * size] += block
            h[np.diag_indices_from(h)] += (slack / lam).ravel() + 1e-14 * np.abs(np.diag(h)).max()
            move = cho_solve(cho_factor(h), (mu / lam - (1.0 - load)).ravel()).reshape(lam.shape)
            change = (mu - slack * move) / lam - slack
            most = min(1.0, 0.95 / max((-move / lam).max(), 0.95), 0.95 / max((-change / slack).max(), 0.95))
            fall, here = float(((1.0 - load) * move - mu * move / lam).sum()), worth - mu * np.log(lam).sum()
            for _ in range(30):
                share, load, worth = answer(lam + most * move)
                if worth - mu * np.log(lam + most * move).sum() <= here + 1e-4 * most * fall + 1e-13 * abs(here):
                    break
                most *= 0.5
            lam, slack = lam + most * move, slack + most * change
            mu = min(mu, (0.1 if most > 0.9 else 0.5) * float((lam * slack).mean()))
    return share, np.where(live[:, None], lam / np.where(live[:, None], capacity, 1.0), 0.0), step
