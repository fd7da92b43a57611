"""Bills worked by hand: who pays for what a floor adds, what is waived, where an overflow goes."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import Scene, make_tasks

from apportion.core.allocation import Allocation
from apportion.core.market import Market
from apportion.core.round import Bills, Outcome
from apportion.core.units import MICRO, PRICE, SHARE
from apportion.settlement.accounts import Accounts
from apportion.settlement.settle import overflowing

UNIT = 10**6  # base units in one unit of a hand-worked case, so that rounding stays out of its sixth digit


def one_resource(capacity, demand, bid, free, bought, price, floor=None, sponsor=None, **more) -> Scene:
    """A hand-worked round of one pool and one resource, one task per account, in units of `UNIT` base units."""
    demand = np.asarray(demand, float)
    n = len(demand)
    share = lambda x: np.floor(np.asarray(x, float) / demand * SHARE + 1e-6) / SHARE  # noqa: E731
    market = Market(
        demand[:, None] * UNIT,
        [[capacity * UNIT]],
        bid,
        free=share(free),
        floor=None if floor is None else share(floor),
    )
    fixed = np.floor(np.array([[price]]) / UNIT * PRICE) / PRICE
    total = share(np.add(free, bought))
    allocation = Allocation(market, total, fixed, "proportional", 0.0, 0.0, 0.0)
    outcome = Outcome(np.full((n, 1), -1), np.full(n, -1), np.full(n, -1), "none", ("unmeasured",))
    tasks = make_tasks(range(n), sponsor, demand=market.demand)
    return Scene(tasks, allocation, outcome, **more)


def credits(*amounts: float) -> np.ndarray:
    return np.array([round(a * MICRO) for a in amounts])


def floor_subsidy(sponsor: int, purse: float) -> Bills:
    """Capacity 10, bids 1, 1, 2; a floor of 4 where the bid buys 2 costs exactly 1 more (floor-subsidy.json)."""
    return one_resource(
        10, [10, 10, 10], [1, 1, 2], [0, 0, 0], [4, 2, 4], 0.5, floor=[4, 0, 0], sponsor=[sponsor, -1, -1],
        balance=credits(5, 5, 5, purse), entitlement=np.full(4, 0.25), alpha=0.0,
    ).settle()  # fmt: skip


def test_a_sponsor_pays_what_the_floor_adds():
    bills = floor_subsidy(sponsor=3, purse=5)
    assert bills.paid == pytest.approx(credits(1, 1, 2), abs=10)
    assert bills.sponsored == pytest.approx(credits(1, 0, 0), abs=10)
    assert not bills.waived.any()


def test_what_a_sponsor_cannot_pay_is_waived():
    bills = floor_subsidy(sponsor=3, purse=0.25)
    assert bills.sponsored == pytest.approx(credits(0.25, 0, 0), abs=10)
    assert bills.waived == pytest.approx(credits(0.75, 0, 0), abs=10)


def test_what_nobody_sponsors_is_waived():
    bills = floor_subsidy(sponsor=-1, purse=5)
    assert not bills.sponsored.any()
    assert bills.waived == pytest.approx(credits(1, 0, 0), abs=10)


def test_a_satisfied_task_keeps_the_rest_of_its_bid():
    """caps-one-binds.json: cap 3 of 10 at a price of 1/7 costs 3/7 of the 1 bid."""
    bills = one_resource(
        10, [10, 10], [1, 1], [0, 0], [3, 7], 1 / 7,
        balance=credits(5, 5), entitlement=np.full(2, 0.5), alpha=0.0,
    ).settle()  # fmt: skip
    assert bills.paid == pytest.approx(credits(3 / 7, 1), abs=100)


def test_memory_leaves_part_of_the_bid_unspent():
    """temporal-two.json: with eta 1/2 and mean use 4 and 1, bids of 1 are charged 7/15 and 13/15."""
    bills = one_resource(
        10, [10, 10], [1, 1], [0, 0], [3.5, 6.5], 2 / 15,
        balance=credits(5, 5), entitlement=np.full(2, 0.5), alpha=0.0,
    ).settle()  # fmt: skip
    assert bills.paid == pytest.approx(credits(7 / 15, 13 / 15), abs=100)


def test_a_solver_that_overcharges_is_let_go():
    """A price .1 % too high for the bid, no floor: the bid is paid, and nobody is asked for the rest."""
    bills = one_resource(
        10, [10, 10], [1, 1], [0, 0], [5, 5], 0.2002, floor=[4, 0], sponsor=[1, -1],
        balance=credits(5, 5), entitlement=np.full(2, 0.5), alpha=0.0,
    ).settle()  # fmt: skip
    assert bills.paid == pytest.approx(credits(1, 1), abs=2)
    assert not bills.sponsored.any()
    assert not bills.waived.any()


def test_sponsors_are_asked_in_task_order():
    scene = one_resource(
        10, [10, 10], [0, 0], [0, 0], [5, 5], 0.2, floor=[5, 5], sponsor=[2, 2],
        balance=credits(0, 0, 1.5), entitlement=np.full(3, 1 / 3), alpha=0.0,
    )  # fmt: skip
    bills = scene.settle()
    assert bills.sponsored == pytest.approx(credits(1, 0.5), abs=10)
    assert bills.waived == pytest.approx(credits(0, 0.5), abs=10)


def test_own_charges_come_before_sponsorships():
    """Account 1 sponsors task 0 and bids all it holds on its own task: only what that leaves goes to the floor."""
    scene = one_resource(
        10, [10, 10], [0, 1], [0, 0], [5, 4], 0.2, floor=[5, 0], sponsor=[1, -1],
        balance=credits(0, 1), entitlement=np.full(2, 0.5), alpha=0.0,
    )  # fmt: skip
    bills = scene.settle()
    assert bills.paid == pytest.approx(credits(0, 0.8), abs=10)
    assert bills.sponsored == pytest.approx(credits(0.2, 0), abs=10)
    assert bills.waived == pytest.approx(credits(0.8, 0), abs=10)


def test_overflow_fills_those_below_by_entitlement_until_they_are_full():
    """Supply 100, kappa 1.25: limits 62.5, 25, 37.5. The 37.5 above go 2:3 until b is full at 25; c takes the rest."""
    balance, entitlement = credits(100, 0, 0), np.array([0.5, 0.2, 0.3])
    assert (overflowing(balance, entitlement, 1.25, 100 * MICRO) == credits(-37.5, 15, 22.5)).all()
    balance = credits(80, 20, 0)
    assert (overflowing(balance, entitlement, 1.25, 100 * MICRO) == credits(-17.5, 5, 12.5)).all()


def test_an_account_without_entitlement_keeps_what_it_was_given():
    balance, entitlement = credits(50, 50, 0), np.array([0.0, 0.5, 0.5])
    assert not overflowing(balance, entitlement, 1.0, 100 * MICRO).any()
    assert (overflowing(credits(20, 80, 0), entitlement, 1.0, 100 * MICRO) == credits(0, -30, 30)).all()


def test_what_finds_no_room_stays():
    """Entitlements of a tenth in all leave room for a tenth of the supply."""
    balance, entitlement = credits(8, 0), np.array([0.1, 0.1])
    assert (overflowing(balance, entitlement, 1.0, 100 * MICRO) == credits(0, 0)).all()
    assert (overflowing(credits(40, 5), entitlement, 1.0, 100 * MICRO) == credits(-5, 5)).all()


def test_an_event_raises_the_bid_with_the_demand():
    purse = Accounts(("a", "b"), np.array([0.6, 0.4]), credits(100, 100), 10.0, 4.0)
    calm = purse.bids(make_tasks([0, 0, 1], weight=[1, 2, 1]))
    assert (calm == credits(2, 4, 4)).all()
    opening = purse.bids(make_tasks([0, 0, 1], weight=[1, 2, 1], surge=[6, 1, 1]))
    assert (opening == credits(12, 4, 4)).all()
