"""Problem files in, allocation files out (.npz): markets for those who bring their own arrays.

problem      d (N,R)  C (M,R)  w (N,)  v_indptr v_indices v_data: v by rows, N x M
             optional floor cap mean (N,), eta, curve_kind (N,) and curve (N,K): see `curves.Curves`
allocation   i j x: shares, the pairs that have one;  p (M,R);  y (N,) for max-min: what bounds the least service
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from apportion.clearing import attention
from apportion.clearing.certificate import best_slope
from apportion.clearing.clear import LARGE, clear
from apportion.clearing.curves import experience
from apportion.clearing.objectives import Objective, pose
from apportion.clearing.sale import Sale
from apportion.clearing.shards import UNROLL
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput, BadMarket
from apportion.core.files import replacing
from apportion.core.market import MOST, Market
from apportion.core.memory import peak_mb

MOST_PRICE = 1e100  # credits per unit; tried: clearing can begin from these
Arrays = dict[str, np.ndarray]
NEEDED = ("d", "C", "w", "v_indptr", "v_indices", "v_data")
OPTIONAL = ("floor", "cap", "mean", "eta", "curve_kind", "curve")
NAMES = {"demand": "d", "capacity": "C", "weight": "w", "indptr": "v_indptr", "indices": "v_indices", "value": "v_data"}
Curves = Callable[[Sale], Objective]
UNREADABLE = (  # what zipfile and NumPy raise on bytes that are no archive, or a damaged one
    OSError, ValueError, EOFError, BadZipFile, RuntimeError, MemoryError, OverflowError, KeyError,
    struct.error, zlib.error, LZMAError, SyntaxError, TokenError,
)  # fmt: skip


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
    with _named(path):
        return Market(
            arrays["d"],
            arrays["C"],
            arrays["w"],
            arrays["v_data"],
            indptr=arrays["v_indptr"],
            indices=arrays["v_indices"],
            **optional,
        )


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Say what is wrong with a market in its file's own names."""
    try:
        yield
    except BadMarket as error:
        told = re.sub(r"^\w+|\w+(?= has )", lambda word: NAMES.get(word[0], word[0]), str(error))
        raise BadMarket(f"{path}: {told}") from None


def _curves(path: Path | str, arrays: Arrays) -> Curves | None:
    if not {"curve_kind", "curve"} & set(arrays):
        return None
    if lacks := {"curve_kind", "curve"} - set(arrays):
        raise BadInput(f"{path} has no {lacks.pop()}: give both curve_kind (N,) and curve (N,K), or leave out both.")
    kind, curve, tasks = arrays["curve_kind"], arrays["curve"], len(arrays["w"])
    if kind.shape != (tasks,) or curve.ndim not in (1, 2) or len(curve) != tasks:
        raise BadInput(
            f"{path}: curve_kind and curve have shapes {kind.shape} and {curve.shape}:"
            f" give each task one number and one row (tasks: {tasks})."
        )
    try:
        return experience(kind, curve)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


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


def warm(path: Path | str, market: Market, objective: str) -> Allocation | np.ndarray:
    """Give an allocation file as the last answer to this market; its prices alone where it shares pairs that are no more."""
    arrays = arrays_of(path, ("i", "j", "x", "p"))
    i, j, x, p = (arrays[name] for name in ("i", "j", "x", "p"))
    if not i.shape == j.shape == x.shape == (i.size,):
        raise BadInput(
            f"{path}: i, j and x are three equally long lists; they have shapes {i.shape}, {j.shape} and {x.shape}."
        )
    if p.shape != market.capacity.shape:
        raise BadInput(
            f"{path}: p has shape {p.shape}, and the problem has (pools, resources) = {market.capacity.shape}:"
            " it answers another problem. Leave --warm out."
        )
    tasks, pools = len(market.demand), len(market.capacity)
    for name, right, what in (
        ("i", _rows(i, tasks), f"a row of the problem's {tasks} tasks"),
        ("j", _rows(j, pools), f"a row of the problem's {pools} pools"),
        ("x", (x >= 0) & (x <= 1), "a share, from 0 to 1"),
        ("p", (p >= 0) & (p <= MOST_PRICE), f"a price, from 0 to {MOST_PRICE:g}"),
    ):
        for at in np.argwhere(~right)[:1].tolist():
            wrong = f"{name}{at} is {arrays[name][tuple(at)]}, not {what}"
            raise BadInput(f"{path}: {wrong}. To begin without it, leave --warm out.")
    price = np.array(p, float)
    pair, given = market.row * pools + market.indices, i.astype(np.int64) * pools + j.astype(np.int64)
    if not len(pair):
        return price
    order = np.argsort(pair, kind="stable")
    at = order[np.searchsorted(pair, given, sorter=order).clip(max=len(pair) - 1)]
    if (pair[at] != given).any():
        return price
    if len(np.unique(given)) < len(given):
        raise BadInput(f"{path}: i and j name a pair twice: give each pair one share.")
    share = np.zeros(len(pair))
    share[at] = x
    return Allocation(market, share, price, objective, 0.0, np.inf, np.inf)


def _rows(x: np.ndarray, end: int) -> np.ndarray:
    return (x >= 0) & (x < end) & (x == np.floor(x))


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
    with _named(problem):
        found = clear(market, goal, gap, before, threads)
    return _told(found, out)


def load(problem: Path | str, arrays: Arrays, objective: str, threads: int = 1) -> None:
    """Have all that is compiled loaded (the first time ever: compiled), by clearing a small part of a large problem."""
    pairs, resources = int(arrays["v_indptr"][-1]), max(arrays["d"].shape[1], 1)
    size = (
        UNROLL if pairs * resources >= UNROLL else LARGE
    ) // resources + 1  # as large as it takes to run the same loops
    if pairs < size:
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
    if (wrong := score[~(np.abs(score) <= MOST)]).size:
        raise BadInput(
            f"{problem}: v_data holds {wrong[0]}: scores lie within -{MOST:g} and {MOST:g}. To keep a task out of a pool, drop the pair."
        )
    market = market_of(problem, arrays | {"v_data": np.ones_like(score)})
    with _named(problem):
        found = attention.serve_all(market, score, temperature)
    return _told(found, out)


def _told(allocation: Allocation, out: Path | str | None) -> tuple[Allocation, dict[str, float]]:
    if out is not None:
        write(out, allocation)
    told = {name: getattr(allocation, name) for name in ("value", "bound", "gap", "steps", "seconds")}
    return allocation, told | {"peak_mb": peak_mb()}


def arrays_of(path: Path | str, needed: tuple[str, ...] = NEEDED, optional: tuple[str, ...] = OPTIONAL) -> Arrays:
    """Read the arrays that we know, and look at no others. Nothing pickled is ever loaded. Raises BadInput."""
    try:
        with ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            for name in needed:
                if name not in there:
                    raise BadInput(
                        f"{path}: {name!r} is missing. The file needs: {', '.join(needed)};"
                        f" it holds: {ascii(', '.join(there))[1:-1][:100] or 'no array'}."
                    )
            for name in there:  # others are the user's own, unless one looks like a slip
                if name not in (*needed, *optional) and (meant := name.lower().removesuffix("s")) in optional:
                    raise BadInput(f"{path}: {name!r} is not read: call it {meant!r}, or something else altogether.")
            return {name: _array(path, archive, name) for name in (*needed, *optional) if name in there}
    except UNREADABLE as why:
        hint = "Check the path." if isinstance(why, OSError) else "np.savez writes such files."
        raise BadInput(f"{path}: not a readable .npz file ({_reason(why)}). {hint}") from None


def _array(path: Path | str, archive: ZipFile, name: str) -> np.ndarray:
    """Read one array, after its header is seen to hold numbers, and to claim no more of them than there are."""
    try:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            first = np.lib.format.read_magic(file) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
        if dtype.kind not in "iufb":
            kind = "Python objects (pickled, never loaded)" if dtype.hasobject else str(dtype)
            raise BadInput(f"{path}: {name} holds {kind}, not numbers. Save it as np.asarray({name}, float).")
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise BadInput(
                f"{path}: {name} says that its shape is {shape}, and holds {member.file_size} bytes: write it anew."
            )
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except UNREADABLE as why:
        raise BadInput(f"{path}: {name} cannot be read ({_reason(why)}): write it anew, with np.savez.") from None


def _reason(why: BaseException) -> str:
    """Give what went wrong in a few words."""
    text = why.strerror if isinstance(why, OSError) else str(why.args[0]) if why.args else None
    return (text or type(why).__name__).partition("\n")[0][:100].rstrip(".")
