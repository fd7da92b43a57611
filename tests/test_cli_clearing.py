"""`allocate` as it is typed: what it writes and prints, what it refuses, and that attention serves everybody."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
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
        ({"C": np.ones((6, 2))}, [], "d has 3 resources and C has 2"),
        ({"C": -np.ones((6, 3))}, [], "C[0, 0] is -1.0"),
        ({"w": np.ones(3)}, [], "w has shape (3,), not (40,)"),
        ({"v_indptr": np.zeros(4, int)}, [], "v_indptr must rise"),
        ({"v_indices": None}, [], "'v_indices' is missing"),
        ({"v_data": None}, [], "'v_data' is missing"),
        ({"eta": np.ones(2)}, [], "eta has shape (2,)"),
        ({"eta": np.array(0.0)}, [], "eta is 0.0"),
        ({"floor": np.ones(40), "cap": np.ones(40)}, [], "floor"),
        ({"curve": None}, ["--objective", "experience"], "no curve: give both"),
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
        ({}, ["--must-serve", "--temperature", "1", "--gap", "0.1"], "without --objective, --gap"),
        ({}, ["--must-serve", "--temperature", "inf"], "temperature is inf"),
        ({"floors": np.zeros(40)}, [], "'floors' is not read: call it 'floor'"),
        ({"v_indices": np.zeros(240, int)}, [], "v_indices[1] names pool 0 again for task 0"),
        ({"v_indices": np.full(240, np.nan)}, [], "v_indices[0] is nan"),
        ({"v_indices": np.zeros((40, 6), int)}, [], "v_indices holds int64 in 2 axes"),
        ({"v_indices": np.full(240, 2**63, np.uint64)}, [], "v_indices[0] is 9223372036854775808"),
        ({"curve_kind": None}, [], "no curve_kind: give both"),
        ({"C": np.full((6, 3), 1e200)}, [], "C[0, 0] is 1e+200: it must be at most 1e+50"),
        ({"w": np.full(40, 5e-324)}, [], "w[0] is 5e-324: it must be 0, or at least 1e-50"),
        ({"eta": np.array(1e-300)}, [], "eta is 1e-300"),
        ({}, ["--out", "FOLDER"], "Is a directory. Choose a file that can be written"),
        ({}, ["--out", "/dev/full"], "No space left on device. Choose a file that can be written"),
        ({}, ["--temperature", "1"], "--must-serve"),
        ({}, ["--must-serve", "--temperature", "0"], "temperature is 0"),
        ({}, ["--must-serve", "--temperature", "1"], "all tasks together must be served"),
        ({"d": -np.ones((40, 3))}, [], "d[0, 0] is -1.0"),
        ({"w": np.full(40, np.inf)}, [], "w[0] is inf"),
        ({"v_data": np.zeros(240)}, [], "v_data of task 0 in pool 0 is 0.0"),
        ({"v_data": -np.ones(240)}, [], "v_data[0] is -1.0"),
        ({"v_data": np.ones(7)}, [], "v_data has shape (7,), not (240,)"),
        ({"v_indices": np.full(240, 6)}, [], "v_indices[0] is 6: it must be the row of a pool (there are 6"),
        ({"v_indices": np.full(240, -1)}, [], "v_indices[0] is -1"),
        ({"v_indptr": np.full(41, 2**62)}, [], "v_indptr[0] is 4611686018427387904"),
        ({"v_indptr": np.zeros(0, int)}, [], "v_indptr must rise"),
        ({"cap": np.full(40, 2.0)}, [], "cap of task 0 is 2.0"),
        ({"mean": np.full(40, np.inf)}, [], "mean[0] is inf"),
        ({"curve_kind": np.full(40, 7)}, ["--objective", "experience"], "curve_kind[0] is 7"),
        (
            {"curve_kind": np.full(40, 2), "curve": np.tile([0.1, 1.0], (40, 1))},
            ["--objective", "experience"],
            "never grow",
        ),
        (
            {"curve_kind": np.full(40, 2), "curve": np.full((40, 2), np.nan)},
            ["--objective", "experience"],
            "curve[0] is [nan",
        ),
        ({"v_data": np.full(240, np.inf)}, ["--must-serve", "--temperature", "1"], "v_data holds inf"),
        (
            {"v_data": np.full(240, -1e300)},
            ["--must-serve", "--temperature", "1"],
            "v_data holds -1e+300: scores lie within",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run: Run, problem: Path, tmp_path: Path, change: dict, arguments: list[str], why: str
):
    arrays = {name: x for name, x in (arrays_of(problem) | change).items() if x is not None}
    if "v_data" in change and "v_data" in arrays:
        arrays |= {"v_indptr": np.arange(0, 241, 6), "v_indices": np.tile(np.arange(6), 40)}
    np.savez(problem, **arrays)
    (tmp_path / "folder").mkdir()
    places = {"NOWHERE": str(tmp_path / "nowhere"), "PROBLEM": str(problem), "FOLDER": str(tmp_path / "folder")}
    typed = [re.sub("NOWHERE|PROBLEM|FOLDER", lambda word: places[word[0]], a) for a in arguments]
    code, said, err = run("allocate", problem, *typed)
    assert (code, said) == (2, ""), err
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"i": np.zeros(2, int)}, "three equally long lists; they have shapes (2,), (1,) and (1,)"),
        ({"i": np.zeros((1, 1), int), "j": np.zeros((1, 1), int), "x": np.ones((1, 1))}, "three equally long lists"),
        ({"i": np.array([40])}, "i[0] is 40, not a row of the problem's 40 tasks"),
        ({"i": np.array([0.5])}, "i[0] is 0.5"),
        ({"i": np.array([np.nan])}, "i[0] is nan"),
        ({"j": np.array([-1])}, "j[0] is -1, not a row of the problem's 6 pools"),
        ({"j": np.array([50])}, "j[0] is 50"),  # would stand for another task's pair if it were only added up
        ({"x": np.array([np.nan])}, "x[0] is nan"),
        ({"x": np.array([1e300])}, "x[0] is 1e+300, not a share"),
        ({"x": np.array([-0.1])}, "x[0] is -0.1"),
        ({"i": np.zeros(2, int), "j": np.zeros(2, int), "x": np.ones(2)}, "name a pair twice"),
        ({"p": np.full((6, 3), -1.0)}, "p[0, 0] is -1.0"),
        ({"p": np.full((6, 3), np.inf)}, "p[0, 0] is inf, not a price"),
        ({"p": np.full((6, 3), 1e300)}, "p[0, 0] is 1e+300"),
        ({"p": np.ones((1, 1))}, "(pools, resources) = (6, 3): it answers another problem"),
        ({"p": np.full((6, 3), "1")}, "p holds <U1, not numbers"),
    ],
)
def test_a_warm_file_that_is_no_allocation_is_refused(run: Run, problem: Path, tmp_path: Path, change: dict, why: str):
    whole = {"i": np.zeros(1, int), "j": np.zeros(1, int), "x": np.ones(1), "p": np.ones((6, 3))}
    np.savez(tmp_path / "last.npz", **(whole | change))
    code, said, err = run("allocate", problem, "--warm", tmp_path / "last.npz")
    assert (code, said, err.count("\n")) == (2, "", 1), err
    assert "last.npz: " in err
    assert why in err


def test_a_file_that_is_no_archive_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "text.npz").write_text("no archive")
    for file in (tmp_path / "text.npz", tmp_path / "absent.npz", tmp_path):
        code, _, err = run("allocate", file)
        assert (code, "not a readable .npz file" in err) == (2, True)


class Trap:
    """What leaves a trace where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickled_array_is_refused_and_never_unpickled(run: Run, problem: Path, tmp_path: Path):
    for name, code in (("d", 2), ("w", 2), ("floor", 2), ("remarks", 0)):  # who does not read it need not refuse it
        np.savez(tmp_path / "trap.npz", **(arrays_of(problem) | {name: np.array([Trap(tmp_path / "sprung")], object)}))
        assert run("allocate", tmp_path / "trap.npz")[0] == code
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert run("allocate", tmp_path / "bare.npz")[0] == 2
    assert not (tmp_path / "sprung").exists()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


MEMBERS = {  # what d.npy may hold instead of an array
    "more than any memory": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}") + bytes(24),
    "more than can be counted": header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30}, 3)}}")
    + bytes(24),
    "less than nothing": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3)}") + bytes(24),
    "less than it says": header("{'descr': '<f8', 'fortran_order': False, 'shape': (40, 3)}") + bytes(24),
    "code": header("__import__('os').abort()"),
    "an open bracket": header("((((("),
    "a header without end": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
    "no array": b"no array",
    "nothing": b"",
}


@pytest.mark.parametrize("what", MEMBERS)
def test_a_member_that_is_no_array_is_one_line_and_exit_2(run: Run, problem: Path, tmp_path: Path, what: str):
    with zipfile.ZipFile(problem) as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in whole.namelist():
            bad.writestr(name, MEMBERS[what] if name == "d.npy" else whole.read(name))
    code, said, err = run("allocate", tmp_path / "bad.npz")
    assert (code, said, err.count("\n")) == (2, "", 1), err
    assert "bad.npz" in err


@pytest.mark.parametrize(("at", "byte"), [(8, 1), (10, 99)], ids=["locked", "packed in an unknown way"])
def test_an_archive_that_cannot_be_unpacked_is_refused(run: Run, problem: Path, at: int, byte: int):
    """Byte `at` of each member's line in the archive's list."""
    told = bytearray(problem.read_bytes())
    for begin in (m.start() for m in re.finditer(rb"PK\x01\x02", told)):
        told[begin + at] = byte
    problem.write_bytes(told)
    code, said, err = run("allocate", problem)
    assert (code, said, err.count("\n")) == (2, "", 1), err


def test_one_array_alone_is_no_problem_file(run: Run, tmp_path: Path):
    np.save(tmp_path / "d.npy", np.ones((2, 2)))
    code, said, err = run("allocate", tmp_path / "d.npy")
    assert (code, said, err.count("\n")) == (2, "", 1), err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"floor": np.full(40, "0.5")}, "floor"),
        ({"cap": np.full(40, 0.5j)}, "cap"),
        ({"eta": np.array("half")}, "eta"),
        ({"v_indices": np.full(240, 0.5)}, "v_indices"),
        ({"v_indptr": np.linspace(0, 240, 41) + 0.5}, "v_indptr"),
        ({"curve_kind": np.full(40, 0.5)}, "curve_kind"),
        ({"curve_kind": np.full(40, 2), "curve": np.ones((40, 0))}, "curve"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_cannot_be_used_is_refused_and_not_passed_over(run: Run, problem: Path, change: dict, why: str):
    np.savez(problem, **(arrays_of(problem) | change))
    code, said, err = run("allocate", problem, "--objective", "experience")
    assert (code, said, err.count("\n")) == (2, "", 1), err
    assert why in err


OBJECTIVES = ["proportional", "welfare", "maxmin", "leximin", "drf", "experience"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_goes_on_from_its_own_answer_without_a_step(
    run: Run, problem: Path, tmp_path: Path, objective: str
):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    assert run("allocate", problem, "--objective", objective, "--out", first)[0] == 0
    code, said, _ = run("allocate", problem, "--objective", objective, "--warm", first, "--out", second, "-o", "json")
    assert (code, json.loads(said)["steps"]) == (0, 0)
    a, b = arrays_of(first), arrays_of(second)
    assert all(np.array_equal(a[name], b[name]) for name in ("i", "j", "x"))


@pytest.mark.parametrize("objective", ["proportional", "welfare", "maxmin", "experience"])
def test_as_many_threads_as_asked_for_reach_the_same_gap(run: Run, tmp_path: Path, objective: str):
    kind, curve = np.full(400, 1), np.full((400, 1), 2.0)
    problem = save(tmp_path / "large.npz", large(400, 8, 3), curve_kind=kind, curve=curve)
    told = [
        json.loads(run("allocate", problem, "--objective", objective, "--threads", threads, "-o", "json")[1])
        for threads in (1, 2, 3)
    ]
    assert max(one["gap"] for one in told) <= 1e-3
    assert max(one["value"] for one in told) <= min(one["bound"] for one in told)


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
