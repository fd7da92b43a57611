"""A start that is cut short, wherever it is: the next one, or whoever tidies up, leaves no program that nobody knows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from controller import PROGRAMS
from executors import BURNER, HOLDERS, allocation, burner, eventually, local, offered

from apportion.core.clock import WallClock
from apportion.execution import machine, places, procfs
from apportion.execution.children import GRACE
from apportion.execution.local import LocalExecutor, retire
from apportion.execution.programs import own

HERE = Path(__file__).parent
APPORTION = [sys.executable, "-c", "from apportion.serve.cli import main; main()"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A burner of this test's own, whose processes can be told from all others; none outlives the test."""
    path = Path(shutil.copy(BURNER, tmp_path / "burner.py"))
    monkeypatch.setattr("executors.BURNER", str(path))
    yield path
    for pid in running(path):
        os.kill(pid, signal.SIGKILL)


def running(program: Path) -> list[int]:
    """Find its processes by their command line, which is none of apportion's ways."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(program) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def cut(enforcer: str, folder: Path, program: Path, start: int) -> str:
    """Let a controller kill itself at that start; gives what it said."""
    script = f"import executors, controller; executors.BURNER = {str(program)!r}; controller.main()"
    command = [sys.executable, "-c", script, offered(enforcer), str(folder), str(start)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def groups(folder: Path, run: str) -> list[Path]:
    return [group for group in machine._ours() if group.name.endswith(run)]


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("enforcer", [*HOLDERS, "none"])
def test_who_resumes_after_a_cut_start_finds_a_world_without_strangers(
    enforcer: str, start: int, tmp_path: Path, program: Path
):
    folder = tmp_path / "out"
    cut(enforcer, folder, program, start)
    left = running(program)
    assert len(left) >= start
    known = {pid for child in children(folder).values() if (pid := child["pid"])}
    assert len(known) == start - 1  # the last one was told to nobody

    executor = LocalExecutor([burner(*given) for given in PROGRAMS], enforcer, folder, WallClock())
    try:
        pids = [child.pid for child in executor._children.children.values()]
        assert all(pids)
        assert known <= set(pids)
        assert eventually(lambda: set(running(program)) == {each for pid in pids for each in procfs.tree(pid)}, 2)
        said = "\n".join(executor.greeting)
        assert said.count("was adopted") == start - 1
        assert said.count("which nobody looked after") == 1
        assert f"{PROGRAMS[start - 1][0]!r}: stopped process" in said
        executor.grant(allocation(dict.fromkeys([name for name, *_ in PROGRAMS], 50)))
        assert set(executor.greeting) <= set(executor.observe().notes)
    finally:
        executor.close()
    assert running(program) == []
    assert not groups(folder, executor.run)


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("enforcer", [*HOLDERS, "none"])
def test_a_cut_start_can_be_retired(enforcer: str, start: int, tmp_path: Path, program: Path):
    folder = tmp_path / "out"
    cut(enforcer, folder, program, start)
    assert len(running(program)) >= start
    run = json.loads(places.state(folder).read_text())["run"]
    told = retire(folder)
    assert len(told) == start
    assert sum("which nobody looked after" in line for line in told) == 1
    assert running(program) == []
    assert not groups(folder, run)
    assert retire(folder) == []


@pytest.mark.parametrize("enforcer", HOLDERS)
def test_what_enforcers_are_tried_on_ends_with_its_controller(enforcer: str, tmp_path: Path, program: Path):
    before = set(machine._runs())
    pid = int(cut(enforcer, tmp_path / "out", program, 0))
    try:
        assert eventually(lambda: not procfs.started(pid), 5)
        assert retire(tmp_path / "out") == []
    finally:
        for run in set(machine._runs()) - before:  # nothing was written down yet: `doctor --clean` finds these
            machine.clean(run)


def children(folder: Path) -> dict:
    return json.loads(places.state(folder).read_text())["children"]


def test_what_left_its_program_is_stopped_with_it_and_stays_while_that_runs(tmp_path: Path, program: Path):
    """A program may start a helper in a session of its own, whose parent ends: no tree and no group holds it."""
    command = f"(setsid {sys.executable} -S {program} --silent --want 0 &) ; exec sleep 60"
    task = own("parent", ("sh", "-c", command))
    with local("none", tmp_path, task) as executor:
        assert eventually(lambda: len(running(program)) == 1, 5)
        [helper] = running(program)
        assert helper not in procfs.tree(executor._children.children["parent"].pid)
        executor._lock_file.close()  # as `kill -9` leaves it
        again = LocalExecutor([task], "none", tmp_path, WallClock())
        assert running(program) == [helper]
        again.close()
        assert running(program) == []


def test_a_process_of_somebody_else_s_run_is_left_alone(tmp_path: Path, program: Path):
    with local("none", tmp_path / "first", burner("a", want=0)) as first:
        with local("none", tmp_path / "second", burner("a", want=0)):
            assert len(running(program)) == 2
        assert running(program) == [first._children.children["a"].pid]


def test_the_deaf_are_stopped_after_the_grace(tmp_path: Path, program: Path):
    command = f"(setsid {sys.executable} -S {program} --silent --deaf --want 0 &) ; exec sleep 60"
    with local("none", tmp_path, own("parent", ("sh", "-c", command))) as executor:
        assert eventually(lambda: len(running(program)) == 1, 5)
        time.sleep(0.3)  # until it is deaf
        begun = time.monotonic()
        executor.close()
        assert time.monotonic() - begun >= GRACE
    assert running(program) == []


# ---- the command line ----

WORLD = """
version: 1
name: burners
rounds: 1000
round_seconds: 0.3
pools: {{here: {{capacity: {{cpu: 400m, memory: 512 MiB}}}}}}
accounts: {{all: {{entitlement: 100%}}}}
tasks:
  one: {{kind: process, account: all, demand: {{cpu: 0.1, memory: 64 MiB}}, command: [{python}, -S, {program}]}}
  two: {{kind: process, account: all, demand: {{cpu: 0.1, memory: 64 MiB}}, command: [{python}, -S, {program}]}}
"""
MOMENTS = ["ledger.db-wal", "run/lock", "run/children.json", "run/two.out"]  # as they come to be


def apportion(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*APPORTION, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def interrupted(number: int, moment: str, tmp_path: Path, program: Path) -> int:
    """Start a world, send it a signal as soon as that file is there, and give its exit status."""
    world, out = tmp_path / "world.yaml", tmp_path / "out"
    world.write_text(WORLD.format(python=sys.executable, program=program))
    command = [*APPORTION, "up", str(world), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: (out / moment).exists(), 20)
        process.send_signal(number)
        return process.wait(30)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_start_that_is_told_to_end_leaves_nothing_but_a_log_that_verifies(moment: str, tmp_path: Path, program: Path):
    assert interrupted(signal.SIGTERM, moment, tmp_path, program) == 0  # nobody had asked for more rounds
    out = tmp_path / "out"
    assert running(program) == []
    assert not places.state(out).exists()
    told = apportion("verify", out / "ledger.db", "--key", out / "operator.pub")
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("moment", ["run/children.json", "run/two.out"])
def test_a_start_that_is_killed_is_gone_on_with(moment: str, tmp_path: Path, program: Path):
    assert interrupted(signal.SIGKILL, moment, tmp_path, program) == -signal.SIGKILL
    out = tmp_path / "out"
    done = apportion("up", tmp_path / "world.yaml", "--out", out, "--resume", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert running(program) == []
    assert apportion("verify", out / "ledger.db", "--key", out / "operator.pub").returncode == 0
