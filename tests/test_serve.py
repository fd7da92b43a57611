"""What people see: one number for a round everywhere, why a task got what it got, what stands in 80 columns, what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from rich.console import Console, Group

import apportion as apportion_
from apportion.core.policies import POLICIES, priced
from apportion.core.round import Round
from apportion.serve.build import RULES, Choice, Running
from apportion.serve.doctor import told
from apportion.serve.explain import explain
from apportion.serve.folder import Folder
from apportion.serve.live import head, line, pools_table, tasks_table, view
from apportion.worlds.world import World, load

README = Path(__file__).parents[1] / "README.md"
WORLD = """
version: 1
name: plaza
rounds: 8
pools: {here: {capacity: {cpu: 2 cores, memory: 2 GiB}}}
accounts: {studio: {entitlement: 50%}, guild: {entitlement: 50%}}
tasks:
  game: {kind: game, account: studio, demand: {cpu: 0.5, memory: 64 MiB}}
  chat: {kind: social, account: guild, demand: {cpu: 0.5, memory: 64 MiB}}
events:
  - {name: opening night, at: 2, for: 3, task: game, load: x6}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    path = tmp_path / "plaza.yaml"
    path.write_text(WORLD)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$0 -c "$1"` is apportion and "${@:2}" its arguments."""
    main = "from apportion.serve.cli import main; main()"
    line = ["bash", "-c", f"set -o pipefail; {command}", sys.executable, main, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def apportion(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return shell('"$0" -c "$1" "${@:2}"', *arguments)


def play(world: World, out: Path, watch: Callable[[Running, Round], None] = lambda running, round: None, **choice):
    with Running(world, Choice("sim", **choice), out) as running:
        for round in running.rounds():
            watch(running, round)


# one number for a round


def test_a_round_has_the_number_of_the_log_everywhere(world: Path, out: Path):
    told = apportion("up", world, "--out", out, "--engine", "sim", "--rounds", "3")
    assert told.returncode == 0, told.stderr
    assert "rounds 0 to 2" in told.stdout
    assert [text for text in told.stdout.splitlines() if text.startswith("round 0/2 ")]
    assert "all rounds, 0 to 2" in told.stdout
    numbers = duckdb.sql(f"SELECT DISTINCT round FROM '{out / 'rounds.parquet'}' ORDER BY 1").fetchall()
    assert numbers == [(0,), (1,), (2,)]
    for number, (kept,) in enumerate(numbers):
        said = json.loads(apportion("explain", "game", "--out", out, "--round", str(number), "-o", "json").stdout)
        assert (said["round"], f"In round {kept} " in said["text"]) == (kept, True)
    beyond = apportion("explain", "game", "--out", out, "--round", "3")
    assert (beyond.returncode, "the last one is 2" in beyond.stderr) == (2, True)


# policies, and the door from Python


def test_every_policy_that_is_named_can_be_played(world: Path):
    assert set(RULES) == set(POLICIES)
    for name in POLICIES:
        (round,) = apportion_.play(load(world), name, rounds=1)
        assert priced(name) == (name == "market")
        assert round.number == 0


def test_python_plays_a_world_as_its_file_says(world: Path):
    rounds = list(apportion_.play(apportion_.load(world)))
    assert [r.number for r in rounds] == list(range(8))
    again = list(apportion_.play(apportion_.load(world), "market", 0, 8))
    assert [r.balance.tolist() for r in again] == [r.balance.tolist() for r in rounds]


def test_the_python_of_the_readme_prints_what_it_says():
    code = README.read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=README.parent, capture_output=True, text=True, check=True)
    promised = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    lines = done.stdout.splitlines()
    assert lines[1 : len(promised)] == promised[1:]
    assert lines[0].partition("gap")[0] == promised[0].partition("gap")[0], "all but the last digits of what is proven"
    assert [line.split()[0] for line in lines if line[0].isdigit()] == [str(number) for number in range(45)]


# explain


def test_explain_takes_the_last_round_in_which_the_task_had_to_bid_for_something_scarce(world: Path, out: Path):
    scarce: list[int] = []
    play(load(world), out, lambda _, r: scarce.append(r.number) if r.allocation.price.any() else None)
    assert scarce
    assert scarce[-1] < 7, "the opening is over before the world is"
    with Folder(out).read() as log:
        found = explain(log, "game")
        assert found.round == scarce[-1]
        assert "was scarce" in found.text
        assert f"Round {scarce[-1]} is the last in which game had to bid for something scarce" in found.chosen
        assert "the last of all is 7" in found.chosen
        named = explain(log, "game", 7)
        assert (named.round, named.chosen) == (7, "")
        assert explain(log, "chat").round == 7, "its guarantee is all that it wants, whatever the prices"
        assert "its guarantee covered all of that, so it paid nothing" in explain(log, "chat", scarce[-1]).text


def test_where_nothing_was_scarce_explain_takes_the_last_round(world: Path, out: Path):
    play(load(world), out, rounds=2)
    with Folder(out).read() as log:
        found = explain(log, "game")
    assert (found.round, "Round 1 is the last one" in found.chosen) == (1, True)
    assert "nothing it uses was scarce" in found.text


def test_explain_tells_of_a_round_that_was_aborted(world: Path, out: Path, monkeypatch):
    def broken():
        raise KeyboardInterrupt

    with Running(load(world), Choice("sim"), out) as running:
        list(running.rounds(2))
        running.first = 2
        assert running.engine is not None
        monkeypatch.setattr(running.engine.executor, "observe", broken)
        with pytest.raises(KeyboardInterrupt):
            list(running.rounds(1))
    with Folder(out).read() as log:
        found = explain(log, "game", 2)
        assert found.text.startswith("Round 2 was aborted: KeyboardInterrupt; ")
        assert "nothing was charged" in found.text
        assert found.aborted == "KeyboardInterrupt"
        assert explain(log, "game").round == 1, "nobody asks for an aborted round unasked"


# taking a run up again


def test_resume_tells_what_it_found_and_sums_up_the_whole_run(world: Path, out: Path):
    run = ("up", world, "--out", out, "--engine", "sim")
    assert apportion(*run, "--rounds", "5").returncode == 0
    again = apportion(*run, "--resume")
    assert again.returncode == 0, again.stderr
    assert "found     a log of rounds 0 to 4" in again.stdout
    assert "rounds 5 to 7" in again.stdout
    assert "all rounds, 0 to 7" in again.stdout
    paid = duckdb.sql(f"SELECT sum(paid) FROM '{out / 'rounds.parquet'}' WHERE task = 'game'").fetchall()[0][0]
    assert f"{paid:,.2f}" in again.stdout
    log = (out / "ledger.db").read_bytes()
    done = apportion(*run, "--resume")
    assert (done.returncode, "nothing is left to play" in done.stdout) == (0, True)
    assert (out / "ledger.db").read_bytes() == log


def test_a_run_goes_on_with_its_seed(world: Path, out: Path):
    run = ("up", world, "--out", out, "--engine", "sim", "--rounds", "1")
    assert apportion(*run, "--seed", "5").returncode == 0
    other = apportion(*run, "--resume")
    assert (other.returncode, "--seed 5" in other.stderr) == (2, True)


# the live view


def seen(*parts) -> list[str]:
    console = Console(width=80)
    with console.capture() as said:
        console.print(Group(*parts))
    return said.get().splitlines()


def test_the_live_table_fits_80_columns_whatever_a_world_holds(tmp_path: Path, out: Path):
    path = tmp_path / "wide.yaml"
    long = "the-great-hall-of-the-northern-kingdom"
    path.write_text(
        WORLD.replace("game:", f"{long}:").replace("task: game", f"task: {long}").replace("rounds: 8", "credits_per_round: 900000")
    )  # fmt: skip
    tables: dict[bool, list[list[str]]] = {False: [], True: []}

    def look(running: Running, r: Round) -> None:
        for advised, views in tables.items():
            views.append(seen(head(r, running), tasks_table(r, advised), pools_table(r)))

    play(load(path), out, look, rounds=4)
    for advised, views in tables.items():
        for text in views:
            assert max(map(len, text)) <= 80
            assert "…" not in "".join(text), "a number was cut"
            assert ("would be" in "".join(text)) == advised
        assert any("450,000.00" in row for row in views[-1])


def test_the_live_table_names_what_is_happening_and_how_long_still(world: Path, out: Path):
    heads: dict[int, str] = {}
    with Running(load(world), Choice("sim"), out) as running:
        running._seed = None  # events as the file says them, as on a real machine
        for round in running.rounds():
            heads[round.number] = str(head(round, running))
    assert "opening night: game x6, 3 s left" in heads[2]
    assert "opening night: game x6, 1 s left" in heads[4]
    assert "opening" not in heads[1] + heads[5]
    assert heads[0].startswith("round 0 of 0 to 7 · enforcer sim")


def test_what_was_found_at_the_start_is_not_said_twice(world: Path, out: Path):
    console = Console(width=80, force_terminal=False)
    with Running(load(world), Choice("sim"), out) as running:
        running.found = ["'game' was adopted"]
        (round,) = running.rounds(1)
        noted = replace(round, outcome=replace(round.outcome, notes=("'game' was adopted", "'chat' ended")))
        with console.capture() as said, view("table", running, console, sys.stdout) as lines:
            lines.show(noted)
    assert [text for text in said.get().splitlines() if "!" in text] == ["  ! 'chat' ended"]


def test_a_program_that_does_not_tell_is_a_dash(world: Path, out: Path):
    rounds: list[Round] = []
    play(load(world), out, lambda _, r: rounds.append(r), rounds=1)
    silent = replace(rounds[0].outcome, asked=np.array([-1, 4]), in_time=np.array([-1, 3]))
    text = line(replace(rounds[0], outcome=silent), None)
    assert "game 100%    –" in text
    assert "chat 100% 0.75" in text
    assert "– where the program did not say" in " ".join(seen(tasks_table(rounds[0])))


# doctor


def test_doctor_speaks_in_peoples_units_and_names_who_will_enforce():
    found = json.loads(apportion("doctor", "-o", "json").stdout)
    text = apportion("doctor").stdout
    used = next(e["name"] for e in found["enforcers"] if e["works"])
    assert found["enforcer"] == used
    assert f"{used}: WILL BE USED" in text
    assert text.count("WILL BE USED") == 1
    assert f"{found['capacity']['cpu'] / 1000:.3g} core" in text
    assert f"{found['capacity']['memory'] / 2**20:.3g} GiB" in text
    assert str(found["capacity"]["memory"]) not in text, "nobody counts memory in KiB"
    for e in found["enforcers"]:
        assert e["works"] or f"{e['name']}: cannot be used here." in text
    assert not [row for row in text.splitlines() if row.rstrip().endswith(":")]


def test_one_core_is_a_core():
    found = {
        "apportion": "1", "python": "3", "machine": "m", "kernel": "k", "cores": 1, "capacity": {"cpu": 1000},
        "enforcers": [{"name": "governor", "works": False, "why": "no clocks."}, {"name": "none", "works": True, "why": ""}],
        "enforcer": "none", "cgroups": {}, "packages": {}, "removed": ["ab12"],
    }  # fmt: skip
    lines = told(found)
    assert lines["cores"] == ["1 core"]
    assert lines["for sale"][0] == "1 core of cpu"
    assert lines["enforcers"][0] == "governor: cannot be used here. no clocks."
    assert "WILL BE USED" in lines["enforcers"][1]
    assert lines["removed"] == ["the groups of run ab12"]


# what goes wrong


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "WORLD", "--out", ""),
        ("up", ""),
        ("demo", "--out", " "),
        ("explain", "game", "--out", ""),
        ("release", "--out", ""),
        ("compare", ""),
        ("compare", "WORLD", "--out", ""),
        ("schema", "--out", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_no_folder(world: Path, tmp_path: Path, arguments: tuple[str, ...]):
    done = apportion(*(world if a == "WORLD" else a for a in arguments))
    assert (done.returncode, "names no file or folder" in done.stderr) == (2, True), done.stderr


def test_verify_gives_no_verdict_on_an_empty_path():
    assert apportion("verify", "", "--key", "x").returncode == 3


def test_a_full_disk_below_what_is_printed_stops_no_world(world: Path, out: Path):
    done = shell('"$0" -c "$1" "${@:2}" > /dev/full', "up", world, "--out", out, "--engine", "sim")
    assert (done.returncode, "No space left" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert (out / "report.html").exists()
    assert duckdb.sql(f"SELECT max(round) FROM '{out / 'rounds.parquet'}'").fetchall() == [(7,)]
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_who_leaves_ends_a_world_cleanly(world: Path, out: Path, form: str):
    world.write_text(WORLD.replace("rounds: 8", "round_seconds: 0.05"))  # until stopped
    done = shell('"$0" -c "$1" "${@:2}" | head -1', "up", world, "--out", out, "--engine", "sim", "-o", form)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (out / "report.html").exists()
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0


@pytest.mark.parametrize(("verb", "code"), [("explain", 1), ("verify", 3), ("doctor", 1)])
def test_what_cannot_be_printed_is_told_by_the_exit_code(world: Path, out: Path, verb: str, code: int):
    play(load(world), out, rounds=1)
    more = {"explain": ("game", "--out", out), "verify": (out / "ledger.db", "--key", out / "operator.pub"), "doctor": ()}  # fmt: skip
    done = shell('"$0" -c "$1" "${@:2}" > /dev/full', verb, *more[verb])
    assert (done.returncode, "No space left" in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("seeds", ["1..1000000000", "5..1", "1..99999999999999999999", "9999999999999999", "1,", "x"])
def test_seeds_that_nobody_can_mean_are_refused_before_anything_is_played(world: Path, tmp_path: Path, seeds: str):
    done = apportion("compare", world, "--seeds", seeds, "--out", tmp_path / "r.parquet")
    assert (done.returncode, "--seeds" in done.stderr) == (2, True), done.stderr
    assert done.stderr.startswith("apportion: "), "no bar of progress before it"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.parquet").exists()


def test_a_damaged_results_file_is_told_and_left_alone(world: Path, tmp_path: Path):
    path = tmp_path / "r.parquet"
    path.write_bytes(b"PAR1 and then nothing of use")
    done = apportion("compare", world, "--out", path, "--rounds", "1", "--seeds", "1")
    assert (done.returncode, "remove it first" in done.stderr) == (2, True), done.stderr
    assert path.read_bytes() == b"PAR1 and then nothing of use"
