"""What a market is made of is checked when it is made; sums over its pairs are what a loop over its tasks gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import BadMarket
from apportion.core.market import LEAST, MOST, Market

TWO = {"demand": [[1.0, 2.0], [3.0, 4.0]], "capacity": [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]}
PAIRS = {"indptr": [0, 2, 4], "indices": [0, 1, 1, 2]}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"demand": [[1.0, 2.0], [3.0]]}, "demand must be numbers, in rows of equal length: setting an array"),
        ({"demand": [["a", "b"], ["c", "d"]]}, "demand must be numbers, in rows of equal length: it holds <U1"),
        ({"demand": [[1j, 2.0], [3.0, 4.0]]}, "it holds complex128"),
        ({"demand": [[10**400, 2.0], [3.0, 4.0]]}, "demand must be numbers"),
        ({"demand": [1.0, 2.0]}, "demand has 1 axes, not 2: one row per task, one column per resource."),
        ({"demand": [[1.0], [2.0]]}, "demand has 1 resources and capacity has 2"),
        ({"demand": [[1.0, np.nan], [3.0, 4.0]]}, "demand[0, 1] is nan: it must be finite and at least 0."),
        ({"demand": [[1.0, -1.0], [3.0, 4.0]]}, "demand[0, 1] is -1.0: it must be finite"),
        ({"demand": [[1.0, 1e300], [3.0, 4.0]]}, "demand[0, 1] is 1e+300: it must be at most 1e+50."),
        ({"demand": [[1.0, 1e-300], [3.0, 4.0]]}, "demand[0, 1] is 1e-300: it must be 0, or at least 1e-50."),
        ({"capacity": [[1.0, np.inf]] * 3}, "capacity[0, 1] is inf"),
        ({"capacity": [[1.0, 5e-324]] * 3}, "capacity[0, 1] is 5e-324"),
        (
            {"weight": [1.0, 1.7e308]},
            "weight[1] is 1.7e+308: it must be at most 1e+50. Another unit may bring it there.",
        ),
        ({"weight": [1.0, 5e-324]}, "weight[1] is 5e-324"),
        ({"weight": [1.0]}, "weight has shape (1,), not (2,)"),
        ({"weight": ["much", "more"]}, "weight must be numbers"),
        ({"value": [[1.0, 1.0, 1e200], [1.0, 1.0, 1.0]]}, "value[2] is 1e+200"),
        ({"value": [[1.0, 1.0, 1e-200], [1.0, 1.0, 1.0]]}, "value[2] is 1e-200"),
        ({"value": [[1.0, 1.0]]}, "value has shape (1, 2), not (tasks, pools) = (2, 3)"),
        ({"value": [["a"]]}, "value must be numbers"),
        ({"mean": [1.0, 1e200]}, "mean[1] is 1e+200"),
        ({"floor": [0.0, 0.5], "cap": [1.0, 0.4]}, "floor of task 1 is 0.5, above its cap 0.4"),
        ({"cap": [1.0, 1.5]}, "cap of task 1 is 1.5"),
        ({"eta": 1e-300}, "eta is 1e-300"),
        ({"eta": np.nan}, "eta is nan"),
        (
            PAIRS | {"indices": [0, 1, 1, 3]},
            "indices[3] is 3: it must be the row of a pool (there are 3, counted from 0)",
        ),
        (PAIRS | {"indices": [0, -1, 1, 2]}, "indices[1] is -1"),
        (PAIRS | {"indices": [0, 1, 1.5, 2]}, "indices[2] is 1.5"),
        (PAIRS | {"indices": [0, 1, np.nan, 2]}, "indices[2] is nan"),
        (PAIRS | {"indices": np.array([0, 1, 2**64 - 1, 2], np.uint64)}, "indices[2] is 18446744073709551615"),
        (PAIRS | {"indices": [0, 1, 2, 2]}, "indices[3] names pool 2 again for task 1: give it once."),
        (PAIRS | {"indices": [[0, 1], [1, 2]]}, "indices holds int64 in 2 axes"),
        (PAIRS | {"indptr": [0, 2.5, 4]}, "indptr[1] is 2.5: it must be a place in the list of pairs (there are 4)"),
        (PAIRS | {"indptr": [0, 2, 5]}, "indptr[2] is 5"),
        (PAIRS | {"indptr": [0, 3, 2]}, "indptr must rise from 0 to the number of pairs"),
        (PAIRS | {"indptr": [0, 4]}, "it has 2 numbers, from 0 to 4."),
        (PAIRS | {"indptr": []}, "it has 0 numbers."),
        (
            PAIRS | {"value": [1.0, 0.0, 1.0, 1.0]},
            "value of task 0 in pool 1 is 0.0: it must be above 0. To keep a task out",
        ),
        ({"tasks": ["a", "a"]}, "two tasks share a name: 'a'"),
        ({"tasks": ["a"]}, "1 names for 2 tasks"),
    ],
    ids=lambda x: None if isinstance(x, str) else " ".join(x),
)
def test_what_describes_no_market_is_refused_by_name(given: dict, why: str):
    with pytest.raises(BadMarket) as told:
        Market(**(TWO | given))
    assert why in str(told.value)
    assert "\n" not in str(told.value)


def test_the_largest_and_the_smallest_sizes_are_taken():
    for size in (LEAST, MOST):
        assert Market([[size]], [[size]], [size], [[size]]).capacity == size
    assert Market([[0.0]], [[0.0]], [0.0]).weight == 0.0
    assert Market([[1.0]], [[1.0]], mean=[5e-324]).mean > 0  # use fades for as long as an account is away


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["in order", "not in order"])
def test_a_pool_is_named_again_by_another_task_but_not_by_the_same(order: list[int]):
    Market([[1.0]] * 3, [[1.0]] * 3, indptr=[0, 3, 3, 6], indices=order + order)
    with pytest.raises(BadMarket, match=r"indices\[4\] names pool . again for task 2"):
        Market([[1.0]] * 3, [[1.0]] * 3, indptr=[0, 3, 3, 6], indices=[*order, order[0], order[0], order[1]])


@pytest.mark.parametrize("wide", [(), (1,), (3,)])
@given(seed=st.integers(0, 2**32 - 1), pairs=st.lists(st.integers(0, 12), max_size=8))
def test_a_tasks_sum_is_that_of_its_pairs_and_0_where_it_has_none(wide: tuple[int, ...], seed: int, pairs: list[int]):
    rng, indptr = np.random.default_rng(seed), np.cumsum([0, *pairs])
    indices = np.concatenate([np.zeros(0, int), *(rng.permutation(12)[:some] for some in pairs)])
    market = Market(np.ones((len(pairs), 2)), np.ones((12, 2)), indptr=indptr, indices=indices)
    for x in (rng.normal(size=(indptr[-1], *wide)), rng.integers(0, 10**9, (indptr[-1], *wide))):
        by_hand = [x[a:b].sum(axis=0) for a, b in pairwise(indptr)]
        assert market.per_task(x) == pytest.approx(np.array(by_hand, float).reshape(len(pairs), *wide))
