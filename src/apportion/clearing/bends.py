"""How loads bend with prices: blocks of resources for pairs of pools, and Newton's step from them.

A task bends the loads of its own pools alone, so a block is kept only for pools that some task may use both. Few prices are
solved for by Cholesky, many by conjugate gradients with each pool's own block as preconditioner: with a thousand pools most
blocks are empty, and a step need not be exact.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]
from scipy.sparse import bsr_matrix
from scipy.sparse.linalg import LinearOperator, cg

DENSE = 800  # prices up to which a factorisation is quicker
EXACT = 1e-3  # of the right-hand side: what is left of it where steps are iterated


class Bends:
    """H = D^-1 (sum of blocks) D^-1 with D = left; blocks are symmetric, kept for the later pool of a pair before the earlier."""

    def __init__(self, left: np.ndarray, meet: Iterable[np.ndarray]):
        """left: (pool, resource). meet: of each shard, which pools (later, earlier) some task may use both."""
        self.left, (pools, self.resources) = left, left.shape
        self.dense = left.size <= DENSE
        if self.dense:
            self.place, self.count = np.arange(pools * pools, dtype=np.uint32).reshape(pools, pools), pools * pools
            return
        both = np.logical_or.reduce([*meet, np.eye(pools, dtype=bool)])
        self.place = (np.cumsum(both) - 1).astype(np.uint32).reshape(pools, pools)  # unsigned: no wrap to check
        self.count = int(both.sum())
        later, earlier = np.nonzero(both)
        off = np.flatnonzero(later != earlier)
        row, column = np.append(later, earlier[off]), np.append(earlier, later[off])
        order = np.lexsort((column, row))
        self._slot = np.append(np.arange(self.count), off)[
            order
        ]  # of each block, above and below the diagonal, by rows
        self._column = column[order]
        self._row = row[order]

    def room(self) -> np.ndarray:
        """Give blocks to add into."""
        return np.zeros((self.count, self.resources, self.resources))

    def solve(
        self, blocks: np.ndarray, diagonal: np.ndarray, along: np.ndarray, stiff: float, slope: np.ndarray
    ) -> np.ndarray | None:
        """Solve (H + diagonal + along along' / stiff) step = slope; all vectors by (pool, resource). None if it can't be."""
        step = (self._factored if self.dense else self._iterated)(
            blocks, diagonal.ravel(), along.ravel(), stiff, slope.ravel()
        )
        return None if step is None else step.reshape(slope.shape)

    def _factored(self, blocks, more, along, stiff, slope):
        (pools, resources), size = self.left.shape, self.left.size
        blocks, unit = blocks.reshape(pools, pools, resources, resources).transpose(0, 2, 1, 3), 1.0 / self.left
        for lift in (0.0, 1e-9, 1e-6, 1e-3):
            h = np.multiply(blocks, unit[:, :, None, None], order="C")
            h *= unit
            h = h.reshape(size, size)
            if along.any():
                h += along[:, None] * (along / stiff)
            diagonal = h.reshape(-1)[:: size + 1]
            diagonal += (1.0 + lift) * more + (lift + 1e-10) * diagonal + 1e-12 * diagonal.mean()
            factor, failed = dpotrf(h.T, lower=0, clean=0, overwrite_a=1)  # in place: rows are Fortran's columns
            if not failed:
                return dpotrs(factor, slope, lower=0)[0]
        return None

    def _iterated(self, blocks, more, along, stiff, slope):
        (pools, resources), size = self.left.shape, self.left.size
        live = np.flatnonzero(
            (np.einsum("brr->b", blocks) != 0)[self._slot]
        )  # few tasks stand between two pools at a time
        begin = np.searchsorted(self._row[live], np.arange(pools + 1))
        h = bsr_matrix((blocks[self._slot[live]], self._column[live], begin), shape=(size, size))
        unit = 1.0 / self.left.ravel()
        own = blocks[self.place.diagonal()] / self.left[:, :, None] / self.left[:, None, :]
        diagonal = np.einsum("jrr->jr", own)
        lift = 1e-10 * diagonal + 1e-12 * diagonal.mean()
        diagonal += more.reshape(pools, resources) + lift
        inverse = np.linalg.inv(own)
        more = more + lift.ravel()

        def times(v: np.ndarray) -> np.ndarray:
            return unit * (h @ (unit * v)) + more * v + along * (float(along @ v) / stiff)

        def nearly(v: np.ndarray) -> np.ndarray:
            return np.einsum("jrs,js->jr", inverse, v.reshape(pools, resources)).ravel()

        # SciPy takes any callable; its types do not say so
        operators = [LinearOperator((size, size), matvec=f, dtype=float) for f in (times, nearly)]  # pyright: ignore
        step, _ = cg(operators[0], slope, rtol=EXACT, maxiter=300, M=operators[1])
        return step if np.isfinite(step).all() else None
