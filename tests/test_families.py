"""Accounts inside accounts, from the world file to the verdict: who lends to whom, and who can't be hurt by whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_log import KEY, genesis
from test_economy import draw_tree
from test_engine import entries

from apportion.audit import verify
from apportion.core.errors import BadInput, BadWorld, Refused
from apportion.intake.gate import Gate
from apportion.ledger.log import Log
from apportion.ledger.note import Signer, write_key
from apportion.serve.build import Choice, Running, play
from apportion.settlement.accounts import Accounts
from apportion.settlement.acts import Act
from apportion.settlement.tree import Tree
from apportion.worlds.world import World, load

seeds = st.integers(0, 2**32 - 1)
FAMILIES = """\
version: 1
name: families
credits_per_round: 100
pools: {here: {capacity: {cpu: 10, memory: 10 GiB}}, there: {capacity: {cpu: 5, memory: 20 GiB}}}
accounts:
  guild: {entitlement: 60%, balance: 7}
  raids: {parent: guild, share: 50%}
  trade: {parent: guild, share: 50%}
  bazaar: {parent: trade, share: 40%}
  vault: {parent: trade, share: 60%}
  studio: {entitlement: 40%}
tasks:
  arena: {kind: game, account: raids, demand: {cpu: 9, memory: 3 GiB}, sponsor: guild, floor: 10%}
  stalls: {kind: commerce, account: bazaar, demand: {cpu: 1, memory: 64 MiB}}
  items: {kind: assets, account: vault, demand: {cpu: 0.2, memory: 64 MiB}}
  shard: {kind: game, account: studio, demand: {cpu: 12, memory: 4 GiB}}
events: [{name: raid, at: 3 s, for: 4 s, task: [arena, stalls], load: x3}]
"""


def families(folder: Path, text: str = FAMILIES) -> World:
    (folder / "families.yaml").write_text(text)
    return load(folder / "families.yaml")


# What siblings lend each other.


def drawn(seed: int) -> tuple[Tree, np.ndarray, np.ndarray, np.random.Generator]:
    tree, rng = draw_tree(seed)
    size = len(tree.parent)
    own = np.where(tree.leaf, rng.integers(0, 50, size), 0)
    return tree, own, np.where(tree.leaf, rng.integers(0, 90, size), 0), rng


@given(seeds)
def test_nobody_is_short_of_its_own_because_of_a_sibling(seed: int):
    """At every level: what an account and those inside it may use is never less than their own, if they need as much."""
    tree, own, need, _ = drawn(seed)
    got = tree.lend(own, need)
    assert (got <= need).all()
    assert (tree.below(got) >= np.minimum(tree.below(own), tree.below(need))).all()


@given(seeds)
def test_a_family_wastes_nothing_that_it_needs_and_takes_nothing_from_others(seed: int):
    tree, own, need, _ = drawn(seed)
    got, top = tree.below(tree.lend(own, need)), tree.parent < 0
    assert (got[top] == np.minimum(tree.below(own), tree.below(need))[top]).all()


@given(seeds)
def test_what_one_family_does_cannot_change_what_another_may_use(seed: int):
    tree, own, need, rng = drawn(seed)
    root = np.arange(len(tree.parent))
    while (tree.parent[root] >= 0).any():
        root = np.where(tree.parent[root] >= 0, tree.parent[root], root)
    ours = root == rng.choice(root)
    other = np.where(ours, need, rng.integers(0, 90, len(need)))
    assert (tree.lend(own, need)[ours] == tree.lend(own, other)[ours]).all()


def test_what_a_sibling_leaves_is_divided_by_share():
    """Guild 0 has 1, 2, 3, guaranteed 10 each; 1 needs 1 of its 10, and the 9 go 1:2 to the others; 4 gets none of it."""
    tree = Tree(np.array([-1, 0, 0, 0, -1]), np.array([1.0, 1.0, 1.0, 2.0, 1.0]))
    got = tree.lend(np.array([0, 10, 10, 10, 10]), np.array([0, 1, 50, 50, 50]))
    assert got.tolist() == [0, 1, 13, 16, 10]


# A world whose accounts nest.


def test_siblings_borrow_before_anything_is_sold(tmp_path: Path):
    """Of cpu here the vault is guaranteed .9 cores and needs .2: .4 go to the bazaar beside it, the rest to the raids above."""
    world = families(tmp_path)
    gate = Gate(world.accounts[1], world.alpha, world.tree.lend)
    market = gate.admit(world.tasks(0), world.pools({}), np.zeros(4, np.int64))
    used = np.where(market.indices == 0, market.demand[market.row, 0] * market.free, 0)
    assert market.per_task(used) == pytest.approx([1500 + 300, 600 + 400, 200, 2000], abs=1)


def test_a_nested_world_verifies_to_the_micro_credit(tmp_path: Path):
    with Running(families(tmp_path), Choice("sim", seed=2), tmp_path / "out") as running:
        played = list(running.rounds(10))
    assert all(r.balance.sum() == played[0].balance.sum() for r in played)
    assert not played[-1].bills.paid[played[-1].tasks.account == 0].any()
    verdict = verify(tmp_path / "out" / "ledger.db", tmp_path / "out" / "operator.pub")
    assert any("10 rounds: what siblings lend" in line for line in verdict.checked)


def test_what_a_neighbour_family_wants_moves_no_guarantee(tmp_path: Path):
    greedy = FAMILIES.replace("demand: {cpu: 12, memory: 4 GiB}", "demand: {cpu: 120, memory: 40 GiB}")
    calm, other = (next(play(families(tmp_path, text), rounds=1)).market for text in (FAMILIES, greedy))
    guild = np.array([0, 1, 2])
    assert calm.per_task(calm.free)[guild].tolist() == other.per_task(other.free)[guild].tolist()


def test_a_nested_world_is_resumed_as_if_nothing_had_happened(tmp_path: Path):
    key, logs = Signer.generate("apportion.local/families"), []
    for name, counts in (("whole", (8,)), ("halves", (5, 3))):
        (tmp_path / name).mkdir()
        write_key(tmp_path / name / "operator.key", key)
        for n, count in enumerate(counts):
            with Running(families(tmp_path), Choice("sim", seed=3, resume=n > 0), tmp_path / name) as running:
                list(running.rounds(count))
        logs.append(entries(tmp_path / name))
    assert logs[0] == logs[1]


def test_an_operator_who_lends_otherwise_is_found_out(tmp_path: Path):
    """Everything of the guild's goes to the first who asks: the traders' own, too."""
    out = tmp_path / "out"
    with Running(
        families(tmp_path, FAMILIES.replace("cpu: 0.2, memory", "cpu: 5, memory")), Choice("sim"), out
    ) as running:
        assert running.engine is not None
        running.engine.gate.lend = lambda own, need: np.where(np.arange(6) == 1, np.minimum(need, own.sum()), 0)
        list(running.rounds(1))
    with pytest.raises(Refused, match=r"tasks.free: account 'raids' is given .*, with what its siblings lend"):
        verify(out / "ledger.db", out / "operator.pub")


def test_an_operator_who_settles_without_the_family_is_found_out(tmp_path: Path):
    out = tmp_path / "out"
    with Running(families(tmp_path), Choice("sim"), out) as running:
        assert running.engine is not None
        running.engine.accounts.tree = None
        list(running.rounds(6))
    with pytest.raises(Refused, match=r"\(bills, round \d\): postings"):
        verify(out / "ledger.db", out / "operator.pub")


def test_entitlements_that_the_shares_do_not_give_are_refused(tmp_path: Path):
    rows = genesis().tables["accounts"]
    nested = [row | {"parent": parent, "share": "1"} for row, parent in zip(rows, (None, 0, 0), strict=True)]
    with Log.create(tmp_path / "false.db", KEY) as log:
        log.append([replace(genesis(), tables={**genesis().tables, "accounts": nested})])
    with pytest.raises(Refused, match=r"'guild' is entitled to 0\.5; its share, and those above it, give 0.0"):
        verify(tmp_path / "false.db", KEY.verifier.text)
    for row in nested:
        row["parent"] = 2
    with Log.create(tmp_path / "late.db", KEY) as log:
        log.append([replace(genesis(), tables={**genesis().tables, "accounts": nested})])
    with pytest.raises(Refused, match=r"entry 0 \(genesis\): tables.accounts: account 0 stands before its parent 2"):
        verify(tmp_path / "late.db", KEY.verifier.text)


def test_a_family_of_one_is_as_if_it_were_alone(tmp_path: Path):
    """Splitting an account into a parent and one inside it changes no share, no charge, no dividend."""
    alone = FAMILIES.replace(
        "studio: {entitlement: 40%}", "house: {entitlement: 40%}\n  studio: {parent: house, share: 1}"
    )
    for one, other in zip(play(families(tmp_path), rounds=6), play(families(tmp_path, alone), rounds=6), strict=True):
        assert (one.allocation.parts == other.allocation.parts).all()
        assert (one.bills.paid == other.bills.paid).all()
        assert one.balance.tolist() == np.delete(other.balance, 5).tolist()


# Who joins a family, and who leaves it.


def guild() -> Accounts:
    """A guild of two and one beside it: .3, .3, .4."""
    tree = Tree(np.array([-1, 0, 0, -1]), np.array([0.6, 1.0, 1.0, 0.4]))
    return Accounts(("guild", "a", "b", "solo"), tree.entitlement, np.array([5, 10, 20, 40]), 1.0, 4.0, tree)


def test_who_joins_a_family_takes_its_part_of_that_family_alone():
    purse = guild()
    purse.perform(Act("join", "c", 7, entitlement=0.5, parent="guild"))
    assert purse.name == ("guild", "a", "b", "solo", "c")
    assert purse.entitlement == pytest.approx([0, 0.15, 0.15, 0.4, 0.3])
    assert purse.balance.tolist() == [5, 10, 20, 40, 7]
    purse.perform(Act("leave", "a"))
    assert purse.entitlement == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    assert purse.balance.tolist() == [5, 0, 20, 40, 7]
    purse.perform(Act("join", "a", entitlement=0.5, parent="guild"))
    assert purse.entitlement == pytest.approx([0, 0.3, 0.1, 0.4, 0.2])
    assert purse.tree is not None
    assert purse.tree.parent.tolist() == [-1, 0, 0, -1, 0]


def test_a_family_leaves_whole():
    purse = guild()
    lines = purse.perform(Act("leave", "guild"))
    assert [(line.account, line.amount) for line in lines] == [(0, -5), (1, -10), (2, -20)]
    assert purse.entitlement.tolist() == [0, 0, 0, 1]
    assert purse.supply == 40


def of_the_guild(purse: Accounts) -> float:
    tree = purse.tree
    assert tree is not None
    return sum(float(part) for a, part in enumerate(purse.entitlement) if 0 in tree.above(a))


@given(seeds)
def test_families_keep_all_that_is_theirs_through_joins_and_leaves(seed: int):
    """Entitlements come to 1, the supply changes by what is minted and burned, and a family's part only by who is beside it."""
    rng, purse = np.random.default_rng(seed), guild()
    for k in range(10):
        parent = str(rng.choice(["", "guild"]))
        name = str(rng.choice(purse.name)) if rng.random() < 0.5 else f"n{k}"
        act = Act("leave", name) if rng.random() < 0.5 else Act("join", name, int(rng.integers(9)), "", 0.25, parent)
        before, supply, part = (purse.name, purse.entitlement), purse.supply, of_the_guild(purse)
        try:
            lines = purse.perform(act)
        except BadInput:
            assert (purse.name, purse.entitlement.tolist()) == (before[0], before[1].tolist()), "all or nothing"
            continue
        assert Act.read(act.what, act.details) == act
        assert purse.supply == supply + sum(line.amount for line in lines)
        assert purse.entitlement.sum() == pytest.approx(1)
        assert purse.tree is not None
        if purse.tree.parent[purse.name.index(name)] == 0:
            assert of_the_guild(purse) == pytest.approx(part)
            assert purse.entitlement[3] == pytest.approx(before[1][3])


@pytest.mark.parametrize(
    ("acts", "said"),
    [
        ((Act("join", "c", entitlement=0.5, parent="solo"),), "'solo' has nobody inside, so it may have tasks"),
        ((Act("join", "c", entitlement=0.5, parent="clan"),), "there is no account 'clan'"),
        ((Act("join", "a", entitlement=0.5, parent="guild"),), "'a' is already here"),
        ((Act("leave", "a"), Act("join", "a", entitlement=0.5)), "'a' is already here"),
        ((Act("leave", "a"), Act("leave", "b")), "'b' is the last one inside 'guild': let another join first"),
        ((Act("leave", "solo"), Act("leave", "guild")), "'guild' is the last one entitled to anything"),
    ],
)
def test_joins_and_leaves_that_cannot_be_are_refused(acts: tuple[Act, ...], said: str):
    purse = guild()
    for act in acts[:-1]:
        purse.perform(act)
    with pytest.raises(BadInput, match=said):
        purse.perform(acts[-1])


REFUSED = [
    ("guild, share: 50%}\n  trade", "gild, share: 50%}\n  trade", "accounts.raids.parent is 'gild': there is no account 'gild'. Did you mean 'guild'?"),
    ("raids: {parent: guild, share: 50%}", "raids: {parent: trade, share: 50%}", "accounts.raids.parent is 'trade': 'trade' stands below it. Write parents first."),
    ("raids: {parent: guild", "raids: {parent: raids", "accounts.raids.parent is 'raids': an account cannot stand inside itself. Remove it."),
    ("vault: {parent: trade, share: 60%}", "vault: {parent: trade, share: 50%}", "accounts.trade: the shares of those inside 'trade' come to 0.9, not to 1. Add 0.1 somewhere."),
    ("studio: {entitlement: 40%}", "studio: {entitlement: 30%}", "accounts: the entitlements come to 0.9, not to 1. Add 0.1 somewhere."),
    ("studio: {entitlement: 40%}", "studio: {balance: 4}", "accounts.studio: it is entitled to nothing. Write 'entitlement: 40%', or 'parent' and 'share'."),
    ("studio: {entitlement: 40%}", "studio: {entitlement: 40%, share: 1}", "accounts.studio.share is '1': it is a share of no account. Name its 'parent'."),
    ("raids: {parent: guild, share: 50%}", "raids: {parent: guild, entitlement: 50%}", "accounts.raids.entitlement is '50%': what stands inside another has a 'share' of that one's. Write 'share' instead."),
    ("raids: {parent: guild, share: 50%}", "raids: {parent: guild}", "accounts.raids: it has no share of 'guild'. Write for example 'share: 50%'."),
    ("account: raids", "account: guild", "tasks.arena.account is 'guild': account 'guild' has others inside, and these have its tasks. Known: raids, trade."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_families_that_cannot_be_are_refused_by_their_line(tmp_path: Path, old: str, new: str, said: str):
    assert old in FAMILIES
    with pytest.raises(BadWorld) as caught:
        families(tmp_path, FAMILIES.replace(old, new, 1))
    assert said in str(caught.value)
