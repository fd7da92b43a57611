"""Some of the tasks, as arrays that a pass goes over: what one thread, or one machine, keeps of a market."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from apportion.clearing.sale import Sale

UNROLL = 20_000  # pairs times resources: from here on a loop made for this number of resources is worth its compiling


@dataclass
class Shard:
    """Some of the tasks that are priced: rows of a sale that may buy, without the pairs that may not."""

    pairs: np.ndarray | slice  # of the sale; a slice where none is left out
    indptr: np.ndarray
    pool: np.ndarray
    rate: np.ndarray  # of each pair: its value, or where service has a price 1/value, what a unit of it takes
    demand: np.ndarray
    left: np.ndarray  # (pool, resource); 1 where nothing is left and nobody may buy
    weight: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    kind: np.ndarray  # of each task's worth
    own: np.ndarray  # (task, numbers): what its worth is made of; `sweeps` tells
    row: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the tasks' row prices, kept between passes
    unit: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the tasks' temperatures
    unrolled: tuple[int, ...] | None = (
        None  # its length is the number of resources, which the compiler then knows, or 0
    )

    def __post_init__(self):
        pools, resources = self.left.shape
        self.row = self.row if len(self.row) else np.zeros(len(self.weight))
        self.unit = self.unit if len(self.unit) else np.ones(len(self.weight))
        self.load, self.along = np.zeros((pools, resources)), np.zeros((pools, resources))
        self.blocks = np.zeros((0, 0, 0))  # as large as they are only where they are asked for
        if self.unrolled is None:  # a part of a market runs the loops that the whole does
            self.unrolled = tuple(range(resources)) if len(self.pool) * resources >= UNROLL else ()
        self.bulk = (self.demand / self.left.sum(axis=0)).max(axis=1, initial=0.0)

    @classmethod
    def of(
        cls,
        sale: Sale,
        weight: np.ndarray,
        kind: np.ndarray | None = None,
        own: np.ndarray | None = None,
        *,
        priced: bool = True,
    ) -> Shard:
        """Give all tasks of a sale. priced: service has a price."""
        kind = np.zeros(len(weight), np.int8) if kind is None else kind
        own = np.zeros((len(weight), 0)) if own is None else own
        market = sale.market
        buys = sale.enters | (sale.lower > 0)
        if sale.usable.all() and buys.all():
            rows, pairs, indptr = slice(0, len(buys)), slice(0, len(sale.value)), market.indptr
        else:
            pairs = np.flatnonzero(sale.usable & buys[sale.row])
            count = np.bincount(sale.row[pairs], minlength=len(buys))
            rows = np.flatnonzero(count)
            indptr = np.concatenate([[0], np.cumsum(count[rows])])
        value = sale.value[pairs]
        return cls(
            pairs,
            indptr,
            market.indices[pairs].view(np.uint32),  # unsigned: no wrap to check
            1.0 / value if priced else value,
            market.demand[rows],
            np.where(sale.left > 0, sale.left, 1.0),
            weight[rows],
            sale.lower[rows],
            sale.upper[rows],
            kind[rows],
            own[rows],
        )

    def split(self, count: int) -> list[Shard]:
        """Divide the tasks among `count` shards, as many pairs to each; nothing is copied."""
        if count == 1:
            return [self]
        cut = np.searchsorted(self.indptr, np.linspace(0, self.indptr[-1], count + 1)).clip(0, len(self.weight))
        return [self._some(slice(int(a), int(b))) for a, b in pairwise(cut) if b > a]

    def _some(self, rows: slice) -> Shard:
        pairs = slice(int(self.indptr[rows.start]), int(self.indptr[rows.stop]))
        per_task = {name: getattr(self, name)[rows] for name in ("demand", "weight", "lower", "upper", "kind", "own")}
        per_pair = {name: getattr(self, name)[pairs] for name in ("pool", "rate")}
        mine = self.pairs
        if isinstance(mine, slice):
            per_pair["pairs"] = slice(mine.start + pairs.start, mine.start + pairs.stop)
        else:
            per_pair["pairs"] = mine[pairs]
        indptr = self.indptr[rows.start : rows.stop + 1] - pairs.start
        return replace(self, indptr=indptr, row=self.row[rows], unit=self.unit[rows], **per_task, **per_pair)

    def keep(self, chance: np.ndarray, weigh: bool, rng: np.random.Generator) -> Shard:
        """Keep a task with its chance; a kept one stands for 1/chance copies, which weigh as much as all did, if they weigh."""
        kept = np.flatnonzero(rng.random(len(chance)) < chance)
        copies = 1.0 / chance[kept]
        copies *= self.weight.sum() / max(float(self.weight[kept] @ copies), 1e-300)
        count = np.diff(self.indptr)[kept]
        indptr = np.concatenate([[0], np.cumsum(count)])
        pairs = np.repeat(self.indptr[kept] - indptr[:-1], count) + np.arange(indptr[-1])
        per_task = {name: getattr(self, name)[kept] for name in ("lower", "upper", "kind", "own", "row", "unit")}
        per_pair = {name: getattr(self, name)[pairs] for name in ("pool", "rate")}
        return replace(
            self,
            pairs=pairs,
            indptr=indptr,
            demand=self.demand[kept] * copies[:, None],
            weight=self.weight[kept] * copies if weigh else self.weight[kept],
            **per_task,
            **per_pair,
        )
