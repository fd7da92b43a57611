"""The command line on real programs: what is seen, what is left behind, and that a kill -9 costs nobody anything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import psutil
import pytest

from apportion.execution.local import retire

BURNER = str(Path(__file__).with_name("burner.py"))
APPORTION = [sys.executable, "-c", "from apportion.serve.cli import main; main()"]
WORLD = f"""
version: 1
name: burners
rounds: 6
round_seconds: 0.3
pools: {{here: {{capacity: {{cpu: 400m, memory: 512 MiB}}}}}}
accounts: {{left: {{entitlement: 50%}}, right: {{entitlement: 50%}}}}
tasks:
  one: {{kind: process, account: left, demand: {{cpu: 0.3, memory: 64 MiB}}, floor: {{cpu: 0.1}},
         command: [{sys.executable}, -S, {BURNER}, --want, "0.3"]}}
  two: {{kind: process, account: right, demand: {{cpu: 0.3, memory: 64 MiB}},
         command: [{sys.executable}, -S, {BURNER}, --want, "0.3"]}}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    path = tmp_path / "burners.yaml"
    path.write_text(WORLD)
    return path


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start apportion in the background; whatever it leaves is ended with the test."""
    begun: list[subprocess.Popen] = []

    def start(*arguments: str | Path) -> subprocess.Popen:
        command = [*APPORTION, *map(str, arguments)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()
    retire(tmp_path / "out")


def apportion(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*APPORTION, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def burners(out: Path) -> list[psutil.Process]:
    """The programs of a run, by what its state file says."""
    state = out / "run" / "children.json"
    pids = [c["pid"] for c in json.loads(state.read_text())["children"].values()] if state.exists() else []
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def alive(pid: int) -> bool:
    """A process that nobody has buried yet is not alive."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def groups() -> list[Path]:
    return [p for p in Path("/sys/fs/cgroup").glob("*/apportion/*/*") if p.is_dir()]


def test_a_world_runs_and_leaves_a_log_a_history_and_a_report(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    before = groups()
    done = apportion("up", world, "--out", out, "-o", "json")
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["round"] for r in rounds] == list(range(6))
    last = rounds[-1]
    assert set(last["tasks"]) == {"one", "two"}
    assert sum(t["granted"]["cpu"] for t in last["tasks"].values()) <= 0.4
    assert all(t["granted"]["cpu"] >= 0.1 for t in [last["tasks"]["one"]])
    assert last["prices"]["here"]["cpu"] > 0, "0.6 cores are wanted of 0.4"

    told = apportion("verify", out / "ledger.db", "--key", out / "operator.pub")
    assert told.returncode == 0, told.stdout + told.stderr
    count = duckdb.sql(f"SELECT count(*), count(DISTINCT round), min(granted_cpu) FROM '{out / 'rounds.parquet'}'")
    assert count.fetchall()[0][:2] == (12, 6)
    assert "one" in (out / "report.html").read_text()
    assert not (out / "run" / "children.json").exists()
    assert groups() == before


def test_explain_says_what_is_scarce_what_it_costs_and_what_more_would(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert apportion("up", world, "--out", out, "--engine", "sim").returncode == 0
    text = apportion("explain", "one", "--out", out).stdout

    assert "cpu in here was scarce at" in text
    assert "it bid" in text
    assert "would have cost" in text
    unknown = apportion("explain", "on", "--out", out)
    assert (unknown.returncode, "Did you mean 'one'?" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_program_no_group_and_a_log_that_verifies(started, world: Path, tmp_path: Path, number):
    out = tmp_path / "out"
    before = groups()
    process = started("up", world, "--out", out, "-o", "json", "--rounds", "1000")
    first = json.loads(process.stdout.readline())
    assert first["round"] == 0
    running = [p.pid for p in burners(out)]
    assert len(running) == 2
    process.send_signal(number)
    process.communicate(timeout=20)

    assert process.returncode == 130
    assert not any(alive(pid) for pid in running)
    assert groups() == before
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0


def test_kill_9_and_resume_go_on_with_the_same_programs_and_charge_the_broken_round_nothing(
    started, world: Path, tmp_path: Path
):
    out = tmp_path / "out"
    process = started("up", world, "--out", out, "-o", "json", "--rounds", "1000")
    for _ in range(3):
        process.stdout.readline()
    running = {p.pid for p in burners(out)}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert {p.pid for p in burners(out)} == running, "programs outlive their controller"

    done = apportion("up", world, "--out", out, "-o", "json", "--resume", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    told = apportion("verify", out / "ledger.db", "--key", out / "operator.pub", "-o", "json")
    assert told.returncode == 0, told.stdout + told.stderr
    history = duckdb.sql(f"SELECT DISTINCT round, aborted FROM '{out / 'rounds.parquet'}' ORDER BY round").fetchall()
    numbers = [n for n, _ in history]
    assert numbers == list(range(len(numbers)))
    assert sum(bool(aborted) for _, aborted in history) <= 1
    assert not any(alive(pid) for pid in running)


def test_where_nothing_is_left_to_play_no_program_is_started(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    run = ("up", world, "--out", out)
    assert apportion(*run).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "run").iterdir() if path.suffix in (".out", ".err")}
    assert before
    done = apportion(*run, "--resume")
    assert (done.returncode, "nothing is left to play" in done.stdout) == (0, True), done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_program_prints_can_break_neither_the_round_nor_the_log(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    most = '{"asked": 9007199254740991, "in_time": 9007199254740991}'
    for name, printed in (("one", repr(most)), ("two", """'{"asked":' + '[' * 100000""")):
        program = tmp_path / f"{name}.py"
        program.write_text(f"import time\nwhile True:\n    print({printed}, flush=True)\n    time.sleep(0.05)\n")
        burner = f'[{sys.executable}, -S, {BURNER}, --want, "0.3"]'
        world.write_text(world.read_text().replace(burner, f"[{sys.executable}, -S, {program}]", 1))
    done = apportion("up", world, "--out", out, "-o", "json", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0


def test_a_crash_is_told_where_no_terminal_is(world: Path, tmp_path: Path):
    world.write_text(WORLD.replace(f'[{sys.executable}, -S, {BURNER}, --want, "0.3"]', "[sh, -c, exit 3]", 1))
    done = apportion("up", world, "--out", tmp_path / "out", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("  ! ") and "one" in line for line in done.stdout.splitlines()), done.stdout


def test_a_start_that_was_cut_short_is_begun_anew(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "ledger.db").touch()
    run = ("up", world, "--out", out, "--engine", "sim", "--rounds", "1")
    assert apportion(*run).returncode == 0
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0
    (out / "operator.key").unlink()
    assert apportion(*run).returncode == 2
    assert apportion(*run, "--fresh").returncode == 0


def test_a_world_whose_program_could_not_be_started_is_begun_anew_once_it_is_mended(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    world.write_text(WORLD.replace(sys.executable, "/no/such/python", 1))
    wrong = apportion("up", world, "--out", out, "--rounds", "1")
    assert (wrong.returncode, "/no/such/python" in wrong.stderr) == (2, True)
    world.write_text(WORLD)
    done = apportion("up", world, "--out", out, "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "enforcer  " in done.stdout, "who holds the programs is said where no table shows it"


def test_a_run_goes_on_as_it_began(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert apportion("up", world, "--out", out, "--engine", "sim", "--rounds", "1").returncode == 0
    other = apportion("up", world, "--out", out, "--resume", "--rounds", "1")
    assert (other.returncode, "--engine sim" in other.stderr) == (2, True)


def test_an_interrupted_verdict_is_no_verdict(tmp_path: Path, started):
    os.mkfifo(tmp_path / "key")  # whoever reads it waits for ever
    process = started("verify", tmp_path / "ledger.db", "--key", tmp_path / "key")
    for _ in range(600):
        time.sleep(0.1)
        with contextlib.suppress(OSError):  # until it is being read
            held = os.open(tmp_path / "key", os.O_WRONLY | os.O_NONBLOCK)
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    os.close(held)
    assert process.returncode == 130


def test_advice_holds_nobody_and_is_never_told_as_if_it_did(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = apportion("up", world, "--out", out, "-o", "json", "--advise", "--rounds", "2")
    rounds = [json.loads(line) for line in done.stdout.splitlines()]

    assert {(r["enforcer"], r["advised"]) for r in rounds} == {("none", True)}
    assert rounds[-1]["prices"]["here"]["cpu"] > 0
    assert "accounts move in this trial log only" in done.stderr
    told = apportion("explain", "one", "--out", out).stdout
    assert "would have been granted" in told
    assert "would have paid" in told
    assert "nothing was enforced" in told
    assert "Advice only." in (out / "report.html").read_text()

    mixed = apportion("up", world, "--out", out, "--resume", "--rounds", "1")
    assert (mixed.returncode, "began with --advise" in mixed.stderr) == (2, True)
    again = apportion("up", world, "--out", out, "--resume", "--advise", "--rounds", "1")
    assert again.returncode == 0, again.stderr
    assert "would have paid" in again.stdout
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0


def test_pools_that_promise_more_than_the_machine_has_are_told(world: Path, tmp_path: Path):
    world.write_text(WORLD.replace("cpu: 400m", "cpu: 5000 cores"))
    done = apportion("up", world, "--out", tmp_path / "out", "--advise", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "note      pools sum to 5e+03 cores of cpu, this machine has" in done.stdout
    assert (
        "pools sum" not in apportion("up", world, "--out", tmp_path / "sim", "--engine", "sim", "--rounds", "1").stdout
    )


def test_release_lifts_every_limit_of_a_running_world(started, world: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = started("up", world, "--out", out, "-o", "json", "--rounds", "1000")
    process.stdout.readline()
    assert apportion("release", "--out", out).returncode == 0
    deadline = time.monotonic() + 10
    while (told := json.loads(process.stdout.readline()))["enforcer"] != "none":
        assert time.monotonic() < deadline
    assert told["released"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("cpu: 0.3, memory", "cpu: -1, memory", "tasks.one.demand.cpu"),
        ("account: left", "account: centre", "tasks.one.account"),
        ("floor: {cpu: 0.1}", "floor: {cpu: 0.1 parsecs}", "tasks.one.floor.cpu"),
        ("floor: {cpu: 0.1}", "flor: {cpu: 0.1}", "floor"),
        ("capacity: {cpu: 400m,", "capacity: {cpu: 50m,", "tasks.one.floor"),
    ],
)
def test_a_wrong_world_is_one_clear_error_and_starts_nothing(
    world: Path, tmp_path: Path, old: str, new: str, told: str
):
    world.write_text(WORLD.replace(old, new, 1))
    done = apportion("up", world, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert "burners.yaml:" in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_wrongly_is_told_with_the_way_out(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    asked = {
        ("up", world, "--out", out, "--resume"): "no run to resume",
        ("up", world, "--out", out, "--policy", "lottery"): "Policies: market",
        ("up", tmp_path / "no.yaml"): "no.yaml",
        ("explain", "one", "--out", out): "no run here",
        ("compare", world, "--seeds", "a..b"): "1..5",
        ("compare", world, "--engine", "local"): "sim",
        ("frobnicate",): "--help",
    }
    for arguments, told in asked.items():
        done = apportion(*arguments)
        assert (done.returncode, told in done.stderr) == (2, True), (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_an_earlier_run_is_never_overwritten(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    run = lambda *more: apportion("up", world, "--out", out, "--engine", "sim", "--rounds", "1", *more)  # noqa: E731
    assert run().returncode == 0
    first = (out / "ledger.db").read_bytes()
    again = run()
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert "--fresh" in again.stderr
    assert run("--fresh").returncode == 0
    assert [p.read_bytes() for p in out.glob("old/*/ledger.db")] == [first]
