"""Problem files and allocation files: what goes in comes out, certified, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_clearing import fits, large

from apportion.clearing.clear import clear
from apportion.clearing.files import allocate, read, warm
from apportion.core.errors import BadInput
from apportion.core.market import Market


def save(path: Path, market: Market, **more: np.ndarray) -> Path:
    np.savez(
        path,
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
    return path


@pytest.mark.parametrize("objective", ["proportional", "welfare", "maxmin", "leximin", "drf", "experience"])
def test_a_problem_file_is_cleared_and_its_answer_written(objective: str, tmp_path: Path):
    market = large(30, 4 + 3, 3, floors=True)
    kind, curve = np.arange(30) % 3, np.tile([0.7, 1.0], (30, 1))
    problem = save(tmp_path / "problem.npz", market, curve_kind=kind, curve=curve)
    allocation, told = allocate(problem, objective, out=tmp_path / "allocation.npz")
    assert fits(allocation)
    assert list(told) == ["value", "bound", "gap", "steps", "seconds", "peak_mb"]
    assert 0 <= told["gap"] <= 1e-3
    written = np.load(tmp_path / "allocation.npz")
    share = np.zeros(len(market.indices))
    share[np.isin(market.row * 7 + market.indices, written["i"] * 7 + written["j"])] = written["x"]
    assert (share == allocation.share).all()
    if "y" in written:
        assert written["y"] @ market.weight > 0


@pytest.mark.parametrize("objective", ["proportional", "welfare"])
def test_an_unchanged_problem_moves_no_share(objective: str, tmp_path: Path):
    market = large(500, 9, 4)
    problem = save(tmp_path / "problem.npz", market)
    first, _ = allocate(problem, objective, out=tmp_path / "allocation.npz")
    again, told = allocate(problem, objective, last=tmp_path / "allocation.npz")
    assert (again.share == first.share).all()
    assert told["steps"] == 0


def test_a_warm_start_goes_on_from_the_last_prices():
    """Demand moves a little: the last shares no longer fit or do, the last prices are near."""
    market = large(2000, 12, 5)
    cold = clear(market)
    rng = np.random.default_rng(0)
    pairs = {"indptr": market.indptr, "indices": market.indices}
    moved = Market(
        market.demand * rng.lognormal(0, 0.3, (2000, 1)), market.capacity, market.weight, market.value, **pairs
    )
    after = clear(moved, warm=cold)
    assert fits(after)
    assert after.gap <= 1e-3
    assert after.steps < clear(moved).steps


def test_files_that_describe_no_problem_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="not a readable"):
        read(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match="not a readable"):
        read(tmp_path / "text.npz")
    np.savez(tmp_path / "half.npz", d=np.ones((1, 1)))
    with pytest.raises(BadInput, match="'C' is missing"):
        read(tmp_path / "half.npz")
    market = large(30, 7, 3)
    problem = save(tmp_path / "plain.npz", market)
    with pytest.raises(BadInput, match="no curve_kind"):
        allocate(problem, "experience")
    np.savez(tmp_path / "other.npz", i=[0], j=[0], x=[1.0], p=np.ones((2, 2)))
    with pytest.raises(BadInput, match="p has shape"):
        warm(tmp_path / "other.npz", market, "welfare")
