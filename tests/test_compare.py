"""Comparing policies: the scores, the intervals, what the sentence may claim, and runs that are not played twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import played
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from apportion.core.errors import ApportionError, BadInput
from apportion.core.round import Round
from apportion.study import compare as comparing
from apportion.study.compare import COLUMNS, compare, score
from apportion.study.results import METRICS
from apportion.study.stats import interval, jain, mean

vectors = st.lists(st.floats(0, 1e9, allow_subnormal=False), min_size=1, max_size=20).map(np.array)


@dataclass(frozen=True)
class World:
    name: str = "lab"
    digest: str = "d1"
    accounts: tuple = (played.ACCOUNTS, np.array([0.75, 0.25]))


class Stage:
    """Plays rounds whose experience is the policy's, moved by a noise that all policies share."""

    def __init__(self, level: dict[str, float], noise: float = 0.05, own: float = 0.0):
        self.level, self.noise, self.own = level, noise, own
        self.runs: list[tuple[str, str, int]] = []

    def __call__(self, world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        self.runs.append((world.name, policy, seed))
        luck = np.random.default_rng(seed).normal(0, self.noise)
        own = np.random.default_rng([seed, *policy.encode()]).normal(0, self.own)
        for r in played.rounds(seed, rounds):
            done = 10_000 * (self.level[policy] + luck + own)
            n = len(r.tasks.name)
            asked, in_time = np.full(n, 10_000), np.full(n, int(done))
            yield replace(r, outcome=replace(r.outcome, asked=asked, in_time=in_time))


def spoken(results, width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as said:
        console.print(results.table())
    return said.get()


# the numbers


@given(x=vectors)
@settings(max_examples=100, deadline=None)
def test_jain_lies_between_one_over_n_and_one(x):
    assert 1 / len(x) - 1e-9 <= jain(x) <= 1 + 1e-9


def test_jain_of_known_cases():
    assert jain(np.array([1.0, 1, 1, 1])) == 1
    assert jain(np.array([5.0, 0, 0, 0])) == 0.25
    assert jain(np.array([1.0, 3, np.nan])) == pytest.approx(16 / 20)
    assert jain(np.zeros(3)) == 1
    assert np.isnan(jain(np.array([np.nan])))


@given(x=vectors, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_weighted_mean_lies_between_its_extremes(x, seed):
    weight = np.random.default_rng(seed).uniform(0.1, 1, len(x))
    assert x.min() * (1 - 1e-9) <= mean(x, weight) <= x.max() * (1 + 1e-9)


def test_intervals_of_five_seeds_cover_as_often_as_they_claim_and_the_bootstrap_does_not():
    """20,000 draws gave 95.0 % and 83.4 %."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1, (2000, 5))
    assert np.mean([i.low <= 0.3 <= i.high for i in map(interval, x)]) == pytest.approx(0.95, abs=0.015)
    again = x[np.arange(len(x))[:, None, None], rng.integers(0, 5, (len(x), 200, 5))].mean(axis=2)
    low, high = np.percentile(again, [2.5, 97.5], axis=1)
    assert ((low <= 0.3) & (high >= 0.3)).mean() < 0.87


def test_an_interval_is_students():
    i = interval(np.array([1.0, 2, 3, 4, 5]))
    assert (i.mean, i.low, i.high) == pytest.approx((3, 3 - 1.9632, 3 + 1.9632), abs=1e-4)  # 2.7764 * 1.5811 / sqrt(5)


def test_alike_policies_seldom_make_a_winner():
    """The best of four is named only if it beats every other: 4,000 draws gave 0.2 %, of two 4.6 %."""
    rng, named = np.random.default_rng(1), 0
    for x in rng.normal(0, 1, (300, 2, 5)):
        best = int(x.mean(axis=1).argmax())
        named += interval(x[best] - x[1 - best]).excludes_zero
    assert named / 300 < 0.09


def test_experience_weighs_accounts_by_entitlement_however_many_tasks_they_have():
    r = played.rounds(count=1, tasks=3)[0]  # tasks 0 and 2 are the studio's, task 1 the guild's
    outcome = replace(r.outcome, asked=np.full(3, 100), in_time=np.array([100, 50, 0]))
    tasks = replace(r.tasks, weight=np.array([3.0, 1, 1]), surge=np.ones(3), target=np.full(3, 0.6))
    told = score(replace(r, tasks=tasks, outcome=outcome), np.array([0.75, 0.25]))
    assert told["experience"] == pytest.approx(0.75 * (3 / 4) + 0.25 * 0.5)
    assert (told["slo_misses"], told["worst_task"]) == (2, 0)
    assert told["jain"] == pytest.approx(1.5**2 / (3 * 1.25))
    assert (told["gap"], told["seconds"]) == (0.01, 0.002)


def test_six_times_the_players_weigh_six_times():
    r = played.rounds(count=1, tasks=2)[0]
    outcome = replace(r.outcome, asked=np.full(2, 100), in_time=np.array([100, 0]))
    tasks = replace(r.tasks, surge=np.array([6.0, 1.0]))
    assert score(replace(r, tasks=tasks, outcome=outcome), np.array([0.5, 0.5]))["experience"] == pytest.approx(6 / 7)


def test_tasks_that_never_report_count_neither_as_good_nor_as_bad():
    entitlement = np.array([0.5, 0.5])
    r = played.rounds(count=1, silent=(0,))[0]
    told = score(r, entitlement)
    assert told["worst_task"] == np.nanmin(r.outcome.experience)
    assert told["slo_misses"] == (r.outcome.experience[1:] < 0.8).sum()
    nobody = score(played.rounds(count=1, silent=(0, 1, 2, 3))[0], entitlement)
    assert all(np.isnan(nobody[m]) for m in ("experience", "slo_misses", "worst_task", "jain"))


# the claims


def test_a_clear_lead_is_a_win():
    found = compare([World()], ["equal", "market"], [1, 2, 3], 2, Stage({"market": 0.8, "equal": 0.6}, own=0.01))
    assert found.winner == found.leader == "market"
    assert found.sentence.startswith("market wins with a weighted experience of 0.")
    assert "above equal" in found.sentence
    assert "95 % interval" in found.sentence


def test_what_a_seed_does_to_all_policies_cancels():
    """The luck of a seed is 50 times the difference between the policies, and yet that is found."""
    level = {"market": 0.502, "equal": 0.5}
    found = compare([World()], ["equal", "market"], [1, 2, 3, 4, 5], 1, Stage(level, noise=0.1, own=0.0002))
    assert np.ptp(found.means["experience"][0]) > 0.1
    assert found.winner == "market"


def test_a_lead_within_chance_is_no_win():
    found = compare([World()], ["a", "b"], [1, 2, 3, 4], 1, Stage({"a": 0.6, "b": 0.601}, own=0.05))
    assert found.winner is None
    assert found.sentence.startswith(f"No winner: {found.leader} leads")
    assert "may be chance" in found.sentence


def test_a_winner_beats_every_policy_not_just_the_next():
    """The next best is behind by little but surely; the third is far behind on most seeds, and ahead on one."""
    level = {"a": 0.6, "b": 0.59, "c": 0.0}
    third = {1: 0.7, 2: 0.5, 3: 0.5}

    def play(world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        return Stage(level | {"c": third[seed]}, noise=0.0, own=0.0)(world, policy, seed, rounds)

    found = compare([World()], ["a", "b", "c"], [1, 2, 3], 1, play)
    assert found.leader == "a"
    assert found.winner is None
    assert "over c may be chance" in found.sentence


def test_one_seed_has_no_interval_and_names_no_winner():
    found = compare([World()], ["a", "b"], [7], 2, Stage({"a": 0.9, "b": 0.1}))
    assert (found.leader, found.winner) == ("a", None)
    assert "one seed has no interval" in found.sentence
    assert "(one seed)" in spoken(found)
    assert found.summary()["policies"]["b"]["leader_ahead_by"]["experience"]["low"] is None


def test_seeds_that_change_nothing_are_said_to():
    found = compare([World()], ["a", "b"], [1, 2, 3], 1, Stage({"a": 0.9, "b": 0.1}, noise=0.0))
    assert found.winner == "a"
    assert "no chance is in it" in found.sentence


def test_one_policy_has_nobody_to_beat():
    found = compare([World()], ["market"], [1, 2], 1, Stage({"market": 0.5}))
    assert found.winner is None
    assert "met no other policy" in found.sentence
    assert "market" in spoken(found)


def test_a_world_where_nobody_reports_has_no_winner():
    def play(world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        return iter(played.rounds(seed, rounds, silent=(0, 1, 2, 3)))

    found = compare([World()], ["a", "b"], [1, 2], 2, play)
    assert found.sentence == "No winner: no task reported its experience."
    assert "–" in spoken(found)
    json.dumps(found.summary(), allow_nan=False)


def test_several_worlds_are_told_apart_and_together():
    stage = Stage({"a": 0.9, "b": 0.1}, own=0.01)
    found = compare([World("one"), World("two")], ["a", "b"], [1, 2, 3], 2, stage)
    told = json.loads(json.dumps(found.summary(), allow_nan=False))
    both = [told["by_world"][w]["a"]["experience"] for w in ("one", "two")]
    assert told["policies"]["a"]["experience"] == pytest.approx(np.mean(both))
    assert told["policies"]["b"]["leader_ahead_by"]["experience"]["seeds"] == 3  # seeds are drawn, worlds are not
    assert [w in spoken(found) for w in ("one", "two", "all")] == [True] * 3


# the file


def test_the_file_has_a_row_per_world_seed_policy_and_round(tmp_path):
    path = tmp_path / "r.parquet"
    compare([World("w1"), World("w2")], ["a", "b"], [1, 2], 3, Stage({"a": 0.5, "b": 0.5}), path=path)
    rows = duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    described = duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall()
    assert [d[0] for d in described] == list(COLUMNS)
    assert " ".join(COLUMNS) == "world seed policy round experience slo_misses worst_task jain gap seconds"
    assert {r[:4] for r in rows} == {(w, s, p, r) for w in ("w1", "w2") for s in (1, 2) for p in "ab" for r in range(3)}
    assert len(rows) == 24


def test_what_nobody_knows_is_null(tmp_path):
    path = tmp_path / "r.parquet"
    compare([World()], ["a"], [1], 2, lambda w, p, s, n: iter(played.rounds(s, n, silent=(0, 1, 2, 3))), path=path)
    counts = ", ".join(f"count({m})" for m in METRICS)
    assert duckdb.sql(f"SELECT {counts} FROM '{path}'").fetchall() == [(0, 0, 0, 0, 2, 2)]


def test_finished_runs_are_kept_and_give_the_same_results(tmp_path):
    path, level = tmp_path / "r.parquet", {"a": 0.5, "b": 0.4, "c": 0.3}
    compare([World()], ["a", "b"], [1, 2], 2, Stage(level), path=path)
    stage = Stage(level)
    found = compare([World()], ["a", "b", "c"], [1, 2], 2, stage, path=path)
    assert stage.runs == [("lab", "c", 1), ("lab", "c", 2)]
    assert found.kept == 4
    whole = compare([World()], ["a", "b", "c"], [1, 2], 2, Stage(level))
    assert found.summary() | {"kept_runs": 0} == whole.summary()


def test_fresh_plays_all_again(tmp_path):
    path, stage = tmp_path / "r.parquet", Stage({"a": 0.5})
    for _ in range(2):
        compare([World()], ["a"], [1, 2], 2, stage, path=path, fresh=True)
    assert len(stage.runs) == 4


@pytest.mark.parametrize(("world", "rounds"), [(World(digest="d2"), 2), (World(), 3)], ids=["world", "rounds"])
def test_a_run_of_another_world_file_or_length_is_played_again(tmp_path, world, rounds):
    path, stage = tmp_path / "r.parquet", Stage({"a": 0.5})
    compare([World()], ["a"], [1], 2, stage, path=path)
    found = compare([world], ["a"], [1], rounds, stage, path=path)
    assert len(stage.runs) == 2
    assert found.kept == 0
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(rounds,)]


def test_results_of_other_worlds_stay_in_the_file(tmp_path):
    path, stage = tmp_path / "r.parquet", Stage({"a": 0.5})
    compare([World("one")], ["a"], [1], 2, stage, path=path)
    found = compare([World("two")], ["a"], [1], 2, stage, path=path)
    assert found.worlds == ("two",)
    assert duckdb.sql(f"SELECT world, count(*) FROM '{path}' GROUP BY 1 ORDER BY 1").fetchall() == [
        ("one", 2),
        ("two", 2),
    ]
    compare([World("one")], ["a"], [1], 2, stage, path=path)
    assert len(stage.runs) == 2


def test_a_comparison_that_breaks_keeps_what_was_finished(tmp_path):
    path = tmp_path / "r.parquet"

    def play(world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        if seed == 2:
            raise KeyboardInterrupt
        return iter(played.rounds(seed, rounds))

    with pytest.raises(KeyboardInterrupt):
        compare([World()], ["a", "b"], [1, 2], 2, play, path=path)
    assert duckdb.sql(f"SELECT DISTINCT seed, policy FROM '{path}' ORDER BY 2").fetchall() == [(1, "a"), (1, "b")]
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_a_long_comparison_is_saved_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "SAVE_EVERY", 0.0)
    path, seen = tmp_path / "r.parquet", []

    def play(world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        seen.append(path.exists())
        return iter(played.rounds(seed, rounds))

    compare([World()], ["a"], [1, 2], 1, play, path=path)
    assert seen == [False, True]


def test_a_file_that_is_no_results_file_is_left_alone(tmp_path):
    path = tmp_path / "r.parquet"
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{path}' (FORMAT parquet)")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"r\.parquet is there"):
        compare([World()], ["a"], [1], 1, Stage({"a": 0.5}), path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "where", ["no/such/folder/r.parquet", "/proc/r.parquet", "."], ids=["absent", "denied", "folder"]
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_played(tmp_path, where):
    stage = Stage({"a": 0.5})
    with pytest.raises(BadInput, match="Name another file"):
        compare([World()], ["a"], [1], 1, stage, path=tmp_path / where)
    assert stage.runs == []


def test_a_folder_that_is_lost_while_playing_is_one_clear_error(tmp_path):
    path, stage = tmp_path / "sub" / "r.parquet", Stage({"a": 0.5})
    path.parent.mkdir()

    def play(world: World, policy: str, seed: int, rounds: int) -> Iterator[Round]:
        path.parent.rmdir()
        return stage(world, policy, seed, rounds)

    with pytest.raises(ApportionError, match="could not be written"):
        compare([World()], ["a"], [1], 1, play, path=path)


def test_the_table_says_what_its_columns_mean():
    found = compare([World()], ["a", "b"], [1], 1, Stage({"a": 0.5, "b": 0.4}))
    text = " ".join(spoken(found).split())
    for heading in ("experience:", "behind:", "misses:", "worst:", "jain:", "gap:", "ms:", "–"):
        assert heading in text
    assert "1 round, seeds 1." in text


def test_the_table_keeps_every_figure_in_80_columns_whatever_a_world_is_called():
    worlds = [World("a" * 63), World("b", digest="d2")]
    text = spoken(compare(worlds, ["a", "b"], [1, 2, 3], 1, Stage({"a": 0.5, "b": 0.4}, own=0.01)), 80)
    assert "ms" in text
    assert "…" not in text


def test_progress_counts_rounds_to_the_end():
    told: list[tuple[int, int, str]] = []
    compare([World()], ["a", "b"], [1], 3, Stage({"a": 0.5, "b": 0.5}), lambda *x: told.append(x))
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert {t for _, t, _ in told} == {6}
    assert (done[0], done[-1]) == (0, 6)
    assert told[1][2] == "a on lab, seed 1"


def test_a_run_that_ends_early_is_an_error_that_says_how_far_it_came():
    with pytest.raises(ApportionError, match="ended after 2 of 5 rounds"):
        compare([World()], ["a"], [1], 5, lambda w, p, s, n: iter(played.rounds(s, 2)))


@pytest.mark.parametrize(
    ("worlds", "policies", "seeds", "rounds", "says"),
    [
        ([], ["a"], [1], 1, "no world"),
        ([World()], [], [1], 1, "no policy"),
        ([World()], ["a"], [], 1, "no seed"),
        ([World()], ["a", "a"], [1], 1, "'a' is named twice"),
        ([World(), World()], ["a"], [1], 1, "'lab' is named twice"),
        ([World()], ["a"], [1], 0, "0 rounds"),
        ([World()], ["a"], [1, 2], 10**9, "2,000,000,000 rows"),
    ],
)
def test_nothing_to_compare_is_said_before_anything_is_played(worlds, policies, seeds, rounds, says):
    stage = Stage({"a": 0.5})
    with pytest.raises(BadInput, match=says):
        compare(worlds, policies, seeds, rounds, stage)
    assert stage.runs == []
