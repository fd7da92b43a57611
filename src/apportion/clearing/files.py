"""Problem files in, allocation files out (.npz): markets for those who bring their own arrays.

problem      d (N,R)  C (M,R)  w (N,)  v_indptr v_indices v_data: v by rows, N x M
             optional floor cap mean (N,), eta, curve_kind (N,) and curve (N,K): see `objectives.Curves`
allocation   i j x: shares, the pairs that have one;  p (M,R);  y (N,) for max-min: what bounds the least service
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from apportion.clearing.certificate import best_slope
from apportion.clearing.clear import clear
from apportion.clearing.objectives import Objective, experience, pose
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import Market

NEEDED = ("d", "C", "w", "v_indptr", "v_indices", "v_data")


def read(path: Path | str) -> tuple[Market, Callable[[Sale], Objective] | None]:
    """Give a problem file's market, and its experience curves where it has some."""
    arrays = _arrays(path, NEEDED)
    optional: dict[str, Any] = {name: arrays[name] for name in ("floor", "cap", "mean") if name in arrays}
    if "eta" in arrays:
        optional["eta"] = float(arrays["eta"])
    market = Market(
        arrays["d"],
        arrays["C"],
        arrays["w"],
        arrays["v_data"],
        indptr=arrays["v_indptr"],
        indices=arrays["v_indices"],
        **optional,
    )
    curves = experience(arrays["curve_kind"], arrays["curve"]) if "curve_kind" in arrays else None
    return market, curves


def write(path: Path | str, allocation: Allocation) -> None:
    """Write an allocation file."""
    market, some = allocation.market, np.flatnonzero(allocation.share)
    arrays: dict[str, Any] = {
        "i": market.row[some],
        "j": market.indices[some],
        "x": allocation.share[some],
        "p": allocation.price,
    }
    if allocation.objective in ("maxmin", "leximin", "drf"):
        sale, goal = pose(market, allocation.objective)
        slope = best_slope(sale, goal.near(allocation.value), allocation.price)
        arrays["p"], arrays["y"] = goal.scaled(allocation.price, slope)
        if not arrays["y"].any() and sale.enters.any():  # nothing is scarce: who can reach least bounds it alone
            level = np.where(goal.weight > 0, sale.reach / np.where(goal.weight > 0, goal.weight, 1.0), np.inf)
            arrays["y"][level.argmin()] = 1.0 / goal.weight[level.argmin()]
    with open(path, "wb") as out:
        np.savez(out, **arrays)


def warm(path: Path | str, market: Market, objective: str) -> Allocation:
    """Give an allocation file as the last answer to this market."""
    arrays = _arrays(path, ("i", "j", "x", "p"))
    if arrays["p"].shape != market.capacity.shape:
        raise BadInput(f"{path}: p has shape {arrays['p'].shape}, the problem has {market.capacity.shape}.")
    pools = len(market.capacity)
    pair, given = market.row * pools + market.indices, arrays["i"].astype(np.int64) * pools + arrays["j"]
    order = np.argsort(pair, kind="stable")
    at = np.searchsorted(pair[order], given)
    known = (at < len(pair)) & (pair[order][np.minimum(at, len(pair) - 1)] == given) if len(pair) else at < 0
    share = np.zeros(len(pair))
    share[order[at[known]]] = arrays["x"][known]
    return Allocation(market, share, np.array(arrays["p"], float), objective, 0.0, np.inf, np.inf)


def allocate(
    problem: Path | str,
    objective: str = "proportional",
    gap: float = 1e-3,
    *,
    threads: int = 1,
    last: Path | str | None = None,
    out: Path | str | None = None,
) -> tuple[Allocation, dict[str, float]]:
    """Clear a problem file; give the allocation, and value, bound, gap, steps, seconds and peak_mb as a door prints them."""
    market, curves = read(problem)
    if objective == "experience" and curves is None:
        raise BadInput(f"{problem} has no curve_kind and curve: add them, or ask for another objective.")
    goal = curves if objective == "experience" and curves is not None else objective
    allocation = clear(market, goal, gap, warm(last, market, objective) if last is not None else None, threads)
    if out is not None:
        write(out, allocation)
    told = {name: getattr(allocation, name) for name in ("value", "bound", "gap", "steps", "seconds")}
    return allocation, told | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _arrays(path: Path | str, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if file[name].dtype.kind in "iufb"}
    except (OSError, ValueError, EOFError, BadZipFile) as why:
        raise BadInput(f"{path}: not a readable .npz file ({why}).") from None
    if missing := [name for name in needed if name not in arrays]:
        raise BadInput(f"{path}: {missing[0]!r} is missing. The file needs: {', '.join(needed)}.")
    return arrays
