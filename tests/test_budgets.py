"""Budgets over a period, from the world file to the verdict: nobody uses more, floors are kept, and the log says it all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_economy import draw_tree, make_tasks, played
from test_engine import entries

from apportion.audit import verify
from apportion.core.errors import BadWorld, Refused
from apportion.core.round import Round
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, play
from apportion.serve.explain import explain
from apportion.serve.folder import Folder
from apportion.settlement.budgets import UNLIMITED, Budgets
from apportion.worlds.world import World, load

seeds = st.integers(0, 2**32 - 1)
BUDGETS = """\
version: 1
name: budgets
pools: {here: {capacity: {cpu: 10, memory: 10 GiB}}}
accounts:
  guild: {entitlement: 60%, budget: {per: 10 s, use: {cpu: 0.01 core-hours}}}
  raids: {parent: guild, share: 50%}
  trade: {parent: guild, share: 50%, budget: {per: 5 s, credits: 20}}
  studio: {entitlement: 40%}
tasks:
  arena: {kind: game, account: raids, demand: {cpu: 4, memory: 1 GiB}, floor: {cpu: 1 core}}
  stalls: {kind: commerce, account: trade, demand: {cpu: 6, memory: 1 GiB}}
  shard: {kind: game, account: studio, demand: {cpu: 12, memory: 4 GiB}}
"""


def budgets(folder: Path, text: str = BUDGETS) -> World:
    (folder / "budgets.yaml").write_text(text)
    return load(folder / "budgets.yaml")


@given(seeds)
def test_no_family_uses_more_than_any_budget_above_it(seed: int):
    tree, rng = draw_tree(seed)
    accounts, leaves = len(tree.parent), np.flatnonzero(tree.leaf)
    rounds = rng.integers(1, 5, accounts)
    amounts = np.where(rng.random((accounts, 2)) < 0.4, UNLIMITED, rng.integers(0, 300, (accounts, 2)))
    credits = np.where(rng.random(accounts) < 0.4, UNLIMITED, rng.integers(0, 300, accounts))
    these, balance = Budgets(rounds, credits, amounts, tree), np.where(tree.leaf, 100, 0)
    used, spent = np.zeros((accounts, 2), np.int64), np.zeros(accounts, np.int64)
    for number in range(12):
        used[number % rounds == 0], spent[number % rounds == 0] = 0, 0
        tasks = make_tasks(rng.choice(leaves, 5), np.floor(rng.uniform(0, 60, (5, 2))))
        cap = these.caps(number, tasks)
        bid = tree.shrink(tasks.account, rng.integers(0, 60, 5), these.limit(number, balance))
        allocation, outcome, bills = played(tasks, cap, [10**6, 10**6], bid)
        these.count(number, tasks, allocation, outcome, bills)
        for a in range(accounts):
            mine = np.array([a in tree.above(int(b)) for b in tasks.account])
            used[a] += allocation.granted[mine].sum(axis=0)
            spent[a] += bid[mine].sum()
        assert ((used <= amounts) | (amounts == UNLIMITED)).all()
        assert ((spent <= credits) | (credits == UNLIMITED)).all()


def test_floors_are_set_aside_for_the_rest_of_the_period():
    """Of 100 for 4 rounds, a floor of 10 a round keeps 40: 60 are left above it, the floor alone after they are used."""
    tasks = make_tasks([0], [[100.0]])
    tasks.floor[:] = 0.1
    these, got = Budgets(4, np.array([UNLIMITED]), np.array([[100]])), []
    for number in range(5):
        cap = these.caps(number, tasks)
        these.count(number, tasks, *played(tasks, cap, [200.0], [0]))
        got.append(cap[0])
    assert got == pytest.approx([0.7, 0.1, 0.1, 0.1, 0.7])


def used(rounds: list[Round], tasks: list[int]) -> float:
    """Core-seconds of these tasks: a round lasts one."""
    return sum(r.outcome.delivered[tasks, 0].sum() for r in rounds) / 1000


def test_a_family_keeps_to_its_core_hours_and_its_floors_are_kept(tmp_path: Path):
    """.01 core-hours are 36 core-seconds in ten rounds; after that the arena has its floor of a core, and the stalls nothing."""
    rounds = list(play(budgets(tmp_path), seed=1, rounds=20))
    free = list(
        play(
            budgets(tmp_path, BUDGETS.replace(", budget: {per: 10 s, use: {cpu: 0.01 core-hours}}", "")),
            seed=1,
            rounds=20,
        )
    )
    for period in (rounds[:10], rounds[10:]):
        assert 35 < used(period, [0, 1]) <= 36
        assert all(r.outcome.delivered[0, 0] >= 1000 * 0.99 for r in period)
        assert used(period, [2]) > used(free[:10], [2]) + 10, "what the guild may not use, the studio can"
    for k in range(0, 20, 5):
        assert sum(r.bills.paid[1] for r in rounds[k : k + 5]) <= 20_000_000
        assert sum(r.bills.paid[1] for r in free[k : k + 5]) <= 20_000_000


def test_budgets_are_counted_again_from_the_log_and_after_a_resume(tmp_path: Path):
    key, logs = Signer.generate("apportion.local/budgets"), []
    for name, counts in (("whole", (17,)), ("halves", (6, 11))):
        out = tmp_path / name
        out.mkdir()
        write_key(out / "operator.key", key)
        for n, count in enumerate(counts):
            with Running(budgets(tmp_path), Choice("sim", seed=3, resume=n > 0), out) as running:
                list(running.rounds(count))
        logs.append(entries(out))
        verdict = verify(out / "ledger.db", out / "operator.pub")
        assert any("17 rounds: what is left of every budget counted again" in line for line in verdict.checked)
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda b: Budgets(b.rounds, b.credits, np.where(b.amounts > 0, b.amounts * 2, b.amounts), b.tree),
            r"tasks.cap_kept: .* for 'arena'",
        ),
        (
            lambda b: Budgets(b.rounds, np.where(b.credits > 0, b.credits * 2, b.credits), b.amounts, b.tree),
            "'trade' and those inside it bid",
        ),
        (lambda b: None, "tasks.bid: account 'trade'"),
    ],
    ids=["more use", "more credits", "none"],
)
def test_an_operator_who_forgets_a_budget_is_found_out(tmp_path: Path, change, said: str):
    out = tmp_path / "out"
    with Running(budgets(tmp_path), Choice("sim"), out) as running:
        assert running.engine is not None
        assert running.engine.budgets is not None
        running.engine.budgets = change(running.engine.budgets)
        list(running.rounds(9))
    with pytest.raises(Refused, match=said):
        verify(out / "ledger.db", out / "operator.pub")


def test_explain_names_the_account_whose_budget_ran_dry(tmp_path: Path):
    out = tmp_path / "out"
    with Running(budgets(tmp_path), Choice("sim"), out) as running:
        list(running.rounds(10))
    with Folder(out).read() as log:
        assert "guild had" in explain(log, "arena", 8).text
        assert "of 0.01 core-hours of cpu left until round 9" in explain(log, "arena", 8).text
        assert "trade had 0 of 20 credits left until round 4" in explain(log, "stalls", 3).text
        assert "left until" not in explain(log, "shard", 8).text


REFUSED = [
    ("per: 10 s", "per: 500 ms", "accounts.guild.budget.per is '500 ms': a round is 1 s long. Write a period of at least one round."),
    ("per: 10 s, ", "", "accounts.guild.budget.per: a budget must say its 'per'. Write for example 'per: 24 h'."),
    ("{per: 5 s, credits: 20}", "{per: 5 s}", "accounts.trade.budget is '{per: 5 s}': it bounds nothing. Write 'credits: 20', or 'use: {cpu: 500 core-hours}'."),
    ("0.01 core-hours", "0.01 cores", "accounts.guild.budget.use.cpu is '0.01 cores': it is not an amount of cpu over time. Write for example '12 core-hours'."),
    ("0.01 core-hours", "x core-hours", "accounts.guild.budget.use.cpu is 'x core-hours': it is not an amount of cpu. "),
    ("cpu: 0.01 core-hours", "gpu: 1", "accounts.guild.budget.use.gpu is '1': there is no resource in any pool called 'gpu'. Did you mean 'cpu'?"),
    ("0.01 core-hours", "0.001 core-hours", "accounts.guild.budget.use.cpu is '0.001 core-hours': the floors of its tasks take 0.00277778 core-hours of cpu in this period. Raise the budget or lower floors."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_budgets_that_cannot_be_are_refused_by_their_line(tmp_path: Path, old: str, new: str, said: str):
    assert old in BUDGETS
    with pytest.raises(BadWorld) as caught:
        budgets(tmp_path, BUDGETS.replace(old, new, 1))
    assert said in str(caught.value)


@pytest.mark.parametrize("written", ["12", "12 core-hours", "12 cores-hours", "12 core-hour", "12000 m-hours"])
def test_hours_are_read_as_they_are_written(tmp_path: Path, written: str):
    world = budgets(tmp_path, BUDGETS.replace("0.01 core-hours", written))
    assert world.budgets is not None
    assert world.budgets[2][0].tolist() == [12 * 1000 * 3600, UNLIMITED]


def test_a_task_whose_cap_is_no_whole_part_does_not_bid_for_the_rest_of_it(tmp_path: Path):
    """Its guarantee covers every whole part; what is left of the cap nobody can grant, and the gap was infinite."""
    text = BUDGETS.replace("floor: {cpu: 1 core}", "cap: 0.77777777777777").replace("name: budgets", "alpha: 1")
    text = re.sub(", budget: {per.*}}", "}", text).replace("cpu: 12", "cpu: 3")
    assert budgets(tmp_path, text).budgets is None
    assert all(r.allocation.gap < 1e-3 for r in play(budgets(tmp_path, text), rounds=3))
