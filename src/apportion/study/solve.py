"""One solve in a process of its own, for `bench`: a problem file, an objective, a solver and a gap in, one JSON object out.

From arrays in memory to shares in memory; what is imported and compiled is so before the clock, and the median counts where a
solve is quick. Then the shares are repaired plainly and certified at the solver's own prices, ours and theirs alike.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from apportion.clearing import files
from apportion.clearing.certificate import certify
from apportion.clearing.clear import clear
from apportion.clearing.objectives import pose
from apportion.clearing.repair import repair
from apportion.core.market import Market
from apportion.core.memory import peak_mb
from apportion.core.units import SHARE
from apportion.study.peers import PEERS, Found

OURS = "apportion"
QUICK, MOST = 0.3, 7  # seconds and runs: a quick solve is run again until one of them is spent


def solved(file: str, objective: str, solver: str, gap: float) -> dict[str, float | None]:
    """Solve one problem file on this thread; give what Row asks of a solve."""
    arrays = files.arrays_of(file)
    market = files.market_of(file, arrays)
    if solver == OURS:
        files.load(file, arrays, objective)
    else:
        PEERS[solver].solve(files.market_of(file, files.some(arrays, min(60, len(market.demand)))), objective, gap)

    start, took = peak_mb(), []
    while True:
        begun = time.process_time()
        share, price = _once(market, objective, solver, gap)
        took.append(time.process_time() - begun)
        if sum(took) >= QUICK or len(took) == MOST:
            break
        del share, price  # the last answer is not the next one's memory
    told = {"cpu_seconds": median(took), "runs": len(took), "start_mb": start, "peak_mb": peak_mb()}
    sale, goal = pose(market, objective)
    share = repair(sale, share, goal.weight if goal.needy else None) / SHARE if solver != OURS else share
    if price is None:
        return told | {"value": _number(goal.value(sale.bought(share)))}
    proof = certify(sale, goal, share, price)
    return told | {"value": _number(proof["value"]), "bound": _number(proof["bound"]), "gap": _number(proof["gap"])}


def _once(market: Market, objective: str, solver: str, gap: float) -> Found:
    if solver != OURS:
        return PEERS[solver].solve(market, objective, gap)
    found = clear(market, objective, gap)
    return found.share, found.price


def save(file: Path, market: Market, **more: Any) -> Path:
    """Write a market as a problem file, and more arrays, such as its curves."""
    np.savez(
        file,
        d=market.demand,
        C=market.capacity,
        w=market.weight,
        v_indptr=market.indptr,
        v_indices=market.indices,
        v_data=market.value,
        floor=market.floor,
        cap=market.cap,
        mean=market.mean,
        eta=market.eta,
        **more,
    )
    return file


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


if __name__ == "__main__":
    file, objective, solver, gap = sys.argv[1:]
    print(json.dumps(solved(file, objective, solver, float(gap))))
