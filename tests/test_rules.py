"""Sharing without prices: what each rule promises, and that it never beats the bound at market prices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import draw
from test_clearing import fits

from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.clearing.rules import against, attention, equal, literal, softmax, static
from apportion.core.market import Market
from apportion.core.units import SHARE
from apportion.valuing.projection import scores

seeds = st.integers(0, 10**6)
RULES = {
    "static": lambda market, seed: static(market, market.demand),
    "equal": lambda market, seed: equal(market),
    "softmax": lambda market, seed: softmax(market, scores(market, seed)),
}


@pytest.mark.parametrize("name", RULES)
@given(seed=seeds)
def test_rules_fit_keep_floors_and_stay_below_the_bound(name: str, seed: int):
    market = draw(seed)
    allocation = RULES[name](market, seed)
    served = market.per_task(allocation.parts)
    assert fits(allocation)
    assert (served <= np.floor(market.cap * SHARE) + 1).all()
    assert (served >= np.floor(market.floor * SHARE) - len(market.capacity)).all()
    assert not allocation.price.any()
    cleared = clear(market)
    measured = against(allocation, cleared)
    assert measured.value <= measured.bound
    assert measured.gap >= 0
    assert measured.objective == name
    assert fix(measured) is measured


def test_static_slices_do_not_move_with_demand():
    """A surge of the first task changes what it wants, not what anyone holds."""
    usual = np.array([[2.0, 1.0], [2.0, 3.0]])
    capacity = [[4.0, 4.0]]
    calm = static(Market(usual, capacity), usual)
    surge = static(Market(usual * [[6], [1]], capacity), usual)
    assert calm.granted[1] == pytest.approx(surge.granted[1])
    assert surge.share[0] == pytest.approx(1 / 6)


def test_equal_slices_are_equal_and_what_is_not_wanted_is_left():
    allocation = equal(Market([[10], [10], [1]], [[9]]))
    assert allocation.share == pytest.approx([0.3, 0.3, 1])


def test_a_slice_below_a_floor_is_lifted_and_the_rest_scaled_down():
    allocation = equal(Market([[10], [10], [10]], [[9]], floor=[0.5, 0, 0]))
    assert allocation.share == pytest.approx([0.5, 0.2, 0.2])


def test_plain_attention_overfills_and_softmax_scales_it_down():
    market = Market(np.full((3, 1), 10.0), np.full((3, 1), 10.0))
    score = np.tile([2.0, 0.0, 0.0], 3)
    granted, taken = literal(market, score)
    assert granted == pytest.approx(np.full((3, 1), 10.0))
    assert taken[0, 0] == pytest.approx(10 * 3 * np.exp(2) / (np.exp(2) + 2))
    allocation = softmax(market, score)
    assert market.per_task(attention(market, score)) == pytest.approx(np.ones(3))
    assert allocation.load[0, 0] == pytest.approx(10)
    assert fits(allocation)


@given(seeds)
def test_scores_come_from_the_seed_alone(seed: int):
    market = draw(seed, awkward=False)
    again = scores(market, seed)
    assert (scores(market, seed) == again).all()
    assert np.isfinite(again).all()
    if len(market.capacity) > 1 and len(market.demand) > 1:
        assert not np.array_equal(again, scores(market, seed + 1))


def test_scores_do_not_depend_on_the_unit_of_a_resource():
    market = draw(5, awkward=False)
    factor = np.full(market.demand.shape[1], 1024.0)
    pairs = {"indptr": market.indptr, "indices": market.indices}
    other = Market(market.demand * factor, market.capacity * factor, market.weight, market.value, **pairs)
    assert scores(other, 3) == pytest.approx(scores(market, 3))
