"""The gate: what guarantees give, which floors are kept, and who gives way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linprog

from apportion.core.errors import BadInput
from apportion.core.market import Market, Pools, Tasks
from apportion.core.units import MICRO, SHARE, guarantee
from apportion.intake import floors
from apportion.intake.gate import Gate

seeds = st.integers(0, 2**32 - 1)
ALPHAS = (0.0, 0.25, 0.5, 1.0)


def drawn(seed: int, pools: int = 1, scarce: float | None = None) -> tuple[Gate, Tasks, Pools]:
    """Draw accounts, tasks and pools; scarce: floors and capacity from easily kept (small) to impossible (large)."""
    rng = np.random.default_rng(seed)
    scarce = rng.uniform(0.2, 6) if scarce is None else scarce
    n, resources, accounts = int(rng.integers(1, 9)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    demand = rng.integers(0, 900, (n, resources)).astype(float) * rng.choice([0, 1, 1, 1], (n, resources))
    floor = np.where(rng.random(n) < 0.6, rng.uniform(0, 1, n), 0.0)
    cap = np.where(rng.random(n) < 0.3, rng.uniform(floor, 1), 1.0)
    eligible = tuple(tuple(np.flatnonzero(rng.random(pools) < 0.7).tolist()) or (0,) for _ in range(n))
    capacity = np.floor(demand.sum(axis=0) / pools / scarce * rng.uniform(0.5, 1.5, (pools, resources)))
    tasks = Tasks(
        name=tuple(f"task-{i}" for i in range(n)),
        kind=("game",) * n,
        account=rng.integers(0, accounts, n),
        sponsor=np.full(n, -1),
        demand=demand,
        base=demand,
        surge=np.ones(n),
        floor=np.minimum(np.ceil(floor * SHARE) / SHARE, cap),
        cap=cap,
        weight=np.ones(n),
        priority=rng.integers(0, 3, n),
        target=np.full(n, 0.95),
        eligible=eligible,
    )
    there = Pools(tuple(f"pool-{j}" for j in range(pools)), tuple(f"r{r}" for r in range(resources)), capacity)
    entitlement = rng.dirichlet(np.ones(accounts))
    return Gate(entitlement / max(1.0, entitlement.sum()), float(rng.choice(ALPHAS))), tasks, there


def admitted(gate: Gate, tasks: Tasks, pools: Pools) -> Market:
    return gate.admit(tasks, pools, np.arange(len(tasks.name)) * MICRO)


def parts(share: np.ndarray) -> list[int]:
    return [int(x) for x in np.rint(share * SHARE)]


def exact_load(tasks: Tasks, pools: Pools, pair: list[tuple[int, int]], share: list[int]) -> np.ndarray:
    """Loads in Python's integers, in 10^-9 base units."""
    out = np.zeros(pools.capacity.shape, object)
    for (i, j), x in zip(pair, share, strict=True):
        for r, d in enumerate(tasks.demand[i]):
            out[j, r] += int(d) * x
    return out


def pairs(market: Market) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in zip(market.row, market.indices, strict=True)]


@given(seed=seeds, pools=st.integers(1, 3))
def test_free_shares_stay_within_the_guarantee_exactly(seed: int, pools: int):
    gate, tasks, there = drawn(seed, pools)
    market = admitted(gate, tasks, there)
    free = parts(market.free)

    assert (market.per_task(market.free) <= market.cap + 1e-12).all()
    for a in range(len(gate.entitlement)):
        mine = [x if tasks.account[i] == a else 0 for (i, _), x in zip(pairs(market), free, strict=True)]
        for j, r in np.ndindex(*there.capacity.shape):
            given_ = int(np.floor(gate.alpha * gate.entitlement[a] * there.capacity[j, r] * (1 + 1e-12)))
            assert exact_load(tasks, there, pairs(market), mine)[j, r] <= given_ * SHARE


@given(seed=seeds, scarce=st.floats(0.2, 8))
def test_floors_and_free_shares_fit_together_in_one_pool_exactly(seed: int, scarce: float):
    gate, tasks, pools = drawn(seed, 1, scarce)
    market = admitted(gate, tasks, pools)
    at_least = [max(f, x) for f, x in zip(parts(market.floor), parts(market.free), strict=True)]
    load = exact_load(tasks, pools, pairs(market), at_least)
    assert all(load[0, r] <= int(c) * SHARE for r, c in enumerate(pools.capacity[0]))
    assert (market.floor <= tasks.floor).all()


@given(seed=seeds, pools=st.integers(2, 4), scarce=st.floats(0.2, 8))
def test_floors_and_free_shares_fit_together_in_several_pools(seed: int, pools: int, scarce: float):
    """An independent linear program finds a point that keeps both."""
    gate, tasks, there = drawn(seed, pools, scarce)
    market = admitted(gate, tasks, there)
    assert (market.floor <= tasks.floor).all()
    assert least_load(market, market.floor, market.free) <= 1 + 1e-7


def least_load(market: Market, floor: np.ndarray, free: np.ndarray) -> float:
    """The fullest pool's load when floors and free shares are kept as evenly as possible; inf if impossible."""
    n, e, size = len(market.demand), len(market.free), market.capacity.size
    upper = np.zeros((size + 2 * n, e + 1))
    room = np.zeros(size + 2 * n)
    for k, (i, j) in enumerate(pairs(market)):
        for r in range(market.demand.shape[1]):
            upper[j * market.demand.shape[1] + r, k] = market.demand[i, r]
        upper[size + i, k], upper[size + n + i, k] = -1, 1
    upper[:size, -1] = -market.capacity.ravel()
    room[size : size + n], room[size + n :] = -floor, np.maximum(market.cap, market.per_task(free))
    got = linprog([0.0] * e + [1.0], upper, room, bounds=[(x, None) for x in free] + [(0, None)], method="highs-ds")
    return got.fun if got.status == 0 else np.inf


@given(seed=seeds, pools=st.integers(2, 4), scarce=st.floats(0.2, 8))
def test_what_is_kept_fits_also_where_a_program_would_be_too_large(seed: int, pools: int, scarce: float):
    gate, tasks, there = drawn(seed, pools, scarce)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "MOST", 0)
        market = admitted(gate, tasks, there)
    assert (market.floor <= tasks.floor).all()
    assert least_load(market, market.floor, market.free) <= 1 + 1e-7
    alone = [i for i in range(len(tasks.name)) if tasks.priority[i] == tasks.priority.max()]
    if least_load(market, np.where(tasks.priority == tasks.priority.max(), tasks.floor, 0), 0 * market.free) > 1 + 1e-6:
        assert (market.floor[alone] < tasks.floor[alone]).any()


@given(seed=seeds, pools=st.integers(1, 3), scarce=st.floats(0.2, 3))
def test_what_fits_is_left_whole(seed: int, pools: int, scarce: float):
    """Floors that fit are kept; free shares that fit beside them too."""
    gate, tasks, there = drawn(seed, pools, scarce)
    market = admitted(gate, tasks, there)
    if least_load(market, tasks.floor, np.zeros(len(market.free))) < 1 - 1e-6:
        assert market.floor == pytest.approx(tasks.floor, abs=0)
    alone = admitted(gate, replace(tasks, floor=np.zeros(len(tasks.name))), there).free
    if least_load(market, tasks.floor, alone) < 1 - 1e-6:
        assert (market.free == alone).all()


@given(seed=seeds)
def test_free_shares_are_max_min_inside_an_account(seed: int):
    """Whoever has less than its cap needs a resource that is spent, and has no less of it than its fellows."""
    gate, tasks, pools = drawn(seed, 1)
    tasks = replace(tasks, floor=np.zeros(len(tasks.name)))
    free = admitted(gate, tasks, pools).free
    room = guarantee(gate.alpha, gate.entitlement, pools.capacity)[:, 0]
    for i in np.flatnonzero((free < tasks.cap - 1e-8) & tasks.demand.any(axis=1)):
        fellows = tasks.account == tasks.account[i]
        left = room[tasks.account[i]] - (tasks.demand[fellows] * free[fellows, None]).sum(axis=0)
        slack = tasks.demand[fellows].sum(axis=0) * 1e-8 + 1e-9
        spent = (tasks.demand[i] > 0) & (left <= slack)
        users = [fellows & (tasks.demand[:, r] > 0) for r in np.flatnonzero(spent)]
        assert any(free[i] >= free[u].max() - 1e-8 for u in users)


@given(seed=seeds, scarce=st.floats(2, 12))
def test_a_higher_priority_keeps_its_floor_before_a_lower_one_gets_any(seed: int, scarce: float):
    """A broken floor needs a spent resource of which nobody lower has any and no equal kept a larger part of its promise."""
    gate, tasks, pools = drawn(seed, 1, scarce)
    market = admitted(gate, tasks, pools)
    kept = np.divide(market.floor, tasks.floor, out=np.ones(len(tasks.name)), where=tasks.floor > 0)
    left = pools.capacity[0] - (tasks.demand * market.floor[:, None]).sum(axis=0)
    slack = tasks.demand.sum(axis=0) * 1e-8 + 1e-9
    for i in np.flatnonzero(market.floor < tasks.floor):
        spent = np.flatnonzero((tasks.demand[i] > 0) & (left <= slack))
        lower = [(tasks.priority < tasks.priority[i]) & (tasks.demand[:, r] > 0) for r in spent]
        equal = [(tasks.priority == tasks.priority[i]) & (tasks.demand[:, r] > 0) & (tasks.floor > 0) for r in spent]
        assert any(
            not market.floor[low].any() and (market.floor[i] + 3e-9) / tasks.floor[i] >= kept[same].max() - 1e-8
            for low, same in zip(lower, equal, strict=True)
        )


@given(seed=seeds, pools=st.integers(2, 4), scarce=st.floats(2, 12))
def test_no_class_could_keep_more_of_its_floors_in_several_pools(seed: int, pools: int, scarce: float):
    """Class by class, an independent linear program raises the worst kept floor no higher, higher classes being kept."""
    gate, tasks, there = drawn(seed, pools, scarce)
    market = admitted(gate, tasks, there)
    placed = {
        i
        for i, j in pairs(market)
        if all(c > 0 or d == 0 for d, c in zip(tasks.demand[i], there.capacity[j], strict=True))
    }
    for p in sorted(set(tasks.priority.tolist()), reverse=True):
        ours = [i for i in placed if tasks.priority[i] == p and tasks.floor[i] > 0]
        least = np.where(tasks.priority > p, market.floor * (1 - 1e-6), 0.0)
        if ours:
            worst = min(market.floor[i] / tasks.floor[i] for i in ours)
            assert (
                worst >= best_level(market, tasks.floor, ours, least) - 1e-3
            )  # solvers' tolerances are much to a small need


def best_level(market: Market, floor: np.ndarray, rising: list[int], least: np.ndarray) -> float:
    """The largest part t of their floors that all who rise can have, the others keeping their least."""
    n, e, (m, resources) = len(floor), len(market.free), market.capacity.shape
    upper, room = np.zeros((m * resources + n, e + 1)), np.concatenate([market.capacity.ravel(), -least])
    for k, (i, j) in enumerate(pairs(market)):
        upper[j * resources : (j + 1) * resources, k] = market.demand[i]
        upper[m * resources + i, k] = -1
    for i in rising:
        upper[m * resources + i, -1] = floor[i]
    got = linprog([0.0] * e + [-1.0], upper, room, bounds=[(0, None)] * e + [(0, 1)], method="highs-ds")
    assert got.status == 0
    return got.x[-1]


@given(seed=seeds, pools=st.integers(1, 3))
@example(seed=208, pools=1)  # what is left of a spent resource may be a float's last digit below 0
def test_the_order_of_tasks_does_not_matter(seed: int, pools: int):
    gate, tasks, there = drawn(seed, pools)
    order = np.random.default_rng(seed + 1).permutation(len(tasks.name))
    shuffled = Tasks(
        **{
            field: tuple(value[i] for i in order) if isinstance(value, tuple) else value[order]
            for field in Tasks.__dataclass_fields__
            for value in [getattr(tasks, field)]
        }
    )
    one, other = admitted(gate, tasks, there), admitted(gate, shuffled, there)
    assert other.floor == pytest.approx(one.floor[order], abs=5e-6)  # as exact as the linear program
    if pools == 1:  # with several, one of many splits of a floor decides which free shares give way
        assert other.free == pytest.approx(one.free[order], abs=1e-8)


@given(seed=seeds, pools=st.integers(1, 3))
def test_the_same_round_gives_the_same_market(seed: int, pools: int):
    gate, tasks, there = drawn(seed, pools)
    again = drawn(seed, pools)
    one, two, three = admitted(gate, tasks, there), admitted(gate, tasks, there), admitted(*again)
    for other in (two, three):
        assert all(np.array_equal(getattr(one, f), getattr(other, f)) for f in ("floor", "free", "weight", "indices"))


def small(demand, floor, priority=None, account=None, eligible=None) -> Tasks:
    n = len(demand)
    demand = np.array(demand, float)
    return Tasks(
        name=tuple("abcdefgh"[:n]),
        kind=("game",) * n,
        account=np.array(account if account is not None else [0] * n),
        sponsor=np.full(n, -1),
        demand=demand,
        base=demand,
        surge=np.ones(n),
        floor=np.array(floor, float),
        cap=np.ones(n),
        weight=np.ones(n),
        priority=np.array(priority if priority is not None else [0] * n),
        target=np.full(n, 0.95),
        eligible=eligible or ((0,),) * n,
    )


def one_pool(*capacity: float) -> Pools:
    return Pools(("here",), ("cpu", "memory")[: len(capacity)], np.array([capacity], float))


def test_guarantees_of_the_published_case():
    """Three tenants of a third each, half of 12 guaranteed: those who want 1, 9 and 6 use 1, 2 and 2 of it."""
    market = admitted(
        Gate(np.full(3, 1 / 3), 0.5), small([[1000], [9000], [6000]], [0, 0, 0], account=[0, 1, 2]), one_pool(12000)
    )
    assert market.free * market.demand[:, 0] == pytest.approx([1000, 2000, 2000], abs=1e-4)


def test_an_account_shares_its_guarantee_by_need():
    """500 of cpu is free: whoever wants 100 gets it, the others get the same part of their demand."""
    tasks = replace(small([[100], [600], [600]], [0, 0, 0]), cap=np.array([0.2, 1.0, 1.0]))
    free = admitted(Gate(np.array([1.0]), 0.5), tasks, one_pool(1000)).free
    assert free == pytest.approx([0.2, 0.4, 0.4], abs=1e-8)


def test_who_does_not_need_what_is_spent_gets_more():
    tasks = small([[100, 0], [100, 50], [0, 50]], [0, 0, 0])
    free = admitted(Gate(np.array([1.0]), 1.0), tasks, one_pool(300, 60)).free
    assert free == pytest.approx([1.0, 0.6, 0.6], abs=1e-8)


def test_floors_come_before_guarantees():
    """b is promised 800 of 1000; a's guarantee of 500 keeps the 200 that are left."""
    tasks = small([[1000], [1000]], [0, 0.8], account=[0, 1])
    market = admitted(Gate(np.array([0.5, 0.5]), 1.0), tasks, one_pool(1000))
    assert market.floor == pytest.approx([0, 0.8])
    assert market.free == pytest.approx([0.2, 0.5], abs=1e-8)


def test_a_guarantee_that_is_not_in_the_way_does_not_give_way():
    """Only cpu is short; the account that lives on memory keeps its free share."""
    tasks = small([[1000, 0], [1000, 0], [0, 1000]], [0, 0.8, 0], account=[0, 1, 0])
    market = admitted(Gate(np.array([0.5, 0.5]), 1.0), tasks, one_pool(1000, 1000))
    assert market.free == pytest.approx([0.2, 0.5, 0.5], abs=1e-8)


def test_a_lost_pool_breaks_the_lowest_floors_first():
    """300 is left for floors of 200 (priority 2), 200 and 100 (1), 100 (0): the middle class keeps a third each."""
    tasks = small([[1000], [1000], [1000], [1000]], [0.2, 0.2, 0.1, 0.1], priority=[2, 1, 1, 0])
    market = admitted(Gate(np.array([1.0]), 0.5), tasks, one_pool(300))
    assert market.floor == pytest.approx([0.2, 0.2 / 3, 0.1 / 3, 0], abs=1e-8)
    assert market.floor[0] == tasks.floor[0]


def test_floors_find_the_pools_where_they_fit():
    """b can only live in the first pool, so a must leave it, although all is even at first sight."""
    tasks = small([[100], [100]], [1, 1], eligible=((0, 1), (0,)))
    pools = Pools(("here", "there"), ("cpu",), np.array([[100.0], [100.0]]))
    market = admitted(Gate(np.array([1.0]), 0.0), tasks, pools)
    assert market.floor == pytest.approx([1, 1], abs=0)


def test_floors_are_arranged_around_free_shares_where_that_can_be_done():
    """c has 32 of the first pool for nothing; b needs 99.5 of the 100 left there, so all but a half of a must go elsewhere."""
    tasks = small([[1000], [995], [320]], [1, 1, 0], account=[0, 0, 1], eligible=((0, 1), (0,), (0,)))
    pools = Pools(("here", "there"), ("cpu",), np.array([[1320.0], [1320.0]]))
    market = admitted(Gate(np.array([0.0, 1.0]), 0.25), tasks, pools)
    assert market.floor == pytest.approx([1, 1, 0], abs=0)
    assert market.free.tolist() == [0, 0, 0, 1]


def test_several_pools_shrink_floors_by_priority_then_max_min():
    """Pool one holds 100 for a (priority 1) and b, c who have nowhere else; d in pool two is in nobody's way."""
    tasks = small([[100]] * 4, [0.6, 0.8, 0.4, 1], priority=[1, 0, 0, 0], eligible=((0,), (0,), (0,), (0, 1)))
    pools = Pools(("one", "two"), ("cpu",), np.array([[100.0], [100.0]]))
    market = admitted(Gate(np.array([1.0]), 0.0), tasks, pools)
    assert market.floor == pytest.approx([0.6, 0.8 / 3, 0.4 / 3, 1.0], abs=1e-7)


def test_a_task_whose_pools_are_gone_keeps_nothing():
    tasks = small([[100], [100]], [0.5, 0.5], eligible=((), (0,)))
    market = admitted(Gate(np.array([1.0]), 0.5), tasks, one_pool(100))
    assert market.floor == pytest.approx([0, 0.5])
    market = admitted(Gate(np.array([1.0]), 0.5), small([[100], [100]], [0.5, 0.5]), one_pool(0))
    assert not market.floor.any()
    assert not market.free.any()


def test_amounts_beyond_64_bits_are_counted_exactly():
    """Two tasks of 2^52 base units each: their free halves fill the guarantee to the last unit, and no further."""
    huge = 2**52
    tasks = small([[huge], [huge]], [0, 0.75], account=[0, 1])
    pools = one_pool(huge)
    gate = Gate(np.array([0.5, 0.5]), 1.0)
    market = admitted(gate, tasks, pools)
    free = parts(market.free)
    assert all(
        x * huge <= int(g) * SHARE
        for x, g in zip(free, guarantee(1.0, gate.entitlement, pools.capacity)[:, 0, 0], strict=True)
    )
    assert free == [250_000_000, 500_000_000]
    assert parts(market.floor) == [0, 750_000_000]


@given(seed=seeds)
def test_guarantees_never_come_to_more_than_there_is(seed: int):
    rng = np.random.default_rng(seed)
    entitlement = rng.dirichlet(np.ones(int(rng.integers(1, 6))))
    pools = one_pool(*np.floor(2.0 ** rng.uniform(0, 52, 2)))
    given_ = guarantee(1.0, entitlement * (1 + 9e-10), pools.capacity)
    assert (given_ >= 0).all()
    assert (given_.sum(axis=0) <= pools.capacity).all()


def test_bids_arrive_as_credits():
    market = Gate(np.array([1.0]), 0.5).admit(small([[1], [1]], [0, 0]), one_pool(1), np.array([1_500_000, 0]))
    assert market.weight.tolist() == [1.5, 0]
    assert market.tasks == ("a", "b")
    assert (market.pools, market.resources) == (("here",), ("cpu",))


@pytest.mark.parametrize(
    ("entitlement", "alpha", "told"),
    [
        ([0.5, 0.6], 0.5, "entitlements come to 1.1"),
        ([1.0], 1.5, "alpha is 1.5: the guaranteed part of a pool lies between 0 and 1"),
        ([1.0], -0.1, "alpha is -0.1"),
    ],
)
def test_a_gate_that_would_give_more_than_there_is_is_refused(entitlement, alpha, told):
    with pytest.raises(BadInput, match=told):
        Gate(np.array(entitlement), alpha)
