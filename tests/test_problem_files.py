"""Problem files and allocation files: what goes in comes out, certified, and what is wrong is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clearing import fits, large

from apportion.clearing.clear import clear
from apportion.clearing.curves import experience
from apportion.clearing.files import allocate, read, warm
from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput
from apportion.core.market import MOST, Market
from apportion.study.solve import save


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


def test_a_last_answer_is_told_from_one_whose_pairs_are_no_more(tmp_path: Path):
    """Then its shares say nothing, and its prices alone are gone on from; what lies in no order is found as well."""
    market = large(30, 7, 3)
    first, _ = allocate(save(tmp_path / "p.npz", market), out=tmp_path / "last.npz")
    rng = np.random.default_rng(0)
    with np.load(tmp_path / "last.npz") as file:
        last = dict(file)
    order = rng.permutation(len(last["i"]))
    np.savez(tmp_path / "last.npz", **(last | {name: last[name][order] for name in "ijx"}))
    found = warm(tmp_path / "last.npz", market, "proportional")
    assert isinstance(found, Allocation)
    assert (found.share == first.share).all()
    gone = int(np.flatnonzero(first.share)[0])
    fewer = Market(
        market.demand,
        market.capacity,
        market.weight,
        np.delete(market.value, gone),
        indptr=market.indptr - (market.indptr > gone),
        indices=np.delete(market.indices, gone),
    )
    found = warm(tmp_path / "last.npz", fewer, "proportional")
    assert isinstance(found, np.ndarray)
    assert (found == last["p"]).all()
    after, _ = allocate(save(tmp_path / "fewer.npz", fewer), last=tmp_path / "last.npz")
    assert fits(after)
    assert after.gap <= 1e-3


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path):
    """As root, a file put in its place would be there for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        allocate(save(tmp_path / "p.npz", large(30, 7, 3)), out=pipe)
        assert os.read(reader, 4) == b"PK\x03\x04"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path).count("pipe.part") == 0


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_a_problem_or_is_refused(seed: int, tmp_path_factory: pytest.TempPathFactory):
    """Some bytes changed, cut out or put in: nothing but BadInput is ever raised."""
    rng, path = np.random.default_rng(seed), tmp_path_factory.getbasetemp() / "damaged.npz"
    market = Market(np.ones((3, 2)), np.ones((2, 2)), floor=np.full(3, 0.25))
    whole = np.savez_compressed if seed % 2 else np.savez
    whole(path, d=market.demand, C=market.capacity, w=market.weight, v_indptr=market.indptr, v_indices=market.indices,
          v_data=market.value, floor=market.floor, eta=market.eta)  # fmt: skip
    told = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(told)))
        if (how := rng.integers(6)) == 0:
            del told[at : at + int(rng.integers(1, 200))]
        elif how == 1:
            told[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            told[at] = rng.integers(256)
        told = told or bytearray(b"P")
    path.write_bytes(told)
    said = "damaged.npz"
    try:
        read(path)
    except BadInput as error:
        said = str(error)
    assert "damaged.npz" in said
    assert "\n" not in said


@pytest.mark.parametrize("objective", ["proportional", "welfare", "maxmin", "experience"])
@pytest.mark.parametrize("tasks", [8, 300], ids=["small", "compiled"])
@pytest.mark.parametrize("which", ["d C", "w", "v", "d C w v"])
def test_the_largest_and_smallest_sizes_are_cleared(which: str, tasks: int, objective: str):
    """A warning of numbers that leave float64 would be an error here. Sizes are mixed, task by task."""
    rng, far = np.random.default_rng(tasks), np.log10(MOST) - 2

    def size(name: str, *shape: int) -> np.ndarray:
        powers = rng.choice([-far, 0.0, far], (shape[0], *[1] * (len(shape) - 1))) if name in which.split() else 0.0
        return rng.uniform(0.1, 1.0, shape) * 10.0**powers

    market = Market(size("d", tasks, 2), size("C", 6, 2) * tasks / 12, size("w", tasks), size("v", tasks, 6))
    goal = experience(rng.integers(0, 3, tasks), np.tile([0.7, 1.0], (tasks, 1)))
    found = clear(market, goal if objective == "experience" else objective)
    assert fits(found)
    assert np.isfinite(found.bound)
    assert found.value <= found.bound


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
