"""Sums over a market's pairs are what a loop over its tasks gives, whatever a pair has."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.market import Market


@pytest.mark.parametrize("wide", [(), (1,), (3,)])
@given(seed=st.integers(0, 2**32 - 1), pairs=st.lists(st.integers(0, 12), max_size=8))
def test_a_tasks_sum_is_that_of_its_pairs_and_0_where_it_has_none(wide: tuple[int, ...], seed: int, pairs: list[int]):
    rng, indptr = np.random.default_rng(seed), np.cumsum([0, *pairs])
    market = Market(np.ones((len(pairs), 2)), np.ones((3, 2)), indptr=indptr, indices=rng.integers(0, 3, indptr[-1]))
    for x in (rng.normal(size=(indptr[-1], *wide)), rng.integers(0, 10**9, (indptr[-1], *wide))):
        by_hand = [x[a:b].sum(axis=0) for a, b in pairwise(indptr)]
        assert market.per_task(x) == pytest.approx(np.array(by_hand, float).reshape(len(pairs), *wide))
