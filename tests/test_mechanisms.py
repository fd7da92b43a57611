"""Mechanisms for what can't be divided, and the books that others wrote: known answers, slow answers, laws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from apportion.core.errors import BadInput, Refused
from apportion.core.units import MICRO
from apportion.settlement.crossing import Trades, book, cross, mcafee, midpoint, sbba, vcg
from apportion.settlement.lots import assign, packages, second_price, uniform_price
from apportion.settlement.pool import Pool
from apportion.study import reference

seeds = st.integers(0, 2**32 - 1)
bids = st.lists(st.integers(0, 20), max_size=7).map(lambda x: np.array(x, np.int64))


def micro(credits) -> np.ndarray:
    return np.rint(np.asarray(credits, float) * MICRO).astype(np.int64)


# Equal lots.


@given(bids, st.integers(0, 8), st.integers(0, 20))
def test_winners_pay_no_more_than_they_bid_and_losers_bid_no_more_than_the_price(bid, units, reserve):
    sale = uniform_price(bid, units, reserve)
    assert len(sale.winners) == min(units, int((bid >= reserve).sum()))
    assert sale.price >= reserve
    for i, b in enumerate(bid):
        assert b >= sale.price if i in sale.winners else b <= sale.price


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 12), st.integers(0, 12))
def test_no_lie_beats_the_truth_for_one_unit(value, units, reserve, lie):
    bid = np.array(value, np.int64)
    gain = lambda sale: value[0] - sale.price if 0 in sale.winners else 0  # noqa: E731
    told = bid.copy()
    told[0] = lie
    assert gain(uniform_price(told, units, reserve)) <= gain(uniform_price(bid, units, reserve))


@given(seeds, st.integers(0, 20))
def test_revenue_over_drawn_rows_is_that_of_each_auction(seed: int, reserve: int):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 20, (4, rng.integers(1, 5)))
    each = [second_price(row, reserve) for row in rows]
    want = [sale.price if sale.winners else 0 for sale in each]
    assert reference.vickrey_revenue(rows.astype(float), float(reserve)).tolist() == want


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_menu_earns_what_its_buyer_chooses(item: float, extra: float):
    bundle = item + extra * min(item, 2 - item)
    side = (np.arange(300) + 0.5) / 300
    a, b = np.meshgrid(side, side)
    gain = np.stack([np.zeros_like(a), a - item, b - item, a + b - bundle])
    paid = np.array([0.0, item, item, bundle])[np.argmax(gain, axis=0)]
    assert reference.menu_revenue(item, bundle) == pytest.approx(paid.mean(), abs=0.02)


# Different lots.


def draw_lots(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    buyers, lots = rng.integers(1, 6, 2)
    return rng.integers(0, 20, (buyers, lots)), rng.integers(0, 10, lots)


def best_gain(value: np.ndarray, reserve: np.ndarray) -> int:
    """Every way to hand out lots, none twice."""
    buyers, lots = value.shape
    best = 0
    for choice in itertools.product(range(-1, lots), repeat=buyers):
        taken = [k for k in choice if k >= 0]
        if len(set(taken)) == len(taken):
            best = max(best, sum(int(value[i, k] - reserve[k]) for i, k in enumerate(choice) if k >= 0))
    return best


@given(seeds)
def test_assignment_gains_as_much_as_any(seed: int):
    value, reserve = draw_lots(seed)
    assert assign(value, reserve).gain == best_gain(value, reserve)


@given(seeds)
def test_at_both_ends_nobody_wants_to_swap(seed: int):
    value, reserve = draw_lots(seed)
    answer = assign(value, reserve)
    for price in (answer.low, answer.high):
        assert (price >= reserve).all()
        unsold = np.setdiff1d(np.arange(len(reserve)), answer.lot)
        assert (price[unsold] == reserve[unsold]).all()
        for i, k in enumerate(answer.lot):
            has = value[i, k] - price[k] if k >= 0 else 0
            assert has >= max(0, (value[i] - price).max())
    assert (answer.low <= answer.high).all()


@given(seeds)
def test_buyers_pay_what_they_cost_the_others(seed: int):
    """Leonard 1983: the least clearing prices are Vickrey's payments."""
    value, reserve = draw_lots(seed)
    answer = assign(value, reserve)
    for i in np.flatnonzero(answer.lot >= 0):
        k = answer.lot[i]
        others_now = answer.gain - (value[i, k] - reserve[k])
        harm = best_gain(np.delete(value, i, axis=0), reserve) - others_now
        assert answer.low[k] == reserve[k] + harm


@given(seeds)
def test_clearing_prices_are_the_ends_of_the_dual(seed: int):
    """An independent linear program: least and greatest price over all optimal duals."""
    value, reserve = draw_lots(seed)
    (buyers, lots), answer = value.shape, assign(value, reserve)
    # u_i + q_k >= value - reserve, u, q >= 0, sum u + sum q = gain
    cover = np.zeros((buyers * lots, buyers + lots))
    for i, k in itertools.product(range(buyers), range(lots)):
        cover[i * lots + k, [i, buyers + k]] = -1
    total, need = np.ones((1, buyers + lots)), -(value - reserve).ravel()
    for sign, ends in ((1, answer.low), (-1, answer.high)):
        best = linprog(np.r_[np.zeros(buyers), np.full(lots, sign)], cover, need, total, [answer.gain])
        assert best.status == 0
        assert (reserve + best.x[buyers:]).sum() == pytest.approx(ends.sum())


def test_bids_too_large_to_add_up_are_refused():
    with pytest.raises(BadInput, match="2\\^50"):
        assign(np.array([[2**50]]), np.array([0]))


# Sets of lots.


def draw_packages(seed: int) -> list[dict[frozenset, int]]:
    rng = np.random.default_rng(seed)
    sets = [frozenset(c) for k in (1, 2, 3) for c in itertools.combinations("abc", k)]
    return [
        {sets[k]: int(rng.integers(1, 20)) for k in rng.choice(len(sets), rng.integers(0, 4), replace=False)}
        for _ in range(rng.integers(1, 5))
    ]


def best_award(offers: list[dict[frozenset, int]]) -> int:
    best = 0
    for choice in itertools.product(*([None, *offer] for offer in offers)):
        given_away = [name for bundle in choice if bundle for name in bundle]
        if len(set(given_away)) == len(given_away):
            best = max(best, sum(o[b] for o, b in zip(offers, choice, strict=True) if b))
    return best


@given(seeds)
def test_packages_are_awarded_for_the_greatest_total_and_paid_by_harm(seed: int):
    offers = draw_packages(seed)
    award = packages(offers, "abc")
    assert award.welfare == best_award(offers)
    lots = [name for bundle in award.bundle for name in bundle]
    assert len(set(lots)) == len(lots)
    for i, bundle in enumerate(award.bundle):
        others = award.welfare - offers[i].get(bundle, 0)
        assert award.payment[i] == best_award(offers[:i] + offers[i + 1 :]) - others
        assert 0 <= award.payment[i] <= offers[i].get(bundle, 0)


def test_too_many_lots_and_unknown_ones_are_refused():
    with pytest.raises(BadInput, match="17 lots"):
        packages([], range(17))
    with pytest.raises(BadInput, match="bidder 1 bids for 'd'"):
        packages([{}, {frozenset("d"): 1}], "abc")


# Buyers and sellers.

RULES: dict[str, Callable[[np.ndarray, np.ndarray], Trades]] = {
    "midpoint": midpoint,
    "vcg": vcg,
    "mcafee": mcafee,
    "sbba": lambda value, cost: sbba(value, cost, lambda k: k // 2),
}


@pytest.mark.parametrize("rule", RULES)
@given(bids, bids)
def test_nobody_trades_at_a_loss(rule: str, value: np.ndarray, cost: np.ndarray):
    trades = RULES[rule](value, cost)
    assert len(trades.buyers) == len(trades.sellers) == len(set(trades.buyers)) == len(set(trades.sellers))
    assert all(value[i] >= trades.pays for i in trades.buyers)
    assert all(cost[i] <= trades.gets for i in trades.sellers)
    count = cross(value, cost).count
    assert count - (rule in ("mcafee", "sbba")) <= len(trades.buyers) <= count


@given(bids, bids)
def test_the_efficient_trades_gain_most(value: np.ndarray, cost: np.ndarray):
    pairs = zip(sorted(value.tolist(), reverse=True), sorted(cost.tolist()), strict=False)
    assert cross(value, cost).gain == sum(max(0, b - s) for b, s in pairs)


@pytest.mark.parametrize(("rule", "sign"), [("midpoint", 0), ("sbba", 0), ("mcafee", 1), ("vcg", -1)])
@given(bids, bids)
def test_who_balances_the_budget(rule: str, sign: int, value: np.ndarray, cost: np.ndarray):
    surplus = RULES[rule](value, cost).surplus
    assert surplus * sign >= 0
    assert surplus == 0 or sign


@pytest.mark.parametrize("rule", ["vcg", "mcafee", "sbba"])
@settings(max_examples=150)
@given(seeds, st.integers(0, 20))
def test_no_lie_beats_the_truth_in_a_double_auction(rule: str, seed: int, lie: int):
    """Values differ, so that nothing hangs on a tie; over the lot that leaves a seller out, the mean counts."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.arange(1, 21))
    buyers, sellers = rng.integers(1, 5, 2)
    value, cost = values[:buyers], values[buyers : buyers + sellers]

    def gain(value_told: np.ndarray, cost_told: np.ndarray, seller: bool) -> float:
        if rule == "sbba":
            drawn = [sbba(value_told, cost_told, lambda k, d=d: d % k) for d in range(12)]  # 12: all k up to 4 alike
        else:
            drawn = [RULES[rule](value_told, cost_told)]
        if seller:
            return float(np.mean([t.gets - cost[0] if 0 in t.sellers else 0 for t in drawn]))
        return float(np.mean([value[0] - t.pays if 0 in t.buyers else 0 for t in drawn]))

    if lie not in values[: buyers + sellers]:
        value_told, cost_told = value.copy(), cost.copy()
        value_told[0] = cost_told[0] = lie
        assert gain(value_told, cost, False) <= gain(value, cost, False) + 1e-9
        assert gain(value, cost_told, True) <= gain(value, cost, True) + 1e-9


@settings(max_examples=100)
@given(bids, bids, seeds)
def test_a_book_trades_all_that_can_be_at_one_price(limit_buy: np.ndarray, limit_sell: np.ndarray, seed: int):
    rng = np.random.default_rng(seed)
    buy, sell = rng.integers(0, 9, len(limit_buy)), rng.integers(0, 9, len(limit_sell))
    fills = book(limit_buy, buy, limit_sell, sell)
    volume = max((min(buy[limit_buy >= p].sum(), sell[limit_sell <= p].sum()) for p in range(21)), default=0)
    assert fills.bought.sum() == fills.sold.sum() == volume
    assert ((fills.bought >= 0) & (fills.bought <= buy)).all()
    assert ((fills.sold >= 0) & (fills.sold <= sell)).all()
    assert (limit_buy[fills.bought > 0] >= fills.price).all()
    assert (limit_sell[fills.sold > 0] <= fills.price).all()
    if volume:
        assert (limit_buy[fills.bought < buy] <= fills.price).all(), "who would have paid more gets more"
        assert (limit_sell[fills.sold < sell] >= fills.price).all()


# The pool.

reserves = st.tuples(st.integers(1, 10**24), st.integers(1, 10**24))


@given(reserves, st.lists(st.tuples(st.integers(0, 1), st.integers(1, 10**22)), max_size=10))
def test_the_product_never_falls_and_no_reserve_is_emptied(reserve, swaps):
    pool = Pool(reserve)
    for side, amount in swaps:
        after, out = pool.swap(side, amount)
        assert after.reserve[0] * after.reserve[1] >= pool.reserve[0] * pool.reserve[1]
        assert after.reserve[side] == pool.reserve[side] + amount
        assert after.reserve[1 - side] == pool.reserve[1 - side] - out
        assert min(after.reserve) > 0
        pool = after


@given(reserves, st.integers(1, 10**22))
def test_there_and_back_never_gains(reserve, amount):
    there, got = Pool(reserve).swap(0, amount)
    if got:
        assert there.next_round().swap(1, got)[1] <= amount


@given(reserves, st.integers(1, 10**22), st.integers(0, 1))
def test_no_more_than_the_quote_may_leave(reserve, amount, side):
    pool = Pool(reserve)
    with pytest.raises(Refused):
        pool.exchange(side, amount, pool.quote(side, amount) + 1)


@pytest.mark.parametrize("side", [0, 1])
def test_the_limit_holds_over_a_round_and_begins_anew(side: int):
    pool = Pool((10_000, 10_000), fee=(0, 1), limit=100)
    pool, first = pool.swap(side, 900)
    assert first == 825
    with pytest.raises(Refused, match="and 175 may in this round"):
        pool.swap(side, 900)
    assert pool.swap(1 - side, 900)[1] > 900, "the other way there is a limit of its own"
    assert pool.next_round().swap(side, 900)[1] > 175


@pytest.mark.parametrize(
    ("change", "said"),
    [({"reserve": (0, 1)}, "some of both"), ({"fee": (3, 3)}, "fee is 3/3"), ({"limit": 0}, "limit is 0")],
)
def test_a_pool_that_cannot_be_is_refused(change: dict, said: str):
    with pytest.raises(BadInput, match=said):
        replace(Pool((1, 1)), **change)


def test_a_swap_below_what_was_asked_for_moves_nothing():
    with pytest.raises(Refused, match="less than the 100 asked for"):
        Pool((1000, 1000)).swap(0, 100, least=100)
    with pytest.raises(BadInput, match="at least 1"):
        Pool((1000, 1000)).quote(0, 0)
