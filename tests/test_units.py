"""Units and roundings: what is written is what is counted, and a division of whole numbers loses nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import BadInput
from apportion.core.units import PRICE_PER_MICRO, SHARE, cost, part, resource, split, whole_down


@pytest.mark.parametrize(
    ("name", "text", "base"),
    [
        ("cpu", 1.5, 1500),
        ("cpu", "250m", 250),
        ("cpu", "0.25 cores", 250),
        ("memory", "64 MiB", 65536),
        ("memory", 2, 2 * 2**20),
        ("memory", "1 GB", Fraction(10**9, 1024)),
        ("bandwidth", "1 Gbit/s", 10**6),
        ("storage", "0.5 MB/s", 500),
        ("dragons", 3, 3000),
    ],
)
def test_an_amount_is_read_in_the_units_people_write(name: str, text: object, base: object):
    assert Fraction(resource(name).parse(text)) == base


@pytest.mark.parametrize("text", ["-1", "1 parsec", "many", "", "1e999999", "nan", "inf", True, "1..2", "1e30"])
def test_what_is_no_amount_is_refused_with_the_way_out(text: object):
    with pytest.raises(BadInput, match="cpu"):
        resource("cpu").parse(text)


whole = st.integers(0, 2**53 - 1)


@given(amount=whole, share=st.integers(0, SHARE))
def test_a_part_of_an_amount_is_exact(amount: int, share: int):
    assert int(part(np.array([amount]), np.array([share]))[0]) == amount * share // SHARE


@given(price=st.integers(0, 2**40), quantity=st.integers(0, 2**43))
def test_a_cost_is_exact_or_refused(price: int, quantity: int):
    exact = price * quantity // PRICE_PER_MICRO
    if exact < 2**63:
        assert int(cost(np.array([price]), np.array([quantity]))[0]) == exact
    else:
        with pytest.raises(BadInput):
            cost(np.array([price]), np.array([quantity]))


@given(total=st.integers(0, 2**61), weight=st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_a_division_loses_nothing_and_follows_the_weights(total: int, weight: list[float]):
    out = split(total, np.array(weight))
    if not sum(weight) > 0:
        assert not out.any()
        return
    assert sum(map(int, out)) == total
    among = sum(map(Fraction, weight))
    for got, w in zip(out, weight, strict=True):
        assert abs(int(got) - Fraction(w) * total / among) <= 1 + Fraction(total * 2 * len(weight), 2**40)


@given(number=st.integers(0, 2**52))
def test_rounding_down_forgives_a_float_error_and_no_more(number: int):
    assert whole_down(np.array([float(number)]))[0] == number
    if 0 < number < 2**40:
        assert whole_down(np.array([number - 0.01]))[0] == number - 1
