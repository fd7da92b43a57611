"""What must not change an answer, for every objective: order, units, threads, where one begins, pools that are not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markets import CURVES, GOALS, Goal, curves, draw, goal, like, rounding
from test_clearing import fits, large

from apportion.clearing.certificate import best_slope, certify
from apportion.clearing.clear import LARGE, clear
from apportion.clearing.curves import experience
from apportion.clearing.objectives import pose
from apportion.core.allocation import Allocation
from apportion.core.market import Market

seeds = st.integers(0, 10**6)
each_goal = pytest.mark.parametrize("name", GOALS)
NEWTON = [name for name in GOALS if name not in ("leximin", "drf")]  # these are the interior point's, whatever the size
each_newton = pytest.mark.parametrize("name", NEWTON)
each_size = pytest.mark.parametrize(
    ("name", "tasks"), [*((name, 15) for name in GOALS), *((name, 400) for name in NEWTON)]
)


def contended(tasks: int, seed: int, *, floors: bool = False) -> Market:
    """Give a market with some seven times as much wanted as there is; of 400 tasks, one that Newton clears."""
    market = large(tasks, 8, seed, floors=floors)
    assert tasks < 400 or market.indptr[-1] * market.demand.shape[1] >= LARGE
    return like(market, capacity=0.3 * market.capacity)


def agree(a: Allocation, b: Allocation, gap: float, price: np.ndarray, goal: Goal) -> None:
    """Both are within the gap, neither exceeds the other's bound, and b's prices (in a's terms) prove a's shares too."""
    assert max(a.gap, b.gap) <= gap
    slack = 1e-9 * max(abs(a.value), abs(b.value), float(a.market.weight.sum()))
    assert b.value <= a.bound + slack
    assert a.value <= b.bound + slack
    assert certify(*pose(a.market, goal), a.share, price)["gap"] <= 2 * gap + gap**2


def shuffled(market: Market, name: str, seed: int) -> tuple[Market, Goal, np.ndarray]:
    """Give the market with its tasks and pools in another order, the objective in that order, and where each pool went."""
    rng = np.random.default_rng(seed)
    tasks, pools = rng.permutation(len(market.demand)), rng.permutation(len(market.capacity))
    place = np.argsort(pools)
    pairs = np.concatenate([np.arange(market.indptr[i], market.indptr[i + 1]) for i in tasks])
    other = like(
        market,
        demand=market.demand[tasks],
        capacity=market.capacity[pools],
        **{field: getattr(market, field)[tasks] for field in ("weight", "floor", "cap", "mean")},
        **{field: getattr(market, field)[pairs] for field in ("value", "free")},
        indptr=np.concatenate([[0], np.cumsum(np.diff(market.indptr)[tasks])]),
        indices=place[market.indices[pairs]],
    )
    if name not in CURVES:
        return other, name, place
    kind, curve = curves(name, len(tasks), seed)
    return other, experience(kind[tasks], curve[tasks]), place


@each_goal
@given(seed=seeds)
@example(seed=438)
def test_the_order_of_tasks_and_pools_does_not_matter(name: str, seed: int):
    market = draw(seed)
    mine = goal(name, len(market.demand), seed)
    other, theirs, place = shuffled(market, name, seed)
    a, b = clear(market, mine, gap=1e-8), clear(other, theirs, gap=1e-8)
    agree(a, b, 1e-6 + rounding(pose(market, mine)[0], a.share), b.price[place], mine)


@each_newton
@pytest.mark.parametrize("floors", [False, True])
def test_the_order_does_not_matter_to_newton(name: str, floors: bool):
    market = contended(400, 7, floors=floors)
    mine = goal(name, len(market.demand), 7)
    other, theirs, place = shuffled(market, name, 7)
    a, b = clear(market, mine), clear(other, theirs)
    agree(a, b, 1e-3, b.price[place], mine)


@each_goal
@given(seed=seeds, exponents=st.tuples(*3 * [st.integers(-6, 6)]))
def test_the_unit_of_a_resource_does_not_matter(name: str, seed: int, exponents: tuple[int, ...]):
    market = draw(seed)
    mine, unit = goal(name, len(market.demand), seed), 10.0 ** np.array(exponents[: market.demand.shape[1]])
    other = like(market, demand=market.demand * unit, capacity=market.capacity * unit)
    a, b = clear(market, mine, gap=1e-8), clear(other, mine, gap=1e-8)
    agree(a, b, 1e-6 + rounding(pose(market, mine)[0], a.share), b.price * unit, mine)


@each_newton
@pytest.mark.parametrize("unit", [[1e-6, 1.0, 1e6], [1e6, 1e6, 1e6]], ids=str)
def test_the_unit_does_not_matter_to_newton(name: str, unit: list[float]):
    market = contended(400, 8)
    mine = goal(name, len(market.demand), 8)
    other = like(market, demand=market.demand * unit, capacity=market.capacity * unit)
    a, b = clear(market, mine), clear(other, mine)
    agree(a, b, 1e-3, b.price * unit, mine)


# what prices mean


@each_goal
@given(seed=seeds)
def test_prices_satisfy_complementary_slackness(name: str, seed: int):
    """What has a price is full; what is bought is a best answer to prices: each against all the money there is."""
    market = draw(seed)
    mine = goal(name, len(market.demand), seed)
    allocation = clear(market, mine, gap=1e-8)
    sale, objective = pose(market, mine)
    if not sale.enters.any():
        return
    price, slope = allocation.price, best_slope(sale, objective.near(allocation.value), allocation.price)
    worth = float((slope * sale.bought(allocation.share)).sum() + (sale.left * price).sum())
    slack = (1e-6 + rounding(sale, allocation.share)) * worth
    assert ((market.capacity - allocation.load) * price).sum() <= slack
    gain = slope[sale.row] * sale.value - sale.charge(price)
    best = np.full(len(market.demand), -np.inf)
    np.maximum.at(best, sale.row[sale.usable], gain[sale.usable])
    bought = allocation.share - market.free
    some = bought > 0
    assert (bought[some] * (best[sale.row] - gain)[some]).sum() <= slack
    able = np.isfinite(best)  # who gains by more has all that is of use
    assert ((sale.upper - market.per_task(bought))[able] * np.maximum(best[able], 0.0)).sum() <= slack


@each_size
def test_prices_alone_prove_the_gap_that_is_told(name: str, tasks: int):
    """As an auditor sees them; the least task may be served in full here, and then max-min needs no prices at all."""
    market = large(tasks, 8, 8)
    mine = goal(name, tasks, 8)
    allocation = clear(market, mine)
    assert certify(*pose(market, mine), allocation.share, allocation.price)["gap"] <= max(1e-3, allocation.gap)


@each_size
def test_slack_pools_cost_nothing_and_serve_everybody_best(name: str, tasks: int):
    """The limit in which prices vanish: every task takes all it can use where it is served best, as if it were alone."""
    market = large(tasks, 8, 9)
    market = like(market, capacity=market.capacity * 1e3)
    allocation = clear(market, goal(name, tasks, 9), gap=1e-8 if tasks < 100 else 1e-3)
    sale, objective = pose(market, goal(name, tasks, 9))
    assert allocation.gap <= 1e-3
    assert objective.value(sale.reach) == pytest.approx(allocation.value, rel=1e-3, abs=1e-3 * market.weight.sum())
    worth = float((objective.slope(sale.reach / 2) * sale.reach).sum())
    assert (market.capacity * allocation.price).sum() <= 1e-3 * worth
    if tasks < 100:
        assert not allocation.price.any()


# where one begins, and with whom


@each_newton
@pytest.mark.parametrize("seed", [10, 11])
def test_warm_and_cold_agree(name: str, seed: int):
    """Begun at prices that are 5 % off, or far off: the certified gap is the same."""
    market = contended(400, seed)
    mine = goal(name, len(market.demand), seed)
    cold, rng = clear(market, mine), np.random.default_rng(seed)
    for noise in (0.05, 3.0):
        start = cold.price * rng.lognormal(0, noise, cold.price.shape)
        warm = clear(market, mine, warm=start)
        assert fits(warm)
        agree(cold, warm, 1e-3, warm.price, mine)


@each_size
def test_an_unchanged_problem_moves_no_share(name: str, tasks: int):
    stands(contended(tasks, 12), name, tasks)


@each_size
def test_an_unchanged_problem_with_floors_moves_no_share(name: str, tasks: int):
    stands(contended(tasks, 12, floors=True), name, tasks)


def stands(market: Market, name: str, tasks: int) -> None:
    mine = goal(name, tasks, 12)
    first = clear(market, mine)
    again = clear(market, mine, warm=first)
    assert again.share.tobytes() == first.share.tobytes()
    assert again.steps == 0
    assert again.gap <= 1e-3


@each_newton
def test_threads_agree_and_each_count_gives_its_bytes_again(name: str):
    market = contended(400, 13)
    mine = goal(name, len(market.demand), 13)
    one, two, three = (clear(market, mine, threads=threads) for threads in (1, 2, 3))
    for other in (two, three):
        assert fits(other)
        agree(one, other, 1e-3, other.price, mine)
    again = clear(market, mine, threads=3)
    assert again.share.tobytes() == three.share.tobytes()
    assert again.price.tobytes() == three.price.tobytes()


@each_size
def test_a_lost_pool_is_a_pool_that_is_not_there(name: str, tasks: int):
    market = contended(tasks, 14)
    mine = goal(name, tasks, 14)
    capacity = market.capacity.copy()
    capacity[3] = 0
    lost = clear(like(market, capacity=capacity), mine)
    assert not lost.parts[market.indices == 3].any()
    assert not lost.price[3].any()
    keep = market.indices != 3
    indptr = np.concatenate([[0], np.cumsum(keep)])[market.indptr]
    without = like(
        market, capacity=capacity, value=market.value[keep], free=market.free[keep], indptr=indptr, indices=market.indices[keep]
    )  # fmt: skip
    gone = clear(without, mine)
    agree(lost, gone, 1e-3, gone.price, mine)
    assert fits(lost)
