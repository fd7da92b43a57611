"""A game, a social network and a trading post share two pools: attention overfills them, prices make them fit.

Run it: python examples/three_tasks.py
"""

import numpy as np

from apportion import Market, clear
from apportion.clearing.rules import literal
from apportion.valuing.projection import scores

tasks, pools, resources = ["game", "social", "trade"], ["eu", "us"], ["cpu", "memory"]
market = Market(
    demand=[[8, 4], [3, 9], [5, 5]],  # cores, GiB: launch day, everybody wants much
    capacity=[[6, 8], [4, 4]],
    weight=[2, 1, 1],  # credits that each bids
    value=[[1.0, 0.4], [0.9, 1.0], [0.7, 1.0]],  # a share is worth more where the players are
    floor=[0.25, 0, 0],  # the game always gets a quarter of what it wants
    tasks=tasks,
    pools=pools,
    resources=resources,
)

# Plain attention, R_i = sum_j softmax(q_i.k_j / sqrt(d_k)) C_j: each row of weights sums to 1, a pool's column does not.
granted, taken = literal(market, scores(market, seed=1))
print("plain attention gives")
for name, row in zip(tasks, granted, strict=True):
    print(f"  {name:<7}", ", ".join(f"{x:.1f} {r}" for x, r in zip(row, resources, strict=True)))
overfill = float((taken / market.capacity).max())
print(f"and the worst pool is overfull: {overfill:.2f} times what it has\n")

# A price per resource puts back what attention lacks: who takes a pool pays for it, and so everything fits.
allocation = clear(market)
print("prices that make it fit give")
for i, name in enumerate(tasks):
    where = slice(market.indptr[i], market.indptr[i + 1])
    shares = ", ".join(
        f"{s:.1%} in {pools[j]}" for s, j in zip(allocation.share[where], market.indices[where], strict=True)
    )
    print(f"  {name:<7} served {allocation.served[i]:.1%}: {shares}")
for name, row, load, capacity in zip(pools, allocation.price, allocation.load, market.capacity, strict=True):
    each = (f"{r} {p:.3f} (used {u / c:.1%})" for r, p, u, c in zip(resources, row, load, capacity, strict=True))
    print(f"  {name:<7} price of", ", ".join(each))
assert np.all(allocation.load <= market.capacity)
print(f"certified: no allocation at all is better by more than {allocation.gap:.1e}")
