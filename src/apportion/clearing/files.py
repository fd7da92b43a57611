"""Problem files in, allocation files out (.npz): markets for those who bring their own arrays.

problem      d (N,R)  C (M,R)  w (N,)  v_indptr v_indices v_data: v by rows, N x M
             optional floor cap mean (N,), eta, curve_kind (N,) and curve (N,K): see `curves.Curves`
allocation   i j x: shares, the pairs that have one;  p (M,R);  y (N,) for max-min: what bounds the least service
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from apportion.clearing import attention
from apportion.clearing.certificate import best_slope
from apportion.clearing.clear import LARGE, clear
from apportion.clearing.curves import experience
from apportion.clearing.objectives import Objective, pose
from apportion.clearing.sale import Sale
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput, BadMarket
from apportion.core.files import replacing
from apportion.core.market import Market
from apportion.core.memory import peak_mb

Arrays = dict[str, np.ndarray]
NEEDED = ("d", "C", "w", "v_indptr", "v_indices", "v_data")


NAMES = {"demand": "d", "capacity": "C", "weight": "w", "indptr": "v_indptr", "indices": "v_indices", "value": "v_data"}
Curves = Callable[[Sale], Objective]


def read(path: Path | str) -> tuple[Market, Curves | None]:
    """Give a problem file's market, and its experience curves where it has some; raise BadInput where it holds no problem."""
    arrays = arrays_of(path)
    return market_of(path, arrays), _curves(path, arrays)


def market_of(path: Path | str, arrays: Arrays) -> Market:
    optional: dict[str, Any] = {name: arrays[name] for name in ("floor", "cap", "mean") if name in arrays}
    if "eta" in arrays:
        if arrays["eta"].size != 1:
            raise BadInput(f"{path}: eta has shape {arrays['eta'].shape}: it is one number in (0, 1].")
        optional["eta"] = float(arrays["eta"].item())
    try:
        return Market(
            arrays["d"],
            arrays["C"],
            arrays["w"],
            arrays["v_data"],
            indptr=arrays["v_indptr"],
            indices=arrays["v_indices"],
            **optional,
        )
    except BadMarket as error:  # in the file's own names
        word = str(error).partition(" ")[0].partition("[")[0]
        raise BadMarket(f"{path}: {NAMES.get(word, word)}{str(error)[len(word) :]}") from None


def _curves(path: Path | str, arrays: Arrays) -> Curves | None:
    if "curve_kind" not in arrays:
        return None
    if "curve" not in arrays:
        raise BadInput(f"{path} has curve_kind and no curve: add the curves (N,K), or leave out both.")
    kind, curve = arrays["curve_kind"], arrays["curve"]
    if kind.ndim != 1 or curve.ndim not in (1, 2) or len(curve) != len(kind):
        raise BadInput(
            f"{path}: curve_kind and curve have shapes {kind.shape} and {curve.shape}: give each task one number and one row."
        )
    return experience(kind, curve)


def some(arrays: Arrays, tasks: int) -> Arrays:
    """Give the problem of the first tasks alone, with their part of each pool and without floors: as contended, and small."""
    rest = {name: x[:tasks] for name, x in arrays.items() if name in ("w", "cap", "mean", "curve_kind", "curve")}
    pairs = slice(0, int(arrays["v_indptr"][tasks]))
    part = arrays["d"][:tasks].sum() / max(arrays["d"].sum(), 1e-300)
    return rest | {
        "d": arrays["d"][:tasks],
        "C": arrays["C"] * part,
        "v_indptr": arrays["v_indptr"][: tasks + 1],
        "v_indices": arrays["v_indices"][pairs],
        "v_data": arrays["v_data"][pairs],
        **({"eta": arrays["eta"]} if "eta" in arrays else {}),
    }


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
    try:
        with replacing(Path(path), sync=False) as part, open(part, "wb") as out:
            np.savez(out, **arrays)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}. Choose a file that can be written.") from None


def warm(path: Path | str, market: Market, objective: str) -> Allocation:
    """Give an allocation file as the last answer to this market."""
    arrays = arrays_of(path, ("i", "j", "x", "p"))
    i, j, x = arrays["i"], arrays["j"], arrays["x"]
    if not i.shape == j.shape == x.shape == (i.size,) or not np.isfinite(x).all() or not (arrays["p"] >= 0).all():
        raise BadInput(f"{path}: i, j and x are three equally long lists of numbers, p is at least 0.")
    if arrays["p"].shape != market.capacity.shape:
        raise BadInput(f"{path}: p has shape {arrays['p'].shape}, the problem has {market.capacity.shape}.")
    pools = len(market.capacity)
    pair, given = market.row * pools + market.indices, i.astype(np.int64) * pools + j.astype(np.int64)
    order = np.argsort(pair, kind="stable")
    at = np.searchsorted(pair[order], given)
    known = (at < len(pair)) & (pair[order][np.minimum(at, len(pair) - 1)] == given) if len(pair) else at < 0
    share = np.zeros(len(pair))
    share[order[at[known]]] = x[known]
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
    """Clear a problem file; give the allocation, and value, bound, gap, steps, seconds and peak_mb as a door prints them.

    seconds are the solve's alone: what is compiled is loaded before.
    """
    arrays = arrays_of(problem)
    market, curves = market_of(problem, arrays), _curves(problem, arrays)
    if objective == "experience" and curves is None:
        raise BadInput(f"{problem} has no curve_kind and curve: add them, or ask for another objective.")
    before = warm(last, market, objective) if last is not None else None
    load(problem, arrays, objective, threads)
    goal = curves if objective == "experience" and curves is not None else objective
    return _told(clear(market, goal, gap, before, threads), out)


def load(problem: Path | str, arrays: Arrays, objective: str, threads: int = 1) -> None:
    """Have all that is compiled loaded (the first time ever: compiled), by clearing a small part of a large problem."""
    size = LARGE // max(arrays["d"].shape[1], 1) + 1
    if arrays["v_indptr"][-1] < size:
        return
    few = some(arrays, int(np.searchsorted(arrays["v_indptr"], size)))
    goal = _curves(problem, few) if objective == "experience" else objective
    clear(market_of(problem, few), goal or objective, threads=threads)


def serve_all(
    problem: Path | str, temperature: float, *, out: Path | str | None = None
) -> tuple[Allocation, dict[str, float]]:
    """Serve every task of a problem file in full (up to cap): v holds scores, of any sign, in the unit of the temperature."""
    arrays = arrays_of(problem)
    score = arrays["v_data"].astype(float)
    if not np.isfinite(score).all():
        raise BadInput(
            f"{problem}: v_data holds {score[~np.isfinite(score)][0]}. To keep a task out of a pool, drop the pair."
        )
    market = market_of(problem, arrays | {"v_data": np.ones_like(score)})
    return _told(attention.serve_all(market, score, temperature), out)


def _told(allocation: Allocation, out: Path | str | None) -> tuple[Allocation, dict[str, float]]:
    if out is not None:
        write(out, allocation)
    told = {name: getattr(allocation, name) for name in ("value", "bound", "gap", "steps", "seconds")}
    return allocation, told | {"peak_mb": peak_mb()}


def arrays_of(path: Path | str, needed: tuple[str, ...] = NEEDED) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if file[name].dtype.kind in "iufb"}
    except (OSError, ValueError, EOFError, BadZipFile) as why:
        raise BadInput(f"{path}: not a readable .npz file ({why}).") from None
    if missing := [name for name in needed if name not in arrays]:
        raise BadInput(f"{path}: {missing[0]!r} is missing. The file needs: {', '.join(needed)}.")
    return arrays
