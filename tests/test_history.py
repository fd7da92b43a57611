"""The training table: what it holds, and that it holds nothing from the future."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import duckdb
import numpy as np
import played
import pytest
import small_log
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.errors import BadInput
from apportion.core.round import Round
from apportion.learning import history
from apportion.ledger import reading
from apportion.ledger.log import Log
from apportion.ledger.reading import LoggedRound

seeds = st.integers(0, 2**32 - 1)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return a.tolist() == b.tolist()
    return np.array_equal(a.astype(float), b.astype(float), equal_nan=True)


def known(when: str) -> list[str]:
    return [c.name for c in history.schema(played.RESOURCES) if c.known == when]


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(0, 5), pools=st.integers(1, 3))
def test_what_is_known_before_a_round_does_not_change_with_its_outcome(seed: int, n: int, pools: int):
    rounds = played.rounds(seed, 7, pools=pools)
    other = [*rounds[:n], played.changed_outcome(rounds[n], np.random.default_rng(seed)), *rounds[n + 1 :]]
    a, b = history.columns(rounds), history.columns(other)
    until = a["round"] <= n
    for name in (*known("before"), *known("decision")):
        assert equal(a[name][until], b[name][until]), name
    assert not equal(a["delivered_cpu"], b["delivered_cpu"])
    assert not equal(a["last_delivered_cpu"], b["last_delivered_cpu"])  # but round n + 1 has seen it


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(0, 5))
def test_what_is_known_before_a_round_does_not_change_with_its_decision(seed: int, n: int):
    rounds = played.rounds(seed, 7)
    a = rounds[n].allocation
    decided = replace(rounds[n], allocation=replace(a, share=a.share / 2, price=a.price * 3, gap=0.5))
    other = [*rounds[:n], decided, *rounds[n + 1 :]]
    before, after = history.columns(rounds), history.columns(other)
    until = before["round"] <= n
    for name in known("before"):
        assert equal(before[name][until], after[name][until]), name
    assert not equal(before["last_share"], after["last_share"])


def test_a_memory_beside_the_loop_sees_what_the_table_says():
    rounds = played.rounds(3, 8, pools=2)
    table, past = history.columns(rounds), history.Past()
    for r in rounds:
        rows = table["round"] == r.number
        for name, x in past.before(r.number, r.tasks, r.pools.resources).items():
            assert equal(x, table[name][rows]), name
        past.learn(r)


def test_there_is_a_row_per_round_and_task_with_every_column_of_the_schema():
    table = history.columns(played.rounds(count=6, tasks=5), world="w", policy="market", accounts=played.ACCOUNTS)
    assert list(table) == [c.name for c in history.schema(played.RESOURCES)]
    assert {len(x) for x in table.values()} == {30}
    assert set(zip(table["round"], table["task"], strict=True)) == {
        (r, t) for r in range(6) for t in ("game", "social", "commerce", "assets", "game-4")
    }
    assert set(table["account"]) == {"studio", "guild"}


def test_amounts_are_in_the_units_people_use():
    r = played.rounds(count=1)[0]
    table = history.columns([r])
    assert table["wanted_cpu"] == pytest.approx(r.tasks.demand[:, 0] / 1000)
    assert table["wanted_memory"] == pytest.approx(r.tasks.demand[:, 1] / 2**20)
    rent = table["price_cpu"] * table["wanted_cpu"] + table["price_memory"] * table["wanted_memory"]
    assert rent == pytest.approx(r.tasks.demand @ r.allocation.price[0])


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_rows_add_up_to_the_round(seed: int):
    """Over several pools: grants to the grants, charges and balances to the postings."""
    rounds = played.rounds(seed, 4, tasks=6, pools=3)
    table = history.columns(rounds)
    for r in rounds:
        rows = table["round"] == r.number
        assert (table["granted_cpu"][rows] * 1000).sum() == pytest.approx(r.allocation.granted[:, 0].sum())
        assert table["paid"][rows].sum() == pytest.approx(r.bills.paid.sum() / 1e6)
    for r, following in pairwise(rounds):
        rows = table["round"] == following.number
        assert table["balance"][rows] == pytest.approx(r.balance[r.tasks.account] / 1e6)


def test_features_say_what_the_round_before_showed():
    table = history.columns(played.rounds(count=6, pools=2, surge=range(2, 4)))
    game = table["task"] == "game"
    for what in ("share", "experience", "wanted_cpu", "delivered_cpu", "price_cpu", "load_cpu"):
        assert table[f"last_{what}"][game][1:] == pytest.approx(table[what][game][:-1]), what
        assert np.isnan(table[f"last_{what}"][game][0])
    assert table["rounds_since_surge"][game].tolist()[2:] == [0, 0, 1, 2]
    assert np.isnan(table["rounds_since_surge"][game][:2]).all()
    assert table["rounds_seen"][game].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_task_that_comes_later_has_no_past_and_one_that_pauses_keeps_its_own():
    a = played.rounds(count=2, names=("game", "social"))
    b = [replace(r, number=r.number + 2) for r in played.rounds(count=2, names=("assets", "game"))]
    table = history.columns([*a, *b])
    rows = {(r, t): k for k, (r, t) in enumerate(zip(table["round"], table["task"], strict=True))}
    assert np.isnan(table["last_share"][rows[2, "assets"]])
    assert table["last_share"][rows[2, "game"]] == table["share"][rows[1, "game"]]
    assert table["rounds_seen"][rows[3, "game"]] == 3


def test_what_was_not_measured_or_said_is_unknown_not_zero(tmp_path):
    rounds = played.rounds(count=3, silent=(1,))
    table = history.columns(rounds)
    quiet = table["task"] == "social"
    assert np.isnan(table["delivered_memory"]).all()
    assert np.isnan(table["experience"][quiet]).all()
    assert not np.isnan(table["experience"][~quiet]).any()
    history.write(rounds, tmp_path / "t.parquet")
    count = "SELECT count(*), count(delivered_cpu), count(delivered_memory), count(experience), count(asked)"
    assert duckdb.sql(f"{count} FROM '{tmp_path}/t.parquet'").fetchall() == [(12, 12, 0, 9, 9)]


def logged(r: Round, **changes) -> LoggedRound:
    """A round as the log gives it back."""
    before = r.balance.copy()
    for p in r.bills.postings:
        before[p.account] -= p.amount
    return LoggedRound(
        **{"number": r.number, "at": f"{100 + r.number / 2:.3f}", "tasks": r.tasks, "pools": r.pools}
        | {"market": r.market, "balance_before": before, "policy": "market", "allocation": r.allocation}
        | {"outcome": r.outcome, "bills": r.bills, "balance": r.balance}
        | changes
    )


def test_an_aborted_round_has_a_decision_and_no_outcome(tmp_path):
    a, b, c = played.rounds(count=3)
    nothing = {"outcome": None, "bills": None, "aborted": "KeyboardInterrupt"}
    rounds = [logged(a), logged(b, **nothing, balance=a.balance), logged(c)]
    table = history.columns(rounds)
    lost, after = table["round"] == 1, table["round"] == 2
    assert table["aborted"].tolist() == lost.tolist()
    assert np.isnan(table["experience"][lost]).all()
    assert (table["paid"][lost] == 0).all()
    assert table["balance"][lost] == pytest.approx(a.balance[a.tasks.account] / 1e6)
    assert not np.isnan(table["share"][lost]).any()
    assert table["last_experience"][after] == pytest.approx(table["experience"][table["round"] == 0])
    assert table["last_share"][after] == pytest.approx(table["share"][lost])
    assert history.write(rounds, tmp_path / "t.parquet") == 12


def test_a_round_that_was_never_decided_has_its_demand_and_one_still_open_is_left_out():
    a, b, c = played.rounds(count=3)
    nothing = {"allocation": None, "outcome": None, "bills": None}
    table = history.columns(
        [logged(a), logged(b, **nothing, balance=a.balance, aborted="crash"), logged(c, **nothing, balance=None)]
    )
    assert set(table["round"]) == {0, 1}
    assert np.isnan(table["share"][4:]).all()
    assert table["wanted_cpu"][4:] == pytest.approx(b.tasks.demand[:, 0] / 1000)


def test_a_round_from_the_log_says_its_own_time_and_policy():
    table = history.columns([logged(r) for r in played.rounds(count=3)], policy="unsaid", round_seconds=9.0)
    assert table["t_seconds"][::4].tolist() == [0, 0.5, 1]
    assert set(table["policy"]) == {"market"}


def test_a_log_gives_the_same_table_as_the_rounds_it_holds(tmp_path):
    path = small_log.small_log(tmp_path / "ledger.db", rounds=4)
    with Log.open(path) as log:
        logged = history.columns(reading.rounds(log))
    for name, x in history.columns(small_log.rounds(4), policy="market").items():
        assert equal(x, logged[name]), name


@pytest.mark.parametrize("batch", [1, 5, history.BATCH])
def test_the_file_is_the_table(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(history, "BATCH", batch)
    rounds, path = played.rounds(5, 6, pools=2, silent=(2,)), tmp_path / "o'hara.parquet"
    assert history.write(rounds, path, world="o'hara", accounts=played.ACCOUNTS) == 24
    table = history.columns(rounds, world="o'hara", accounts=played.ACCOUNTS)
    quoted = str(path).replace("'", "''")
    for name, x in duckdb.sql(f"SELECT * FROM '{quoted}'").fetchnumpy().items():
        if x.dtype == object:
            assert x.tolist() == table[name].tolist(), name
        else:
            assert equal(np.ma.filled(x.astype(float), np.nan), table[name]), name
    assert [p.name for p in tmp_path.iterdir()] == ["o'hara.parquet"]


def test_the_file_says_the_unit_of_every_column(tmp_path):
    history.write(played.rounds(), tmp_path / "t.parquet", world="launch-day", policy="market")
    path = f"'{tmp_path}/t.parquet'"
    ((about,),) = duckdb.sql(
        f"SELECT decode(value) FROM parquet_kv_metadata({path}) WHERE decode(key) = 'apportion'"
    ).fetchall()
    about = json.loads(about)
    assert (about["format"], about["world"], about["policy"]) == (history.FORMAT, "launch-day", "market")
    described = {c["name"]: c for c in about["columns"]}
    assert list(described) == [c[0] for c in duckdb.sql(f"DESCRIBE SELECT * FROM {path}").fetchall()]
    assert described["wanted_memory"]["unit"] == "GiB"
    assert described["price_cpu"]["unit"] == "credits per core and round"
    assert {c["known"] for c in about["columns"]} == {"before", "decision", "outcome"}
    assert all(c["says"] for c in about["columns"])


def test_no_rounds_make_an_empty_table(tmp_path):
    assert {len(x) for x in history.columns([]).values()} == {0}
    assert history.write([], tmp_path / "t.parquet") == 0
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/t.parquet'").fetchall() == [(0,)]


def test_a_disk_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    history.write(played.rounds(count=2), path)
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        history.write(played.rounds(count=3), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_rounds_of_two_worlds_do_not_share_a_table():
    a, b = played.rounds(count=1), played.rounds(count=1, resources=("cpu", "gpu"))
    with pytest.raises(BadInput, match="cpu, gpu"):
        history.columns([*a, *b])
