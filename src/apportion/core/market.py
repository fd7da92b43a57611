"""Who wants what, and what there is: Tasks and Pools as the world states them, Market as clearing reads it.

Arrays, one per field; row i is always the same task (i), row j the same pool (j), column r the same
resource. Eligible (task, pool) pairs are a sparse list in row order (CSR): pair e of task i lies between
indptr[i] and indptr[i+1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from apportion.core.errors import BadMarket
from apportion.core.units import SHARE

LEAST, MOST = 1e-50, 1e50  # tried: beyond, products, squares and sums of clearing begin to leave float64


@dataclass(frozen=True, slots=True)
class Tasks:
    """What n tasks want in one round. Amounts are whole base units, held as float64."""

    name: tuple[str, ...]
    kind: tuple[str, ...]
    account: Int[np.ndarray, " task"]  # row of the account that pays
    sponsor: Int[np.ndarray, " task"]  # row of the account that pays for the floor; -1: nobody
    demand: Float[np.ndarray, "task resource"]  # wanted now
    base: Float[np.ndarray, "task resource"]  # wanted on an ordinary day
    surge: Float[np.ndarray, " task"]  # what events multiply the load by; 1 on an ordinary day
    floor: Float[np.ndarray, " task"]  # promised share of `demand`
    cap: Float[np.ndarray, " task"]  # largest share of `demand` that is of use
    weight: Float[np.ndarray, " task"]  # importance inside its account
    priority: Int[np.ndarray, " task"]  # whose floor is kept longest when floors cannot all be kept
    target: Float[np.ndarray, " task"]  # experience below it is a service-level miss
    eligible: tuple[tuple[int, ...], ...]  # rows of the pools each task may use


@dataclass(frozen=True, slots=True)
class Pools:
    """What m pools can give in one round."""

    name: tuple[str, ...]
    resources: tuple[str, ...]
    capacity: Float[np.ndarray, "pool resource"]  # whole base units


@dataclass(frozen=True, slots=True, init=False)
class Market:
    """One round's problem: choose shares x >= 0 of eligible pairs within floors, caps and capacities.

        floor_i <= sum_j x_ij <= cap_i,      sum_i demand_ir x_ij <= capacity_jr,
        u_i = sum_j value_ij (x_ij - free_ij)      what i buys; clearing maximises sum_i f_i(u_i)

    `free` is what guarantees already give; it is served but not for sale, and x >= free.
    """

    demand: Float[np.ndarray, "task resource"]
    capacity: Float[np.ndarray, "pool resource"]
    weight: Float[np.ndarray, " task"]  # the bid, in credits; 0 buys nothing
    indptr: Int[np.ndarray, " task+1"]
    indices: Int[np.ndarray, " pair"]  # the pool of each pair
    value: Float[np.ndarray, " pair"]  # in (0, 1]: what a share there is worth to its task
    floor: Float[np.ndarray, " task"]
    cap: Float[np.ndarray, " task"]
    mean: Float[np.ndarray, " task"]  # what was used lately, as a share
    eta: float  # weight of this round against `mean`; 1 has no memory
    free: Float[np.ndarray, " pair"]
    tasks: tuple[str, ...]
    pools: tuple[str, ...]
    resources: tuple[str, ...]

    def __init__(
        self,
        demand: ArrayLike,
        capacity: ArrayLike,
        weight: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        indptr: ArrayLike | None = None,
        indices: ArrayLike | None = None,
        floor: ArrayLike | None = None,
        cap: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        eta: float = 1.0,
        free: ArrayLike | None = None,
        tasks: Sequence[str] | None = None,
        pools: Sequence[str] | None = None,
        resources: Sequence[str] | None = None,
    ):
        """Build and check a market.

        value: dense (task, pool), 0 = not eligible; or, with indptr and indices, one number per pair; or None:
        every pool serves every task alike. Raises BadMarket, naming the first offending number.
        """
        put = lambda name, x: object.__setattr__(self, name, x)  # noqa: E731
        demand, capacity = _matrix("demand", demand), _matrix("capacity", capacity)
        n, m = len(demand), len(capacity)
        if demand.shape[1] != capacity.shape[1]:
            raise BadMarket(
                f"demand has {demand.shape[1]} resources and capacity has {capacity.shape[1]}: give both one column per resource."
            )
        if indptr is None or indices is None:
            dense = np.ones((n, m)) if value is None else _numbers("value", value)
            if dense.shape != (n, m):
                raise BadMarket(f"value has shape {dense.shape}, not (tasks, pools) = {(n, m)}.")
            row, indices = np.nonzero(dense != 0)
            indptr, value = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]), dense[row, indices]
        indices = _rows("indices", indices, m, f"the row of a pool (there are {m}, counted from 0)", np.int32)
        e = len(indices)
        indptr = _rows("indptr", indptr, e + 1, f"a place in the list of pairs (there are {e})")
        if indptr.shape != (n + 1,) or indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != e:
            raise BadMarket(
                f"indptr must rise from 0 to the number of pairs, one step per task (tasks: {n}, pairs: {e});"
                f" it has {len(indptr)} numbers" + (f", from {indptr[0]} to {indptr[-1]}." if len(indptr) else ".")
            )
        put("demand", demand)
        put("capacity", capacity)
        put("weight", _vector("weight", weight, n, 1.0, LEAST))
        put("indptr", indptr)
        put("indices", indices)
        put("value", _vector("value", value, e, 1.0, LEAST))
        put("floor", _vector("floor", floor, n, 0.0))
        put("cap", _vector("cap", cap, n, 1.0))
        put("mean", _vector("mean", mean, n, 0.0))
        put("eta", float(eta))
        put("free", _vector("free", free, e, 0.0))
        put("tasks", _names("tasks", tasks, n))
        put("pools", _names("pools", pools, m))
        put("resources", _names("resources", resources, demand.shape[1]))
        self._check()

    def _check(self) -> None:
        if e := _again(self.indptr, self.indices):
            raise BadMarket(
                f"indices[{e}] names pool {self.indices[e]} again for {self._task(int(self.row[e]))}: give it once."
            )
        if e := _first(self.value <= 0):
            raise BadMarket(
                f"value of {self._pair(e[0])} is {self.value[e]}: it must be above 0. To keep a task out of a pool, drop the pair."
            )
        if i := _first(self.cap > 1):
            raise BadMarket(f"cap of {self._task(i[0])} is {self.cap[i]}: a share is at most 1.")
        if i := _first(self.floor > self.cap):
            raise BadMarket(
                f"floor of {self._task(i[0])} is {self.floor[i]}, above its cap {self.cap[i]}: lower the floor or raise the cap."
            )
        if not LEAST <= self.eta <= 1:
            raise BadMarket(f"eta is {self.eta}: it must lie in (0, 1], and not below {LEAST}; 1 means no memory.")

    def _task(self, i: int) -> str:
        return f"task {i} ({self.tasks[i]!r})" if self.tasks else f"task {i}"

    def _pair(self, e: int) -> str:
        i, j = int(self.row[e]), int(self.indices[e])
        return f"{self._task(i)} in pool {self.pools[j]!r}" if self.pools else f"{self._task(i)} in pool {j}"

    @property
    def row(self) -> Int[np.ndarray, " pair"]:
        """The task of each pair."""
        return np.repeat(np.arange(len(self.demand)), np.diff(self.indptr))

    @property
    def free_parts(self) -> Int[np.ndarray, " pair"]:
        """What guarantees give for nothing, in whole 10^-9 parts."""
        return np.rint(self.free * SHARE).astype(np.int64) if self.free.any() else np.zeros(len(self.free), np.int64)

    def per_task(self, x: Shaped[np.ndarray, "pair ..."]) -> Float[np.ndarray, "task ..."]:
        """Sum over each task's pairs; 0 for a task that has none."""
        some = self.indptr[1:] > self.indptr[:-1]
        if some.all() and len(some):
            return np.add.reduceat(x, self.indptr[:-1], axis=0, dtype=float)
        out = np.zeros((len(some), *x.shape[1:]))
        if some.any():
            out[some] = np.add.reduceat(x, self.indptr[:-1][some], axis=0, dtype=float)
        return out

    def load(self, share: Shaped[np.ndarray, " pair"]) -> Float[np.ndarray, "pool resource"]:
        """What shares use of each pool and resource."""
        row, out = self.row, np.empty(self.capacity.shape)
        for r in range(self.demand.shape[1]):
            out[:, r] = np.bincount(self.indices, weights=share * self.demand[row, r], minlength=len(self.capacity))
        return out


def _matrix(name: str, x: ArrayLike) -> np.ndarray:
    x = _numbers(name, x)
    if x.ndim != 2:
        raise BadMarket(
            f"{name} has {x.ndim} axes, not 2: one row per {'task' if name == 'demand' else 'pool'}, one column per resource."
        )
    return _sound(name, x, LEAST)


def _vector(name: str, x: ArrayLike | None, length: int, default: float, least: float = 0.0) -> np.ndarray:
    if x is None:
        return np.broadcast_to(np.float64(default), (length,))  # one number, however many ask for it
    x = _numbers(name, x)
    if x.shape != (length,):
        raise BadMarket(f"{name} has shape {x.shape}, not ({length},).")
    return _sound(name, x, least)


def _numbers(name: str, x: ArrayLike) -> np.ndarray:
    """Give a copy in float64; text, dates and complex numbers are none of ours."""
    try:
        x = np.asarray(x)
        if x.dtype.kind in "iufbO":
            return np.array(x, np.float64)
        why = f"it holds {x.dtype}"
    except (TypeError, ValueError, OverflowError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
    raise BadMarket(f"{name} must be numbers, in rows of equal length: {why}.")


def _sound(name: str, x: np.ndarray, least: float) -> np.ndarray:
    """Refuse what is no size (nan, inf, below 0), and sizes at which sums and products would leave float64."""
    if bad := _first(~((x == 0) | ((x >= least) & (x <= MOST)))):
        where, size = f"{name}{list(bad)} is {x[bad]}", float(x[bad])
        if not (np.isfinite(size) and size >= 0):
            raise BadMarket(f"{where}: it must be finite and at least 0.")
        limit = f"at most {MOST:g}" if size > MOST else f"0, or at least {least:g}"
        raise BadMarket(f"{where}: it must be {limit}. Another unit may bring it there.")
    return x


def _rows(name: str, x: ArrayLike, end: int, what: str, kind: type = np.int64) -> np.ndarray:
    """Give whole numbers from 0 up to, and without, `end`; checked before anything is cut off or wraps."""
    x = np.asarray(x)
    if x.ndim != 1 or x.dtype.kind not in "iuf":
        raise BadMarket(f"{name} holds {x.dtype} in {x.ndim} axes: it must be a list of whole numbers.")
    plain = x.dtype.kind != "f" and (not len(x) or (x.min() >= 0 and x.max() < end))
    if not plain and (bad := _first(~((x >= 0) & (x < end) & (x == np.floor(x))))):
        raise BadMarket(f"{name}{list(bad)} is {x[bad]}: it must be {what}.")
    return x.astype(np.int64 if end > 2**31 else kind, copy=False)


def _again(indptr: np.ndarray, indices: np.ndarray) -> int:
    """Give a pair whose task names its pool before; 0 (the first pair, which cannot) where there is none."""
    rises, begins = indices[1:] > indices[:-1], indptr[1:-1]
    rises[begins[(begins > 0) & (begins < len(indices))] - 1] = True
    if rises.all():  # in order, as most are: no need to sort
        return 0
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((indices, row))
    same = np.flatnonzero((np.diff(row[order]) == 0) & (np.diff(indices[order]) == 0))
    return int(order[same + 1].min(initial=len(indices))) % len(indices)


def _names(what: str, names: Sequence[str] | None, length: int) -> tuple[str, ...]:
    """Names are for people: none at all is fine, a wrong number is not."""
    names = tuple(names or ())
    if names and len(names) != length:
        raise BadMarket(f"{len(names)} names for {length} {what}.")
    if len(set(names)) != len(names):
        raise BadMarket(f"two {what} share a name: {sorted(n for n in set(names) if names.count(n) > 1)[0]!r}.")
    return names


def _first(wrong: np.ndarray) -> tuple[int, ...] | None:
    where = np.argwhere(wrong)
    return tuple(int(k) for k in where[0]) if len(where) else None
