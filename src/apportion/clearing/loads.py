"""What plans load on pools and what prices cost pairs: the products with A (demand over what is left)."""

from __future__ import annotations

import numpy as np

COMPILED = 50_000  # numbers to be added from which compiled loops are quicker, their import aside
DENSE = 400_000  # entries of A up to which plain matrices are quicker than compiled loops


def loads(demand: np.ndarray, pool: np.ndarray, left: np.ndarray) -> Dense | Sparse:
    """Give A for pairs with this demand (pair, resource) in these pools: dense where small."""
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(demand > 0, demand / left[pool], 0.0)
    return Dense(part, pool, left.shape) if part.shape[0] * left.size <= DENSE else Sparse(part, pool, left.shape)


def total(row: np.ndarray, pool: np.ndarray, demand: np.ndarray, x: np.ndarray, pools: int) -> np.ndarray:
    """Give what x of each pair uses of each pool and resource; demand by task."""
    if len(x) * demand.shape[1] >= COMPILED:
        from apportion.clearing import kernels

        return kernels.total(row, pool, demand, x, pools)
    used = [np.bincount(pool, weights=x * demand[row, r], minlength=pools) for r in range(demand.shape[1])]
    return np.array(used, float).reshape(demand.shape[1], pools).T


def least_factor(row: np.ndarray, pool: np.ndarray, demand: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Give, per pair, the least factor (pool, resource) among the resources that its task wants; 1 at most."""
    if len(pool) * demand.shape[1] >= COMPILED:
        from apportion.clearing import kernels

        return kernels.least_factor(row, pool, demand, factor)
    return np.where(demand[row] > 0, factor[pool], 1.0).min(axis=1, initial=1.0)


class Dense:
    """A as a matrix, (pool resource) by pair."""

    def __init__(self, part: np.ndarray, pool: np.ndarray, shape: tuple[int, int]):
        self.size, self.shape, self.pool = shape[0] * shape[1], shape, pool
        self.a = np.zeros((*shape, len(pool)))
        self.a[pool, :, np.arange(len(pool))] = part
        self.a = self.a.reshape(self.size, len(pool))

    def load(self, z: np.ndarray) -> np.ndarray:
        return self.a @ z

    def cost(self, lam: np.ndarray) -> np.ndarray:
        return lam @ self.a

    def room(self, z: np.ndarray, most: float) -> np.ndarray:
        """Give, per pair, the factor at which its pool is loaded to `most`."""
        return _room(self.load(z).reshape(self.shape), most)[self.pool]

    def gram(self, start, row, root, q1, q2, p11, p12, p22) -> np.ndarray:
        """Give A B A', B = root (I - QQ' + Q P Q') root for each task, Q = [q1 q2]."""
        y = self.a * root
        first, second = np.add.reduceat(y * q1, start, axis=1), np.add.reduceat(y * q2, start, axis=1)
        y -= first[:, row] * q1
        y -= second[:, row] * q2
        cross = (first * p12) @ second.T
        return y @ y.T + (first * p11) @ first.T + (second * p22) @ second.T + cross + cross.T


class Sparse:
    """A as one row of amounts per pair, with compiled loops."""

    def __init__(self, part: np.ndarray, pool: np.ndarray, shape: tuple[int, int]):
        from apportion.clearing import kernels  # compiled: small problems never wait for it

        self.size, self.shape, self.pool, self.part, self.kernels = shape[0] * shape[1], shape, pool, part, kernels

    def load(self, z: np.ndarray) -> np.ndarray:
        return self.kernels.load(self.part, self.pool, z, self.shape[0]).ravel()

    def cost(self, lam: np.ndarray) -> np.ndarray:
        return self.kernels.cost(self.part, self.pool, lam.reshape(self.shape))

    def room(self, z: np.ndarray, most: float) -> np.ndarray:
        return _room(self.load(z).reshape(self.shape), most)[self.pool]

    def gram(self, start, row, root, q1, q2, p11, p12, p22) -> np.ndarray:
        stop = np.append(start[1:], len(row))
        return self.kernels.gram(start, stop, self.part, self.pool, root, q1, q2, p11, p12, p22, self.shape[0])


def _room(load: np.ndarray, most: float) -> np.ndarray:
    return most / np.maximum(load.max(axis=1), 1e-300)
