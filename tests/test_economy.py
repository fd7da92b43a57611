"""Accounts that nest, join and leave; reservations, budgets, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.allocation import Allocation
from apportion.core.errors import BadInput, Overdrawn
from apportion.core.market import Market, Tasks
from apportion.core.round import Bills, Outcome, Postings
from apportion.core.units import MICRO
from apportion.settlement.accounts import Accounts
from apportion.settlement.acts import Act
from apportion.settlement.budgets import UNLIMITED, Budgets
from apportion.settlement.escrow import Reservation, quote, reserved
from apportion.settlement.memory import Memory
from apportion.settlement.settle import settle
from apportion.settlement.tree import Tree
from apportion.settlement.whole import by_account, pour

seeds = st.integers(0, 2**32 - 1)
UNIT = 10**6


def make_tasks(account, demand=None, kind=None, sponsor=None, cap=None) -> Tasks:
    n = len(account)
    demand = np.full((n, 1), 10.0) if demand is None else np.asarray(demand, float)
    return Tasks(
        name=tuple(f"t{i}" for i in range(n)),
        kind=("game",) * n if kind is None else tuple(kind),
        account=np.asarray(account, np.int64),
        sponsor=np.full(n, -1) if sponsor is None else np.asarray(sponsor, np.int64),
        demand=demand,
        base=demand,
        surge=np.ones(n),
        floor=np.zeros(n),
        cap=np.ones(n) if cap is None else np.asarray(cap, float),
        weight=np.ones(n),
        priority=np.zeros(n, np.int64),
        target=np.full(n, 0.9),
        eligible=((0,),) * n,
    )


def give(tasks: Tasks, share, capacity, price=0.0, bid=None, free=None) -> Allocation:
    """An allocation of one pool, made by hand."""
    market = Market(tasks.demand, [capacity], bid, floor=tasks.floor, cap=tasks.cap, free=free)
    return Allocation(market, np.array(share, float), np.full((1, len(capacity)), float(price)), "none", 0.0, 0.0, 0.0)


def unmeasured(allocation: Allocation) -> Outcome:
    n, unknown = len(allocation.market.demand), np.full(allocation.granted.shape, -1)
    return Outcome(unknown, np.full(n, -1), np.full(n, -1), "none", ("unmeasured",) * unknown.shape[1])


def draw_tree(seed: int) -> tuple[Tree, np.random.Generator]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 10))
    parent = np.array([rng.integers(-1, k) if k else -1 for k in range(n)])
    return Tree(parent, rng.integers(1, 5, n).astype(float)), rng


def ancestors(tree: Tree, a) -> list[int]:
    out = []
    while a >= 0:
        out.append(int(a))
        a = tree.parent[a]
    return out


# Accounts inside accounts.


@given(seeds)
def test_entitlements_come_to_the_whole_and_multiply_downwards(seed: int):
    tree, _ = draw_tree(seed)
    assert tree.entitlement.sum() == pytest.approx(1)
    for a in np.flatnonzero(tree.leaf):
        want = 1.0
        for b in ancestors(tree, a):
            want *= tree.weight[b] / tree.weight[tree.parent == tree.parent[b]].sum()
        assert tree.entitlement[a] == pytest.approx(want)


@given(seeds)
def test_dividing_down_the_tree_wastes_nothing_that_is_needed(seed: int):
    tree, rng = draw_tree(seed)
    need = np.where(tree.leaf, rng.integers(0, 50, len(tree.parent)), 0)
    total = int(rng.integers(0, 150))
    got = tree.divide(total, need)
    assert (got >= 0).all()
    assert (got <= need).all()
    assert got.sum() == min(total, need.sum())


@given(seeds)
def test_who_is_short_has_no_less_than_its_part_beside_its_siblings(seed: int):
    """Weighted max-min: a family that needs more has at least what any sibling has, weight for weight, up to rounding."""
    tree, rng = draw_tree(seed)
    need = np.where(tree.leaf, rng.integers(0, 50_000, len(tree.parent)), 0)
    got = tree.below(tree.divide(int(rng.integers(0, 150_000)), need))
    wanted = tree.below(need)
    for a in np.flatnonzero(got < wanted):
        for b in np.flatnonzero(tree.parent == tree.parent[a]):
            assert (got[a] + 10) / tree.weight[a] >= (got[b] - 10) / tree.weight[b]


@given(seeds)
def test_bids_stay_within_every_limit_above_them(seed: int):
    tree, rng = draw_tree(seed)
    account = rng.choice(np.flatnonzero(tree.leaf), rng.integers(1, 9))
    bid, limit = rng.integers(0, 1000, len(account)), rng.integers(0, 1500, len(tree.parent))
    got = tree.shrink(account, bid, limit)
    assert (got <= bid).all()
    assert (tree.below(by_account(account, got, len(limit))) <= limit).all()
    roomy = np.array([all(bid.sum() <= limit[b] for b in ancestors(tree, a)) for a in account])
    assert (got == bid)[roomy].all()


def test_an_inner_limit_shrinks_all_below_it_alike():
    tree = Tree(np.array([-1, 0, 0, 2, -1]), np.ones(5))  # 0 has 1 and 2, 2 has 3; 4 stands alone
    got = tree.shrink(np.array([1, 3, 4]), np.array([60, 60, 60]), np.array([90, 100, 100, 30, 100]))
    assert got.tolist() == [60, 30, 60], "3 is held to 30 first, then 0 has room for both"
    got = tree.shrink(np.array([1, 3, 4]), np.array([60, 60, 60]), np.array([45, 100, 100, 30, 100]))
    assert got.tolist() == [30, 15, 60]


@given(seeds)
def test_what_a_family_takes_beyond_its_members_own_is_not_donated(seed: int):
    tree, rng = draw_tree(seed)
    size = len(tree.parent)
    guarantee = np.where(tree.leaf, rng.integers(0, 50, size), 0)
    taken = np.where(tree.leaf, rng.integers(0, 60, size), 0)
    left, own = tree.left(guarantee, taken), np.maximum(0, guarantee - taken)
    assert (left >= 0).all()
    assert (left <= own).all()
    whole, used = tree.below(guarantee), tree.below(taken)
    top = tree.parent < 0
    assert left.sum() == np.maximum(0, whole - used)[top].sum()


def test_siblings_take_a_guarantee_for_nothing_and_only_the_rest_is_sold():
    """Guild 0 has 1 and 2, each guaranteed 20 of 100; 2 leaves 15, 1 takes 5 of these, so 10 are donated, all by 2."""
    tree = Tree(np.array([-1, 0, 0, -1]), np.array([1.0, 1.0, 1.0, 1.0]))
    tasks = make_tasks([1, 2, 3], [[100.0], [100.0], [100.0]])
    allocation = give(tasks, [0.25, 0.05, 0.7], [100.0], 0.1, bid=[0.0, 0.0, 9.0], free=[0.25, 0.05, 0.4])
    balance = np.full(4, 10 * MICRO)
    arguments = (tasks, allocation, unmeasured(allocation), balance, tree.entitlement, 0.8, 4.0, int(balance.sum()))
    earned = {p.account: p.amount for p in settle(*arguments, tree=tree).postings if p.kind == "donor"}
    assert earned == {2: 1 * MICRO}, "10 of the 30 that were sold, at .1"


def test_parents_come_first():
    with pytest.raises(BadInput, match="account 0 stands before its parent 1"):
        Tree(np.array([1, -1]), np.ones(2))


def test_an_account_bids_by_its_part_of_its_parents_part():
    tree = Tree(np.array([-1, 0, 0, -1]), np.array([3.0, 1.0, 2.0, 1.0]))
    balance = np.array([0, 100, 100, 100]) * MICRO  # what is below the guild is what counts, not its own chest
    purse = Accounts(("guild", "a", "b", "solo"), tree.entitlement, balance, 12.0, 4.0, tree=tree)
    tasks = make_tasks([1, 2, 2, 3])
    assert purse.bids(tasks).tolist() == [3 * MICRO, 3 * MICRO, 3 * MICRO, 3 * MICRO]
    limit = np.array([6, 100, 100, 100]) * MICRO
    assert purse.bids(tasks, limit).tolist() == [2 * MICRO, 2 * MICRO, 2 * MICRO, 3 * MICRO]


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300)), min_size=1, max_size=6))
def test_pouring_fills_and_never_overfills(total: int, rows: list[tuple[int, int]]):
    weight, room = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    got = pour(total, weight, room)
    assert (got >= 0).all()
    assert (got <= room).all()
    assert got.sum() == min(total, room[weight > 0].sum())


# What an operator does.


def world() -> Accounts:
    return Accounts(("x", "y"), np.array([0.25, 0.75]), np.array([100, 300]), 1.0, 4.0)


@given(seeds)
def test_only_logged_acts_change_the_supply_and_by_what_they_say(seed: int):
    rng, purse = np.random.default_rng(seed), world()
    names = ["x", "y", "z", "w"]
    for _ in range(12):
        what = ("join", "leave", "mint", "burn", "transfer")[rng.integers(5)]
        account, taker = (str(name) for name in rng.choice(names, 2))
        act = Act(what, account, int(rng.integers(0, 200)), taker, float(rng.integers(0, 2)) / 4)
        before, supply = (purse.name, purse.entitlement.tolist(), purse.balance.tolist()), purse.supply
        try:
            lines = purse.perform(act)
        except (BadInput, Overdrawn):
            assert (purse.name, purse.entitlement.tolist(), purse.balance.tolist()) == before, "all or nothing"
            continue
        made = {kind: sum(p.amount for p in lines if p.kind == kind) for kind in ("transfer", "mint", "burn")}
        assert made["transfer"] == 0
        assert made["burn"] <= 0 <= made["mint"]
        assert purse.supply - supply == made["mint"] + made["burn"]
        assert (purse.balance >= 0).all()
        assert purse.entitlement.sum() == pytest.approx(1)
        assert len(purse.name) == len(purse.entitlement) == len(purse.balance)
        assert purse.name[: len(before[0])] == before[0], "rows keep their meaning"


def test_who_joins_takes_its_part_of_everybodys():
    purse = world()
    purse.perform(Act("join", "z", 50, entitlement=0.2))
    assert purse.name == ("x", "y", "z")
    assert purse.entitlement == pytest.approx([0.2, 0.6, 0.2])
    assert purse.balance.tolist() == [100, 300, 50]
    purse.perform(Act("leave", "y"))
    assert purse.entitlement == pytest.approx([0.5, 0.0, 0.5])
    assert purse.balance.tolist() == [100, 0, 50]
    purse.perform(Act("join", "y", entitlement=0.5))
    assert purse.entitlement == pytest.approx([0.25, 0.5, 0.25])


@given(seeds)
def test_an_act_is_read_from_the_log_as_it_was(seed: int):
    rng = np.random.default_rng(seed)
    for act in (
        Act("join", "z", int(rng.integers(10**15)), entitlement=float(rng.random())),
        Act("transfer", "x", int(rng.integers(10**15)), "y"),
        Act("leave", "x"),
    ):
        assert Act.read(act.what, act.details) == act


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda: Act("borrow", "x"), BadInput, "'borrow' is none of these"),
        (lambda: Act("mint", "x", -1), BadInput, "mint of -1"),
        (lambda: Act("join", "z", entitlement=1.0), BadInput, "entitlement of 1.0"),
        (lambda: Act("mint", "z", 1), BadInput, "there is no account 'z'; accounts are 'x', 'y'"),
        (lambda: Act("join", "x", 1), BadInput, "'x' is already here"),
        (lambda: Act("burn", "x", 101), Overdrawn, "'x' holds 100 micro-credits and owes 101; nothing was moved"),
        (lambda: Act("transfer", "x", 101, "y"), Overdrawn, "owes 101"),
    ],
)
def test_acts_that_cannot_be_are_refused(act, error, said):
    purse = world()
    with pytest.raises(error, match=said):
        purse.perform(act())
    assert purse.balance.tolist() == [100, 300]


def test_the_last_one_entitled_cannot_leave():
    purse = Accounts(("x",), np.array([1.0]), np.array([1]), 1.0, 4.0)
    with pytest.raises(BadInput, match="last one entitled"):
        purse.perform(Act("leave", "x"))


# Reservations.


def test_a_reservation_is_paid_ahead_used_and_given_back():
    """A floor of 40 of 100 for rounds 3 and 4 at .01 credits a unit: .8 paid, the bid of .1 pays its part, the rest returns."""
    purse = Accounts(("guild", "rival"), np.array([0.5, 0.5]), np.array([5 * MICRO, 5 * MICRO]), 0.2, 4.0)
    price, amount = np.array([10**10]), np.array([40])
    raid = Reservation("raid", "guild", "t0", amount, 3, 4, quote(price, amount, 2))
    assert raid.paid == 800_000
    supply = purse.supply
    for act in raid.opening:
        purse.perform(act)
    assert purse.supply == supply
    assert purse.balance.tolist() == [4_200_000, 5_000_000, 800_000]
    for number in range(2, 6):
        tasks = reserved(make_tasks([0, 1], [[100.0], [100.0]]), number, [raid], purse.name)
        assert tasks.floor[0] == (0.4 if number in (3, 4) else 0.0)
        share = [0.4, 0.6] if number in (3, 4) else [0.1, 0.9]
        allocation = give(tasks, share, [100.0], 0.01, bid=purse.bids(tasks) / MICRO)
        held = purse.balance
        bills = settle(tasks, allocation, unmeasured(allocation), held, purse.entitlement, 0.0, 4.0, supply)
        assert bills.sponsored.tolist() == ([300_000, 0] if number in (3, 4) else [0, 0])
        assert not bills.waived.any()
        purse.post(bills)
        assert purse.supply == supply
    left = int(purse.balance[2])
    assert left == 200_000
    for act in raid.closing(left):
        purse.perform(act)
    assert purse.supply == supply
    assert purse.balance[2] == 0


def test_a_quote_is_rounded_up():
    assert quote(np.array([1]), np.array([1]), 1) == 1
    assert quote(np.array([10**6]), np.array([3]), 2) == 6


def test_a_reservation_without_its_purse_is_refused():
    raid = Reservation("raid", "guild", "t0", np.array([4]), 0, 1, 5)
    with pytest.raises(BadInput, match="no purse 'escrow/raid'"):
        reserved(make_tasks([0]), 0, [raid], ("guild",))
    with pytest.raises(BadInput, match="rounds 3 to 2"):
        replace(raid, first=3, last=2)


def test_a_floor_of_its_own_that_is_higher_stays():
    tasks = replace(make_tasks([0]), floor=np.array([0.5]), sponsor=np.array([0]))
    raid = Reservation("raid", "guild", "t0", np.array([4]), 0, 1, 5)
    got = reserved(tasks, 0, [raid], ("guild", "escrow/raid"))
    assert (got.floor[0], got.sponsor[0]) == (0.5, 0)


# Budgets.


def played(tasks: Tasks, share, capacity, paid) -> tuple[Allocation, Outcome, Bills]:
    allocation = give(tasks, share, capacity)
    zero = np.zeros(len(tasks.name), np.int64)
    return allocation, unmeasured(allocation), Bills(Postings.of(), np.asarray(paid, np.int64), zero, zero)


@given(seeds)
def test_no_account_uses_more_than_its_budget_in_any_period(seed: int):
    rng = np.random.default_rng(seed)
    accounts, n, period = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.integers(1, 5))
    amounts = np.where(rng.random((accounts, 2)) < 0.3, UNLIMITED, rng.integers(0, 300, (accounts, 2)))
    credits = np.where(rng.random(accounts) < 0.3, UNLIMITED, rng.integers(0, 300, accounts))
    budgets = Budgets(period, credits, amounts)
    balance = np.full(accounts, 100)
    used, spent = np.zeros((accounts, 2), np.int64), np.zeros(accounts, np.int64)
    for number in range(12):
        if number % period == 0:
            used[:], spent[:] = 0, 0
        demand = np.floor(rng.uniform(0, 60, (n, 2)))
        tasks = make_tasks(rng.integers(0, accounts, n), demand)
        cap = budgets.caps(number, tasks)
        assert (cap <= tasks.cap).all()
        most = budgets.limit(number, balance)
        assert (most <= balance).all()
        share = np.floor(cap * rng.choice([0.5, 1.0]) * 10**9) / 10**9
        paid = np.array([most[a] // (tasks.account == a).sum() for a in tasks.account])
        allocation, outcome, bills = played(tasks, share, [10**6, 10**6], paid)
        budgets.count(number, tasks, allocation, outcome, bills)
        np.add.at(used, tasks.account, allocation.granted)
        np.add.at(spent, tasks.account, paid)
        assert ((used <= amounts) | (amounts == UNLIMITED)).all()
        assert ((spent <= credits) | (credits == UNLIMITED)).all()


def test_all_tasks_of_an_account_give_way_alike_and_others_do_not():
    """30 units of a period's 100 are left to account 0, which wants 40 + 20; account 1 has no budget."""
    tasks = make_tasks([0, 0, 1], [[40.0], [20.0], [50.0]])
    budgets = Budgets(10, np.array([UNLIMITED, UNLIMITED]), np.array([[90], [UNLIMITED]]))
    assert budgets.caps(0, tasks).tolist() == [1.0, 1.0, 1.0]
    budgets.count(0, tasks, *played(tasks, [1.0, 1.0, 1.0], [200.0], [0, 0, 0]))
    assert budgets.caps(1, tasks).tolist() == [0.5, 0.5, 1.0]
    assert budgets.caps(10, tasks).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("rounds", "credits", "said"), [(0, 5, "0 rounds"), (3, -2, "-1 for unlimited")])
def test_budgets_that_cannot_be_are_refused(rounds: int, credits: int, said: str):
    with pytest.raises(BadInput, match=said):
        Budgets(rounds, np.array([credits]), np.array([[5]]))


# Memory.


def test_memory_halves_in_its_half_life():
    memory = Memory(3.0, np.array([1.0]))
    tasks = make_tasks([0])
    memory.learn(tasks, give(tasks, [1.0], [10.0]))
    begin = memory.mean(tasks, np.array([[10.0]]))[0]
    for _ in range(3):
        memory.learn(tasks, give(tasks, [0.0], [10.0]))
    assert memory.mean(tasks, np.array([[10.0]]))[0] == pytest.approx(begin / 2)


def test_without_half_life_there_is_no_memory():
    assert Memory(None, np.array([1.0])).eta == 1.0
    with pytest.raises(BadInput, match="half_life is 0"):
        Memory(0.0, np.array([1.0]))


def test_who_is_new_starts_at_its_entitlement_and_its_new_tasks_where_it_is():
    memory, capacity = Memory(5.0, np.array([0.25, 0.75])), np.array([[100.0]])
    first = make_tasks([0, 1], [[50.0], [50.0]])
    assert memory.mean(first, capacity) == pytest.approx([0.5, 1.5]), "a quarter of 100 is half of what it wants"
    memory.learn(first, give(first, [1.0, 0.0], [100.0]))
    known = memory.mean(first, capacity)
    more = make_tasks([0, 0, 1], [[30.0], [20.0], [50.0]], kind=["game", "social", "game"])
    assert memory.mean(more, capacity) == pytest.approx([known[0], known[0], known[1]])
    assert (memory.mean(more, capacity) > 0).all(), "never at 0"


def test_an_account_that_comes_idle_is_remembered_as_idle():
    """From half of the capacity, its entitlement, through three half-lives of wanting nothing."""
    memory, capacity = Memory(5.0, np.array([0.5, 0.5])), np.array([[100.0]])
    idle, awake = make_tasks([0, 1], [[10.0], [0.0]]), make_tasks([0, 1], [[10.0], [50.0]])
    for _ in range(15):
        memory.learn(idle, give(idle, [1.0, 0.0], [100.0]))
    assert memory.mean(awake, capacity)[1] == pytest.approx(1 / 8)


def test_kinds_that_take_turns_remember_alike():
    """One load as two kinds, a round each: what one kind used is not forgotten while it rests."""
    memory, capacity = Memory(5.0, np.array([1.0])), np.array([[100.0]])
    turns = [make_tasks([0, 0], [[50.0 * (k == 0)], [50.0 * (k == 1)]], kind=["game", "store"]) for k in (0, 1)]
    plain, alone = Memory(5.0, np.array([1.0])), make_tasks([0], [[50.0]])
    for k in range(16):
        memory.learn(turns[k % 2], give(turns[k % 2], [1.0, 1.0], [100.0]))
        plain.learn(alone, give(alone, [1.0], [100.0]))
    assert memory.mean(turns[0], capacity)[0] == pytest.approx(plain.mean(alone, capacity)[0])


def test_a_task_split_in_two_keeps_its_past():
    memory, capacity = Memory(5.0, np.array([1.0])), np.array([[100.0]])
    whole, halves = make_tasks([0], [[40.0]]), make_tasks([0, 0], [[20.0], [20.0]])
    memory.learn(whole, give(whole, [0.6], [100.0]))
    assert memory.mean(halves, capacity) == pytest.approx(np.repeat(memory.mean(whole, capacity), 2))


def test_use_counts_in_amounts_not_in_shares_of_the_day():
    """All of 10 yesterday is a tenth of 100 wanted today."""
    memory, capacity = Memory(5.0, np.array([1.0])), np.array([[100.0]])
    small, large = make_tasks([0], [[10.0]]), make_tasks([0], [[100.0]])
    memory.learn(small, give(small, [1.0], [100.0]))
    assert memory.mean(large, capacity) == pytest.approx(memory.mean(small, capacity) / 10)


def test_who_is_away_forgets():
    memory, capacity = Memory(1.0, np.array([0.5, 0.5])), np.array([[100.0]])
    both, other = make_tasks([0, 1]), make_tasks([1])
    memory.learn(both, give(both, [1.0, 1.0], [100.0]))
    before = memory.mean(both, capacity)[0]
    memory.learn(other, give(other, [1.0], [100.0]))
    assert memory.mean(both, capacity)[0] == pytest.approx(before / 2)


@pytest.mark.parametrize(("of", "want"), [("bought", 0.3), ("total", 0.5)])
def test_memory_is_of_what_was_bought_or_of_all(of, want):
    memory, tasks = Memory(1e-3, np.array([1.0]), of=of), make_tasks([0], [[10.0]])
    memory.learn(tasks, give(tasks, [0.5], [20.0], free=[0.2]))
    assert memory.mean(tasks, np.array([[20.0]]))[0] == pytest.approx(want)
