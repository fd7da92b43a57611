"""The verbs of the economy, typed: what they write, what they refuse and how they say so."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
import yaml

from apportion.serve import credits as files
from apportion.serve import econ
from apportion.study.economy import MECHANISMS, Run
from apportion.study.economy_agents import Credits
from apportion.study.properties import THRESHOLDS

SMALL = ("--rounds", "12", "--agents", "10")


def test_a_run_writes_rows_per_round_and_agent_and_a_page(run, root: Path, tmp_path: Path):
    out = tmp_path / "econ"
    code, told, _ = run(
        "econ", "run", root / "examples" / "economy" / "credits.yaml", *SMALL, "--out", out, "-o", "json"
    )
    assert code == 0
    told = json.loads(told)
    assert (told["rounds"], told["drift"], told["stopped"], told["mechanism"]) == (12, 0, False, "market")
    rows = lambda name: duckdb.sql(f"SELECT * FROM '{out / name}'").fetchnumpy()  # noqa: E731
    per_round, per_agent = rows("rounds.parquet"), rows("agents.parquet")
    wanted = {"price_index", "velocity", "gini", "rationed", "bankrupt", "fairness", "jain", "use", "gap", "price_cpu"}
    assert wanted | {"round", "rationed_sybil"} <= per_round.keys()
    assert len(per_round["round"]) == 12
    assert per_agent["balance"].sum() == pytest.approx(2000)
    assert (per_agent["used"] <= per_agent["wanted"] * (1 + 1e-9)).all()
    page = (out / "report.html").read_text()
    for heading in ("Price index", "Velocity", "Gini", "Rationed", "Bankrupt", "Fairness"):
        assert f">{heading}</h2>" in page
    assert "http" not in page.replace("http-equiv", "").split("<script")[0], "the page fetches nothing"


def test_a_stopped_run_writes_what_was_played(run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in round 5: six rounds are whole, the page says so, the exit code is 130."""

    def stopped(credits: Credits, agents: int, rounds: int, seed: int, *, tick) -> Run:
        def broken(done: int) -> None:
            tick(done)
            if done == 6:
                raise KeyboardInterrupt

        return real(credits, agents, rounds, seed, tick=broken)

    real = econ.run
    monkeypatch.setattr(econ, "run", stopped)
    code, told, _ = run("econ", "run", root / "examples" / "economy" / "credits.yaml", *SMALL, "--out", tmp_path)
    assert code == 130
    assert "6 rounds of 10 agents under market, seed 0. Stopped before its last round" in told
    assert len(duckdb.sql(f"SELECT * FROM '{tmp_path / 'rounds.parquet'}'").fetchall()) == 6
    assert "Stopped before its last round" in (tmp_path / "report.html").read_text()


def test_sweeps_comparisons_and_attacks_say_how_sure_they_are(run, tmp_path: Path):
    short = ("--rounds", "30", "--agents", "10", "--seeds", "0..1", "-o", "json")
    code, told, _ = run("econ", "sweep", "half_life=5..50", "--steps", "2", *short, "--out", tmp_path)
    assert code == 0
    assert json.loads(told)["by_value"].keys() == {"5", "50"}
    assert "paired by seed" in (tmp_path / "report.html").read_text()
    code, told, _ = run("econ", "compare", "--mechanisms", "market,static", *short)
    difference = json.loads(told)["by_value"]["static"]["served"]["above_first"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    code, told, _ = run("econ", "attack", "hoard", "--k", "3", *short)
    found = json.loads(told)["gains"]
    assert {g["target"] for g in found} == {"truthful", "duty 0.25"}
    assert all(g["share"]["low"] <= g["share"]["mean"] <= 0 for g in found if g["way"].startswith("asks in"))


@pytest.mark.parametrize(
    ("assignment", "values"),
    [("alpha=0..1", [0.0, 0.5, 1.0]), ("half_life=10..1000", [10.0, 100.0, 1000.0]), ("kappa=4..4", [4.0])],
)
def test_a_span_is_even_or_even_in_its_logarithm(assignment: str, values: list[float]):
    assert econ.span(assignment, 3)[1] == pytest.approx(values)


FILE = "version: 1\nagents: {{truthful: 1}}\n{line}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kapa: 4", "bad.yaml:3: kapa is '4': a credits file has no key 'kapa'. Did you mean 'kappa'?"),
        ("alpha: 140%", "bad.yaml:3: alpha is '140%': it is not a share from 0 to 1."),
        ("half_life: soon", "bad.yaml:3: half_life is 'soon': input should be a valid number."),
        ("duty: [0.5, 2]", "bad.yaml:3: duty[1] is '2': input should be less than or equal to 1."),
        ("capacity: {cpu: 3 apples}", "bad.yaml:3: capacity is '{cpu: 3 apples}': it is not an amount of cpu."),
        ("capacity: {cpu: 0}", "bad.yaml:3: capacity is '{cpu: 0}': cpu is nothing. Give it an amount"),
        ("mechanism: marke", "bad.yaml:3: mechanism is 'marke': it is no mechanism. Did you mean 'market'?"),
        ("agents: {robber: 1}", "bad.yaml:3: agents stands here again; it stood on line 2."),
    ],
)
def test_a_wrong_file_is_told_by_its_line(run, tmp_path: Path, line: str, said: str):
    file = tmp_path / "bad.yaml"
    file.write_text(FILE.format(line=line))
    code, _, told = run("econ", "run", file, *SMALL, "--out", tmp_path / "out")
    assert code == 2
    assert said in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("sweep", "half_lif=1..2"), "'half_lif' is no number of a credits file. Try one of: load"),
        (("sweep", "alpha=0..2"), "alpha=1.5: it is not a share from 0 to 1."),
        (("sweep", "agents.sybil=-1..2"), "the weight of sybil is -1.0: a number from 0 to"),
        (("sweep", "half_life=9..2"), "write KEY=a..b with a at most b"),
        (("compare", "--mechanisms", "lottery"), "there is no mechanism 'lottery'. Mechanisms: market, drf"),
        (("compare", "--mechanisms", ""), "name at least one mechanism, and each once"),
        (("attack", "sybil", "--k", "1"), "--k 1: one identity is no disguise; at least 2"),
        (("attack", "misreport", "--seeds", "0..1"), "at least 3"),
        (("properties", "--mechanisms", "lottery"), "there is no mechanism 'lottery'"),
    ],
)
def test_what_cannot_be_played_is_refused_before_it_is(run, typed: tuple[str, ...], said: str):
    code, told, error = run("econ", *typed)
    assert (code, told) == (2, "")
    assert said in error


def test_the_example_says_the_defaults(root: Path):
    name, credits = files.load(root / "examples" / "economy" / "credits.yaml")
    assert name == "town"
    parts = {kind: weight / 100 for kind, weight in credits.agents.items()}
    default = Credits()
    assert parts == pytest.approx(dict(default.agents))
    for key in (k for k in Credits.__slots__ if k != "agents"):
        assert getattr(credits, key) == getattr(default, key), key


def test_the_page_names_every_key_mechanism_and_property(root: Path):
    page = (root / "docs" / "economy.md").read_text()
    for key, field in files.CreditsFile.model_fields.items():
        if key not in ("version", "name", "description"):
            assert f"| `{key}` |" in page, key
            assert field.description
    assert all(f"`{name}`" in page for name in MECHANISMS)
    assert all(f"\n| {name.replace('_', ' ')} | " in page for name in THRESHOLDS)
    for block in page.split("```yaml\n")[1:]:
        files.CreditsFile.model_validate(yaml.safe_load(block.split("```")[0]))
