"""The answer to a market: shares, prices, and how far from optimal it can be."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Int

from apportion.core.market import Market
from apportion.core.units import SHARE, part


@dataclass(frozen=True, slots=True)
class Allocation:
    """Shares of one market, with their certificate.

    `share` counts whole 10^-9 parts (held as float64) and includes `market.free`; no pool is overfilled,
    exactly. `bound` is no less than any feasible allocation earns, whoever computed `price`.
    """

    market: Market
    share: Float[np.ndarray, " pair"]
    price: Float[np.ndarray, "pool resource"]  # credits per unit of demand and round; 0 where nothing is scarce
    objective: str  # what was maximised; a rule that maximises nothing gives its own name
    value: float
    bound: float
    gap: float  # 0 is optimal, .001 within 0.1 %: of the value, or of the weighted geometric mean of services
    steps: int = 0
    seconds: float = 0.0

    @property
    def parts(self) -> Int[np.ndarray, " pair"]:
        """Shares as whole 10^-9 parts: what is logged, enforced and charged."""
        return np.rint(self.share * SHARE).astype(np.int64)

    @property
    def granted(self) -> Int[np.ndarray, "pair resource"]:
        """What each pair is promised, in whole base units, rounded down."""
        return part(self.market.demand[self.market.row], self.parts[:, None])

    @property
    def served(self) -> Float[np.ndarray, " task"]:
        """The share of its demand that each task gets."""
        return self.market.per_task(self.share)

    @property
    def load(self) -> Float[np.ndarray, "pool resource"]:
        """What is used of each pool."""
        return self.market.load(self.share)

    def __repr__(self) -> str:
        if not (tables := self._tables()):
            return f"{self._head} of {self._summary}"
        tasks, pools = tables
        wide = max((len(name) for name, _ in [*tasks, *pools]), default=0)
        named = [f"{_line(r)} " for r in self.market.resources] or [""] * self.price.shape[1]
        rows = [f"  {name:<{max(16, wide)}} served {u:>6}" for name, u in tasks] or ["  no task"]
        for name, prices in pools:
            listed = ", ".join(f"{r}{p}" for r, p in zip(named, prices, strict=True))
            rows.append(f"  {name:<{max(16, wide)}} prices {listed}")
        return "\n".join([self._head, *rows])

    def _repr_html_(self) -> str:
        """Show the same in a notebook, as tables."""
        if not (tables := self._tables()):
            return f"<p>{escape(repr(self))}</p>"
        tasks, pools = tables
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{u}</td></tr>" for name, u in tasks)
        served = f"<table><tr><th>task</th><th>served</th></tr>{rows}</table>" if tasks else "<p>no task</p>"
        resources = self.market.resources or tuple(f"resource {r}" for r in range(self.price.shape[1]))
        heads = "".join(f"<th>{escape(r)}</th>" for r in resources)
        rows = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{p}</td>' for p in prices)}</tr>" for name, prices in pools
        )
        return f"<p>{escape(self._head)}</p>{served}<table><tr><th>price in</th>{heads}</tr>{rows}</table>"

    @property
    def _head(self) -> str:
        return f"Allocation({self.objective}: value {self.value:.6g}, bound {self.bound:.6g}, gap {self.gap:.2g})"

    @property
    def _summary(self) -> str:
        (n, m), served = (len(self.market.demand), len(self.market.capacity)), self.served
        told = f"{n} tasks in {m} pools"
        if n:
            told += f": {served.mean():.1%} of demand served on average, {served.min():.1%} at least"
        return f"{told}; {int((self.price > 0).sum())} of {self.price.size} prices are above 0"

    def _tables(self) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]] | None:
        """Give what each task is served and each pool's prices, by name; None where they are too many to read."""
        market, (n, m) = self.market, (len(self.market.demand), len(self.market.capacity))
        if max(n, m) > 20:
            return None
        tasks = [_line(name) for name in market.tasks] or [f"task {i}" for i in range(n)]
        pools = [_line(name) for name in market.pools] or [f"pool {j}" for j in range(m)]
        served = [(name, f"{u:.1%}") for name, u in zip(tasks, self.served, strict=True)]
        return served, [(pool, [f"{p:.4g}" for p in row]) for pool, row in zip(pools, self.price, strict=True)]


def _line(name: str) -> str:
    """Give a name as it is, or spelt out where it would break the line or steer a terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]
