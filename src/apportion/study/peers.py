"""Other people's solvers on our problem: each gets it as it likes it best, and gives shares and the prices that it found.

    max  sum w v x   or   sum w log(v x)   or   t with v x >= w t      x >= 0,  loads <= 1,  caps <= 1

Each is asked for a tenth of the gap: what a solver leaves infeasible costs it something when it is repaired. None is
imported before it is asked: they are not part of apportion, and one that is not installed is named as skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse import csc_matrix, csr_matrix, hstack, vstack

from apportion.core.market import Market

Matrix = Any  # sparse, of SciPy, whose functions do not say which kind they give
Found = tuple[
    Float[np.ndarray, " pair"], Float[np.ndarray, "pool resource"] | None
]  # shares; prices, where it has some
LINEAR = ("welfare", "maxmin")
ALL = ("welfare", "proportional", "maxmin")


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to clear a market."""

    solve: Callable[[Market, str, float], Found]  # market, objective, gap
    objectives: tuple[str, ...]
    package: str = ""  # what must be installed

    @property
    def missing(self) -> bool:
        return bool(self.package) and find_spec(self.package) is None


def _rows(market: Market) -> tuple[Matrix, int]:
    """Give loads (each capacity as 1), then shares served, as rows over pairs; and how many rows are loads."""
    row, resources = market.row, market.demand.shape[1]
    part = market.demand[row] / market.capacity[market.indices]
    lines = market.indices[:, None] * resources + np.arange(resources)
    pairs = np.repeat(np.arange(len(row)), resources)
    loads = csr_matrix((part.ravel(), (lines.ravel(), pairs)), (market.capacity.size, len(row)))
    return vstack([loads, _per_task(market, np.ones(len(row)))]).tocsr(), market.capacity.size


def _per_task(market: Market, x: np.ndarray) -> Matrix:
    """Give the rows that sum a number per pair over each task."""
    return csr_matrix((x, np.arange(len(x)), market.indptr), (len(market.demand), len(x)))


def _linear(market: Market, objective: str) -> tuple[np.ndarray, Matrix, np.ndarray, int]:
    """Give min c.z, rows z <= limit, z >= 0, and how many rows are loads; z are the shares, then for max-min the level."""
    rows, loads = _rows(market)
    limit = np.append(np.ones(loads), market.cap)
    if objective == "welfare":
        return -market.weight[market.row] * market.value, rows, limit, loads
    serve = _per_task(market, -market.value / market.weight[market.row])
    level = csr_matrix(np.append(np.zeros(len(limit)), np.ones(len(market.demand)))[:, None])
    cost = np.append(np.zeros(len(market.row)), -1.0)
    limit = np.append(limit, np.zeros(len(market.demand)))
    return cost, hstack([vstack([rows, serve]), level]).tocsr(), limit, loads


def _found(market: Market, z: np.ndarray, dual: np.ndarray) -> Found:
    """Give shares and prices of a solution and its multipliers of the loads, whatever their sign convention."""
    price = np.abs(np.nan_to_num(dual)).reshape(market.capacity.shape) / market.capacity
    return np.clip(np.nan_to_num(z[: len(market.row)]), 0.0, 1.0), price


def highs_ipm(market: Market, objective: str, gap: float) -> Found:
    """HiGHS' interior point, without crossover: no vertex is asked for."""
    highspy: Any = import_module("highspy")

    cost, rows, limit, loads = _linear(market, objective)
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(cost), len(limit)
    program.col_cost_, program.col_lower_, program.col_upper_ = cost, np.zeros_like(cost), np.full_like(cost, np.inf)
    program.row_lower_, program.row_upper_ = np.full_like(limit, -np.inf), limit
    matrix = program.a_matrix_
    matrix.format_, matrix.num_col_, matrix.num_row_ = highspy.MatrixFormat.kRowwise, len(cost), len(limit)
    matrix.start_, matrix.index_, matrix.value_ = rows.indptr, rows.indices, rows.data
    solver = highspy.Highs()
    options = {"output_flag": False, "solver": "ipm", "run_crossover": "off", "threads": 1}
    for name, value in {**options, "ipm_optimality_tolerance": min(gap / 10, 1e-4)}.items():
        solver.setOptionValue(name, value)
    solver.passModel(program)
    solver.run()
    solution = solver.getSolution()
    return _found(market, np.array(solution.col_value), np.array(solution.row_dual)[:loads])


def pdlp(market: Market, objective: str, gap: float) -> Found:
    """PDLP, first order, through OR-Tools."""
    settings: Any = import_module("ortools.pdlp.solvers_pb2").PrimalDualHybridGradientParams()
    pdlp: Any = import_module("ortools.pdlp.python.pdlp")

    cost, rows, limit, loads = _linear(market, objective)
    program = pdlp.QuadraticProgram()
    program.resize_and_initialize(len(cost), len(limit))
    program.objective_vector = cost
    program.constraint_matrix = rows.tocsc()
    program.constraint_lower_bounds, program.constraint_upper_bounds = np.full_like(limit, -np.inf), limit
    program.variable_lower_bounds, program.variable_upper_bounds = np.zeros_like(cost), np.full_like(cost, np.inf)
    settings.num_threads = 1
    settings.termination_criteria.simple_optimality_criteria.eps_optimal_relative = gap / 10
    settings.termination_criteria.simple_optimality_criteria.eps_optimal_absolute = gap / 10
    result = pdlp.primal_dual_hybrid_gradient(program, settings)
    return _found(market, np.array(result.primal_solution), np.array(result.dual_solution)[:loads])


def _conic(market: Market, objective: str) -> tuple[np.ndarray, Matrix, np.ndarray, int, int]:
    """Give min c.z, A z + s = b: so many s >= 0, the rest triples (x, y, z) with y exp(x / y) <= z; loads come first.

    For proportional fairness z are the shares and t_i <= log u_i, from the triples (t_i, 1, u_i).
    """
    pairs, tasks = len(market.row), len(market.demand)
    if objective != "proportional":
        cost, rows, limit, _ = _linear(market, objective)
        positive = csr_matrix((-np.ones(pairs), (np.arange(pairs), np.arange(pairs))), (pairs, len(cost)))
        return cost, vstack([rows, positive]).tocsc(), np.append(limit, np.zeros(pairs)), len(limit) + pairs, 0
    rows, loads = _rows(market)
    positive = csr_matrix((-np.ones(pairs), (np.arange(pairs), np.arange(pairs))), (pairs, pairs))
    shares: Matrix = vstack([rows, positive])
    logs = csr_matrix((-np.ones(tasks), (3 * np.arange(tasks), np.arange(tasks))), (3 * tasks, tasks))
    serve = csr_matrix((-market.value, (3 * market.row + 2, np.arange(pairs))), (3 * tasks, pairs))
    matrix = vstack([hstack([shares, csr_matrix((shares.shape[0], tasks))]), hstack([serve, logs])]).tocsc()
    limit = np.concatenate([np.ones(loads), market.cap, np.zeros(pairs), np.tile([0.0, 1.0, 0.0], tasks)])
    return np.append(np.zeros(pairs), -market.weight), matrix, limit, shares.shape[0], tasks


def clarabel(market: Market, objective: str, gap: float) -> Found:
    """Clarabel, an interior point for cones, without a modelling layer."""
    solver: Any = import_module("clarabel")

    cost, matrix, limit, positive, triples = _conic(market, objective)
    cones = [solver.NonnegativeConeT(positive), *[solver.ExponentialConeT()] * triples]
    settings = solver.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_rel = settings.tol_gap_abs = settings.tol_feas = min(gap / 10, 1e-5)
    none = csc_matrix((len(cost), len(cost)))
    solution = solver.DefaultSolver(none, cost, matrix, limit, cones, settings).solve()
    return _found(market, np.array(solution.x), np.array(solution.z)[: market.capacity.size])


def scs(market: Market, objective: str, gap: float) -> Found:
    """SCS, first order for cones, without a modelling layer."""
    solver: Any = import_module("scs")

    cost, matrix, limit, positive, triples = _conic(market, objective)
    data = {"A": matrix, "b": limit, "c": cost}
    cone = {"l": positive, **({"ep": triples} if triples else {})}
    solution = solver.solve(data, cone, verbose=False, eps_abs=gap / 10, eps_rel=gap / 10, max_iters=1_000_000)
    return _found(market, solution["x"], solution["y"][: market.capacity.size])


def proportional_response(market: Market, _: str, gap: float) -> Found:
    """Bids in proportion to what they gave: see `rivals`."""
    from apportion.study import rivals  # compiled: others do not wait for it, nor carry its memory

    return rivals.proportional_response(market, gap)


def greedy(market: Market, objective: str, _: float) -> Found:
    """The best next piece first: see `rivals`."""
    from apportion.study import rivals

    return rivals.greedy(market, objective), None


PEERS: dict[str, Peer] = {
    "highs-ipm": Peer(highs_ipm, LINEAR, "highspy"),
    "pdlp": Peer(pdlp, LINEAR, "ortools"),
    "clarabel": Peer(clarabel, ALL, "clarabel"),
    "scs": Peer(scs, ALL, "scs"),
    "proportional-response": Peer(proportional_response, ("proportional",)),
    "greedy": Peer(greedy, ALL),
}
