"""`allocate` as it is typed: what it writes and prints, what it refuses, and that attention serves everybody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from scipy.special import softmax
from test_clearing import fits, large
from test_problem_files import save

from apportion.clearing.attention import serve_all
from apportion.clearing.clear import clear
from apportion.clearing.files import read
from apportion.core.allocation import Allocation
from apportion.core.errors import BadMarket
from apportion.core.market import Market

KEYS = ["value", "bound", "gap", "steps", "seconds", "peak_mb"]


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    market = large(40, 6, 3, floors=True)
    return save(tmp_path / "problem.npz", market, curve_kind=np.ones(40, int), curve=np.full((40, 1), 2.0))


@pytest.mark.parametrize("objective", ["proportional", "welfare", "maxmin", "leximin", "drf", "experience"])
def test_a_problem_is_cleared_under_every_objective(run: Run, problem: Path, tmp_path: Path, objective: str):
    file = tmp_path / "allocation.npz"
    code, said, err = run("allocate", problem, "--objective", objective, "--out", file, "-o", "json")
    assert (code, err) == (0, "")
    told = json.loads(said)
    assert list(told) == KEYS
    assert 0 <= told["gap"] <= 1e-3
    assert told["value"] <= told["bound"]
    market, _ = read(problem)
    x, share = arrays_of(file), np.zeros((40, 6))
    share[x["i"], x["j"]] = x["x"]
    share = share[market.row, market.indices]
    assert fits(Allocation(market, share, x["p"], objective, told["value"], told["bound"], told["gap"]))
    assert ("y" in x) == (objective in ("maxmin", "leximin", "drf"))


def test_people_read_what_machines_do(run: Run, problem: Path, tmp_path: Path):
    code, said, _ = run("allocate", problem, "--out", tmp_path / "a.npz")
    assert code == 0
    lines = dict(line.split(None, 1) for line in said.splitlines())
    assert lines["objective"] == "proportional"
    assert lines["written"] == str(tmp_path / "a.npz")
    assert "of 18 resources in 6 pools have a price" in lines["scarce"]
    small = save(tmp_path / "small.npz", Market([[2.0, 1.0], [1.0, 3.0]], [[2.0, 2.0]], [2.0, 1.0]))
    said = run("allocate", small)[1]
    assert "task 0           served  80.0%" in said


def test_an_answer_is_gone_on_from(run: Run, tmp_path: Path):
    problem, file = save(tmp_path / "problem.npz", large(500, 9, 4)), tmp_path / "allocation.npz"
    assert json.loads(run("allocate", problem, "--out", file, "-o", "json")[1])["steps"] > 0
    code, said, _ = run("allocate", problem, "--warm", file, "--threads", 2, "-o", "json")
    assert (code, json.loads(said)["steps"]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "arguments", "why"),
    [
        ({"d": np.array([[1.0, np.nan]] * 40)}, [], "d[0, 1] is nan"),
        ({"d": np.ones(40)}, [], "d has 1 axes"),
        ({"C": np.ones((6, 2))}, [], "d has 3 resources and capacity has 2"),
        ({"C": -np.ones((6, 3))}, [], "C[0, 0] is -1.0"),
        ({"w": np.ones(3)}, [], "w has shape (3,), not (40,)"),
        ({"v_indptr": np.zeros(4, int)}, [], "v_indptr must rise"),
        ({"v_indices": None}, [], "'v_indices' is missing"),
        ({"v_data": None}, [], "'v_data' is missing"),
        ({"eta": np.ones(2)}, [], "eta has shape (2,)"),
        ({"eta": np.array(0.0)}, [], "eta is 0.0"),
        ({"floor": np.ones(40), "cap": np.ones(40)}, [], "floor"),
        ({"curve": None}, ["--objective", "experience"], "no curve: add the curves"),
        ({"curve": np.zeros((40, 1))}, ["--objective", "experience"], "curve[0, 0] is 0.0"),
        ({"curve": np.ones((3, 1))}, ["--objective", "experience"], "give each task one number"),
        ({"curve": None, "curve_kind": None}, ["--objective", "experience"], "no curve_kind and curve"),
        ({}, ["--objective", "most"], "'most'"),
        ({}, ["--gap", "0"], "gap is 0"),
        ({}, ["--gap", "nan"], "gap is nan"),
        ({}, ["--threads", "0"], "--threads"),
        ({}, ["--out", "NOWHERE/a.npz"], "can be written"),
        ({}, ["--warm", "NOWHERE"], "not a readable .npz file"),
        ({}, ["--warm", "PROBLEM"], "'i' is missing"),
        ({}, ["--must-serve"], "--temperature T"),
        ({}, ["--temperature", "1"], "--must-serve"),
        ({}, ["--must-serve", "--temperature", "0"], "temperature is 0"),
        ({}, ["--must-serve", "--temperature", "1"], "all tasks together must be served"),
        ({"v_data": np.full(240, np.inf)}, ["--must-serve", "--temperature", "1"], "v_data holds inf"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run: Run, problem: Path, tmp_path: Path, change: dict, arguments: list[str], why: str
):
    arrays = {name: x for name, x in (arrays_of(problem) | change).items() if x is not None}
    if "v_data" in change and "v_data" in arrays:
        arrays |= {"v_indptr": np.arange(0, 241, 6), "v_indices": np.tile(np.arange(6), 40)}
    np.savez(problem, **arrays)
    places = {"NOWHERE": str(tmp_path / "nowhere"), "PROBLEM": str(problem)}
    typed = [a.replace("NOWHERE", places["NOWHERE"]).replace("PROBLEM", places["PROBLEM"]) for a in arguments]
    code, said, err = run("allocate", problem, *typed)
    assert (code, said) == (2, ""), err
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "change", [{"i": np.zeros(2, int)}, {"x": np.array([np.nan])}, {"p": np.array([[-1.0]])}], ids=["i", "x", "p"]
)
def test_a_warm_file_that_is_no_allocation_is_refused(run: Run, problem: Path, tmp_path: Path, change: dict):
    whole = {"i": np.zeros(1, int), "j": np.zeros(1, int), "x": np.ones(1), "p": np.ones((6, 3))}
    np.savez(tmp_path / "last.npz", **(whole | change))
    code, _, err = run("allocate", problem, "--warm", tmp_path / "last.npz")
    assert (code, "last.npz: i, j and x are" in err) == (2, True)


def test_a_file_that_is_no_archive_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "text.npz").write_text("no archive")
    for file in (tmp_path / "text.npz", tmp_path / "absent.npz", tmp_path):
        code, _, err = run("allocate", file)
        assert (code, "not a readable .npz file" in err) == (2, True)


# attention that serves everybody


def test_attention_with_slack_pools_is_softmax(run: Run, tmp_path: Path):
    rng = np.random.default_rng(1)
    score = rng.normal(size=(12, 4))
    save(tmp_path / "p.npz", Market(rng.lognormal(size=(12, 2)), np.full((4, 2), 1e3)))
    np.savez(tmp_path / "p.npz", **(arrays_of(tmp_path / "p.npz") | {"v_data": score.ravel()}))
    code, said, err = run("allocate", tmp_path / "p.npz", "--must-serve", "--temperature", 0.7, "--out", tmp_path / "a.npz", "-o", "json")  # fmt: skip
    assert (code, err) == (0, "")
    assert list(json.loads(said)) == KEYS
    answer = arrays_of(tmp_path / "a.npz")
    assert not answer["p"].any()
    assert answer["x"] == pytest.approx(softmax(score / 0.7, axis=1).ravel(), abs=2e-9)


@pytest.mark.parametrize("seed", range(8))
def test_attention_under_prices_fits_serves_all_and_is_certified(seed: int):
    """Held against a general solver that shares no code with it."""
    cp = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(seed)
    n, m, r = 12, 4, 2
    demand, cap = rng.lognormal(size=(n, r)), np.where(rng.random(n) < 0.5, 1.0, 0.6)
    capacity = rng.lognormal(0, 0.3, (m, r)) * (cap @ demand) / m
    capacity *= 1.15 * (cap @ demand / capacity.sum(0)).max()
    market = Market(demand, capacity, cap=cap)
    score, temperature = rng.normal(size=n * m), 0.3
    try:
        found = serve_all(market, score, temperature)
    except BadMarket:
        pytest.skip("draw: these capacities hold nobody")
    assert fits(found)
    assert found.served == pytest.approx(cap, abs=1e-7)
    x = cp.Variable(n * m, nonneg=True)
    worth = score @ x + temperature * cp.sum(cp.entr(x))
    rows = np.kron(np.eye(n), np.ones(m))
    loads = [np.kron(demand[:, k], np.eye(m)) @ x <= capacity[:, k] for k in range(r)]
    best = cp.Problem(cp.Maximize(worth), [rows @ x == cap, *loads]).solve(cp.CLARABEL)
    assert found.value <= best + 1e-6 * abs(best)
    assert found.bound >= best - 1e-6 * abs(best)
    assert 0 <= found.gap <= 1e-6


# in a notebook


def test_a_notebook_shows_names_and_never_runs_them():
    market = Market([[2.0], [1.0]], [[2.0]], tasks=("<script>", "b"), pools=("<p&q>",), resources=("<cpu>",))
    shown = clear(market)._repr_html_()
    assert "<script>" not in shown
    for name in ("&lt;script&gt;", "&lt;p&amp;q&gt;", "&lt;cpu&gt;", "gap"):
        assert name in shown
    assert "30 tasks in 7 pools" in clear(large(30, 7, 3))._repr_html_()
