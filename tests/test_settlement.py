"""Credits move and none is lost: what settle and Accounts promise, in whole micro-credits."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import Scene, draw, make_tasks, net

from apportion.core.errors import BadInput, Overdrawn, Refused
from apportion.core.market import Market
from apportion.core.round import Bills, Posting, Postings
from apportion.core.units import MICRO, PRICE, SHARE, cost, part, split, whole_down
from apportion.settlement.accounts import Accounts
from apportion.settlement.settle import billed, overflowing
from apportion.settlement.whole import by_account, proportion, within

seeds = st.integers(0, 2**32 - 1)


# Laws: they hold for any shares, prices, deliveries and purses.


@given(seeds, st.booleans())
def test_credits_are_conserved(seed: int, bold: bool):
    scene = draw(seed, bold=bold)
    bills = scene.settle()
    assert sum(p.amount for p in bills.postings) == 0
    assert all(p.amount for p in bills.postings), "a line that moves nothing"


@given(seeds, st.booleans())
def test_nobody_falls_below_zero(seed: int, bold: bool):
    scene = draw(seed, bold=bold)
    bills = scene.settle()
    spent = net(bills, len(scene.balance), "charge", "floor")
    assert (scene.balance + spent >= 0).all(), "charges alone, before anything is paid out, must be covered"
    assert (scene.balance + net(bills, len(scene.balance)) >= 0).all()


@given(seeds)
def test_a_task_pays_at_most_its_bid(seed: int):
    scene = draw(seed)
    bills = scene.settle()
    assert (bills.paid <= scene.bid).all()
    assert (bills.paid >= 0).all()
    assert (bills.sponsored >= 0).all()
    assert (bills.waived >= 0).all()


@given(seeds)
def test_without_floors_nothing_is_sponsored_or_waived(seed: int):
    bills = draw(seed, floors=False).settle()
    assert not bills.sponsored.any()
    assert not bills.waived.any()


@given(seeds)
def test_sponsors_pay_only_where_a_floor_costs_more_than_the_bid(seed: int):
    scene = draw(seed)
    bills, market = scene.settle(), scene.allocation.market
    for i in np.flatnonzero(bills.sponsored + bills.waived):
        assert bills.paid[i] >= scene.bid[i] - market.demand.shape[1] * len(market.capacity), (
            "up to the odd micro-credit"
        )
        assert market.floor[i] > market.per_task(market.free)[i] - 1e-8, "its guarantee alone keeps this floor"


@given(seeds)
def test_bills_and_postings_agree(seed: int):
    scene = draw(seed)
    bills = scene.settle()
    by_task = {kind: np.zeros(len(bills.paid), np.int64) for kind in ("charge", "floor")}
    for p in bills.postings:
        if p.task >= 0:
            owner = scene.tasks.account if p.kind == "charge" else scene.tasks.sponsor
            assert p.account == owner[p.task]
            by_task[p.kind][p.task] -= p.amount
    assert (by_task["charge"] == bills.paid).all()
    assert (by_task["floor"] == bills.sponsored).all()


@given(seeds)
def test_postings_are_their_lines(seed: int):
    """Columns and lines say the same, whichever way they are read."""
    scene = draw(seed)
    postings, accounts = scene.settle().postings, len(scene.balance)
    lines = list(postings)
    assert [postings[k] for k in range(len(postings))] == lines
    assert Postings.of(*lines) == postings
    assert Postings.of(*lines[1:]) == postings[1:]
    assert Postings.of(*lines, Posting(0, "mint", 1)) != postings
    assert postings.net(accounts).tolist() == [sum(p.amount for p in lines if p.account == a) for a in range(accounts)]


@given(seeds)
def test_donors_get_at_most_the_price_of_what_they_donated(seed: int):
    scene = draw(seed)
    market, accounts = scene.allocation.market, len(scene.balance)
    got = net(scene.settle(), accounts, "donor")
    guarantee = scene.alpha * scene.entitlement[:, None, None] * market.capacity
    taken = np.zeros(guarantee.shape)
    free = np.floor(np.rint(market.free * SHARE)[:, None] * market.demand[market.row] / SHARE + 1e-9)
    np.add.at(taken, (scene.tasks.account[market.row], market.indices), free)
    donated = np.maximum(0, whole_down(guarantee) - taken).astype(np.int64)
    limit = cost(np.rint(scene.allocation.price * PRICE), donated).sum(axis=(1, 2))
    assert (got >= 0).all()
    assert (got <= limit).all()


@given(seeds)
def test_what_donors_leave_returns_by_entitlement(seed: int):
    scene = draw(seed)
    accounts = len(scene.balance)
    bills = scene.settle()
    collected = int(bills.paid.sum() + bills.sponsored.sum())
    left = collected - int(net(bills, accounts, "donor").sum())
    dividend = net(bills, accounts, "dividend")
    assert left >= 0
    assert dividend.sum() == left
    assert np.abs(dividend - left * scene.entitlement / scene.entitlement.sum()).max() <= 1
    assert not dividend[scene.entitlement == 0].any()


@given(seeds)
def test_slack_moves_no_money(seed: int):
    scene = draw(seed)
    scene = replace(scene, allocation=replace(scene.allocation, price=np.zeros_like(scene.allocation.price)), kappa=1e9)
    bills = scene.settle()
    assert len(bills.postings) == 0
    assert not bills.paid.any()
    assert not bills.sponsored.any()
    assert not bills.waived.any()


@given(seeds)
def test_delivering_less_never_costs_more(seed: int):
    scene = draw(seed)
    rng = np.random.default_rng(seed + 1)
    full = replace(scene.outcome, delivered=scene.allocation.granted)
    less = replace(full, delivered=np.floor(full.delivered * rng.random(full.delivered.shape)).astype(np.int64))
    unmeasured = replace(full, delivered=np.full_like(full.delivered, -1))
    all_of_it = replace(scene, outcome=full).settle()
    part_of_it = replace(scene, outcome=less).settle()
    owes = lambda bills: bills.paid + bills.sponsored + bills.waived  # noqa: E731
    assert (owes(part_of_it) <= owes(all_of_it)).all()
    assert (part_of_it.paid <= all_of_it.paid).all()
    assert (replace(scene, outcome=unmeasured).settle().paid == all_of_it.paid).all()
    nothing = replace(scene, outcome=replace(full, delivered=np.zeros_like(full.delivered)))
    assert not owes(nothing.settle()).any()


@given(seeds)
def test_what_is_free_is_delivered_first_and_never_billed(seed: int):
    scene = draw(seed)
    market, granted, delivered = scene.allocation.market, scene.allocation.granted, scene.outcome.delivered
    free = part(market.demand[market.row], scene.allocation.market.free_parts[:, None])
    paid_for = billed(scene.allocation, scene.outcome, free)
    assert (paid_for >= 0).all()
    assert (paid_for <= granted - free).all()
    measured = delivered >= 0
    assert (paid_for <= np.maximum(0, delivered - free))[measured].all()
    assert (paid_for == granted - free)[~measured].all()


@given(seeds)
def test_order_of_tasks_does_not_matter_while_purses_suffice(seed: int):
    """First come first served holds only where a sponsor's purse runs out: here nobody's does."""
    scene = draw(seed)
    scene = replace(scene, balance=scene.balance + 10**9)
    market = scene.allocation.market
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(market.demand))
    pairs = np.concatenate([np.flatnonzero(market.row == i) for i in order])
    shuffled = Market(
        market.demand[order],
        market.capacity,
        market.weight[order],
        market.value[pairs],
        indptr=np.concatenate([[0], np.cumsum(np.diff(market.indptr)[order])]),
        indices=market.indices[pairs],
        floor=market.floor[order],
        free=market.free[pairs],
    )
    other = replace(
        scene,
        tasks=make_tasks(scene.tasks.account[order], scene.tasks.sponsor[order], demand=market.demand[order]),
        allocation=replace(scene.allocation, market=shuffled, share=scene.allocation.share[pairs]),
        outcome=replace(scene.outcome, delivered=scene.outcome.delivered[pairs]),
    )
    bills, again = scene.settle(), other.settle()
    assert (bills.paid[order] == again.paid).all()
    assert (bills.sponsored[order] == again.sponsored).all()
    assert (net(bills, len(scene.balance)) == net(again, len(scene.balance))).all()


@given(seeds)
def test_order_of_accounts_moves_at_most_the_odd_micro_credit(seed: int):
    """Ties of the largest remainder go to the first account: one micro-credit in a dividend or an overflow."""
    scene = replace(draw(seed), kappa=1e9)
    order = np.random.default_rng(seed).permutation(len(scene.balance))
    place = np.append(np.argsort(order), -1)  # where each account went; -1 stays -1: nobody
    tasks = replace(scene.tasks, account=place[scene.tasks.account], sponsor=place[scene.tasks.sponsor])
    other = replace(scene, tasks=tasks, balance=scene.balance[order], entitlement=scene.entitlement[order])
    bills, again = scene.settle(), other.settle()
    assert (bills.paid == again.paid).all()
    assert (bills.sponsored == again.sponsored).all()
    for kind, slack in (("charge", 0), ("floor", 0), ("donor", 0), ("dividend", 1)):
        assert np.abs(net(bills, len(order), kind)[order] - net(again, len(order), kind)).max() <= slack


@given(seeds)
def test_nobody_keeps_more_than_kappa_allows(seed: int):
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 8)
    entitlement = rng.dirichlet(np.full(n, 0.5))
    balance = np.floor(rng.pareto(0.5, n) * MICRO).clip(0, 1e15).astype(np.int64)
    kappa, supply = float(rng.choice([1.0, 1.5, 3.0, np.inf])), int(balance.sum())
    moved = overflowing(balance, entitlement, kappa, supply)
    assert moved.sum() == 0
    assert (balance + moved >= 0).all()
    assert (balance + moved <= np.ceil(kappa * entitlement * supply) + 1).all()
    limit = np.ceil(kappa * entitlement * supply)
    assert not moved[(balance <= limit) & (entitlement == 0)].any()
    assert (moved[balance > limit] <= 0).all(), "who is above gives"
    assert (moved[balance < limit] >= 0).all(), "who is below takes"


@given(seeds)
def test_bids_never_exceed_the_balance_and_shrink_alike(seed: int):
    rng = np.random.default_rng(seed)
    accounts, n = int(rng.integers(1, 5)), int(rng.integers(1, 9))
    entitlement = rng.dirichlet(np.ones(accounts))
    balance = np.floor(rng.uniform(0, 20, accounts) * MICRO * rng.integers(0, 2, accounts)).astype(np.int64)
    tasks = make_tasks(
        rng.integers(0, accounts, n),
        weight=rng.uniform(0, 3, n) * rng.integers(0, 2, n),
        surge=rng.choice([1.0, 6.0], n),
    )
    purse = Accounts(tuple(f"a{k}" for k in range(accounts)), entitlement, balance, 12.0, 4.0)
    rich = Accounts(purse.name, entitlement, balance + 10**12, 12.0, 4.0)
    bid, full = purse.bids(tasks), rich.bids(tasks)
    total, wanted = by_account(tasks.account, bid, accounts), by_account(tasks.account, full, accounts)
    assert (total <= balance).all()
    assert (bid >= 0).all()
    covered = (wanted <= balance)[tasks.account]
    assert (bid[covered] == full[covered]).all()
    scale = np.minimum(1.0, balance / np.maximum(wanted, 1))[tasks.account]
    assert np.abs(bid - full * scale).max() <= 1 + 1e-6


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 2**62)), min_size=1))
def test_proportions_are_exact(rows: list[tuple[int, int, int]]):
    a, b, c = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    b = np.minimum(b, c)
    want = [x * y // z if z else 0 for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert proportion(a, b, c).tolist() == want


@given(seeds)
def test_first_come_first_served_is_what_a_loop_would_do(seed: int):
    rng = np.random.default_rng(seed)
    accounts, n = int(rng.integers(1, 5)), int(rng.integers(0, 12))
    top = int(rng.choice([10, 2**61]))
    limit, amount = rng.integers(0, top, accounts), rng.integers(0, top, n)
    account = rng.integers(0, accounts, n)
    left, want = limit.tolist(), []
    for a, x in zip(account.tolist(), amount.tolist(), strict=True):
        want.append(min(x, left[a]))
        left[a] -= want[-1]
    assert within(limit, account, amount).tolist() == want


def by_hand(scene: Scene) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """The rules of `settle` once more, one number at a time: paid, sponsored, waived, donor pay, dividends."""
    market, account = scene.allocation.market, scene.tasks.account.tolist()
    n, accounts, resources = len(account), len(scene.balance), market.demand.shape[1]
    whole = lambda x: int(Fraction(float(x)) + Fraction(1, 2))  # noqa: E731
    price = [[whole(p * PRICE) for p in line] for line in scene.allocation.price]
    pairs = [(i, e) for i in range(n) for e in range(market.indptr[i], market.indptr[i + 1])]
    charge, free_units, parts, free_parts = {}, {}, [0] * n, [0] * n
    for i, e in pairs:
        share, free = whole(scene.allocation.share[e] * SHARE), whole(market.free[e] * SHARE)
        parts[i], free_parts[i] = parts[i] + share, free_parts[i] + free
        for r in range(resources):
            demand, delivered = int(market.demand[i, r]), int(scene.outcome.delivered[e, r])
            free_units[e, r] = demand * free // SHARE
            bought = demand * share // SHARE - free_units[e, r]
            if delivered >= 0:
                bought = min(bought, max(0, delivered - free_units[e, r]))
            charge[e, r] = price[market.indices[e]][r] * bought * MICRO // PRICE
    purse, own, due, pledged = scene.balance.tolist(), [0] * n, [0] * n, [0] * n
    owed = [sum(charge[e, r] for k, e in pairs if k == i for r in range(resources)) for i in range(n)]
    for i, a in enumerate(account):
        own[i] = min(owed[i], int(scene.bid[i]), purse[a])
        purse[a] -= own[i]
    for i, s in enumerate(scene.tasks.sponsor.tolist()):
        bought = parts[i] - free_parts[i]
        needed = min(bought, max(0, math.ceil(market.floor[i] * SHARE - 1e-3) - free_parts[i]))
        due[i] = max(0, (owed[i] * needed // bought if bought else 0) - own[i])
        if s >= 0:
            pledged[i] = min(due[i], purse[s])
            purse[s] -= pledged[i]
    so_far, got, revenue = [0] * n, [0] * n, {}
    for i, e in pairs:
        for r in range(resources):
            so_far[i] += charge[e, r]
            kept = (so_far[i] * (own[i] + pledged[i]) // owed[i] if owed[i] else 0) - got[i]
            got[i] += kept
            where = (int(market.indices[e]), r)
            revenue[where] = revenue.get(where, 0) + kept
    donor = [0] * accounts
    for (j, r), collected in revenue.items():
        left = []
        for a in range(accounts):
            guarantee = int(scene.alpha * float(scene.entitlement[a]) * float(market.capacity[j, r]) * (1 + 1e-12))
            taken = sum(free_units[e, r] for i, e in pairs if account[i] == a and market.indices[e] == j)
            left.append(max(0, guarantee - taken))
        for a, donated in enumerate(left):
            if donated:
                donor[a] += min(collected * donated // sum(left), price[j][r] * donated * MICRO // PRICE)
    dividend = split(sum(got) - sum(donor), scene.entitlement).tolist()
    return own, pledged, [d - s for d, s in zip(due, pledged, strict=True)], donor, dividend


@settings(max_examples=100)
@given(seeds, st.booleans())
def test_bills_are_what_the_rules_say_one_number_at_a_time(seed: int, bold: bool):
    scene = draw(seed, bold=bold)
    bills, accounts = scene.settle(), len(scene.balance)
    paid, sponsored, waived, donor, dividend = by_hand(scene)
    assert bills.paid.tolist() == paid
    assert bills.sponsored.tolist() == sponsored
    assert bills.waived.tolist() == waived
    assert net(bills, accounts, "donor").tolist() == donor
    assert net(bills, accounts, "dividend").tolist() == dividend


# Faults: wholly or not at all.


def test_an_overdrawn_account_stops_everything():
    purse = Accounts(("x", "y"), np.array([0.5, 0.5]), np.array([120, 300]), 1.0, 4.0)
    none = np.zeros(1, np.int64)
    bills = Bills(
        Postings.of(Posting(1, "charge", -100, 0), Posting(0, "charge", -150, 0), Posting(1, "dividend", 250)),
        none,
        none,
        none,
    )
    with pytest.raises(Overdrawn, match=r"account 'x' holds 120 micro-credits and owes 150; nothing was moved\."):
        purse.post(bills)
    assert purse.balance.tolist() == [120, 300]


@pytest.mark.parametrize(("amount", "said"), [(3, "make 3"), (-2, "lose 2")])
def test_bills_that_make_or_lose_credits_are_refused(amount: int, said: str):
    purse = Accounts(("x",), np.array([1.0]), np.array([120]), 1.0, 4.0)
    none = np.zeros(1, np.int64)
    with pytest.raises(Refused, match=said):
        purse.post(Bills(Postings.of(Posting(0, "dividend", amount)), none, none, none))
    assert purse.balance.tolist() == [120]


def test_a_balance_read_is_a_copy():
    purse = Accounts(("x",), np.array([1.0]), np.array([120]), 1.0, 4.0)
    purse.balance[0] = 10**9
    assert purse.supply == 120


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entitlement": np.array([0.5, -0.1])}, "account 'y' is entitled to -0.1"),
        ({"entitlement": np.array([0.9, 0.9])}, "entitlements come to 1.8"),
        ({"entitlement": np.array([0.0, 0.0])}, "entitlements come to 0"),
        ({"balance": np.array([5, -1])}, "account 'y' would begin with -1"),
        ({"balance": np.array([5])}, "1 balances"),
        ({"kappa": 0.5}, "kappa is 0.5"),
        ({"credits_per_round": -1.0}, "credits_per_round is -1"),
    ],
)
def test_accounts_that_cannot_be_are_refused(change: dict, said: str):
    good = {
        "name": ("x", "y"),
        "entitlement": np.array([0.5, 0.5]),
        "balance": np.array([5, 5]),
        "credits_per_round": 1.0,
        "kappa": 2.0,
    }
    with pytest.raises(BadInput, match=said):
        Accounts(**(good | change))


@given(seeds)
def test_many_rounds_lose_nothing(seed: int):
    """The same purses through rounds of other scenes: the supply never drifts."""
    scene = draw(seed)
    purse = Accounts(
        tuple(map(str, range(len(scene.balance)))), scene.entitlement / scene.entitlement.sum(), scene.balance, 5.0, 2.0
    )
    supply = purse.supply
    for _ in range(20):
        bid = purse.bids(scene.tasks)
        market = scene.allocation.market
        again = Market(
            market.demand, market.capacity, bid / MICRO, market.value,
            indptr=market.indptr, indices=market.indices, floor=market.floor, free=market.free,
        )  # fmt: skip
        purse.post(replace(scene, allocation=replace(scene.allocation, market=again), balance=purse.balance).settle())
        assert purse.supply == supply
        assert (purse.balance >= 0).all()


@given(st.integers(0, 10**15), st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_dividend_is_split_to_the_last_micro_credit(total: int, weight: list[float]):
    assert split(total, np.array(weight)).sum() == (total if sum(weight) > 0 else 0)
