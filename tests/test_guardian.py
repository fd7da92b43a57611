"""When the controller dies, programs run on, unthrottled within two seconds; and nothing is left that should not be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from executors import HOLDERS, allocation, burner, eventually, offered, speed

from apportion.core.clock import WallClock
from apportion.execution import guardian, machine, places, procfs
from apportion.execution.guardian import Guardian
from apportion.execution.local import LocalExecutor, retire

HERE = Path(__file__).parent
PROMISED = 2.0  # seconds from the controller's death to programs without limits


@contextmanager
def controlled(enforcer: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int], int]]:
    """Run a controller of two programs held to 40 milli-cores each; give it, its programs and its guardian."""
    controller = subprocess.Popen(
        [sys.executable, str(HERE / "controller.py"), offered(enforcer), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a foreground group of its own, to press Ctrl-C in
    )
    assert controller.stdout is not None
    try:
        for _ in range(3):
            assert controller.stdout.readline() == "granted\n"
        children = json.loads(places.state(folder).read_text())["children"]
        watcher = [pid for pid in procfs.tree(controller.pid) if b"guardian" in command(pid)]
        assert len(watcher) == 1
        yield controller, {name: child["pid"] for name, child in children.items()}, watcher[0]
    finally:
        controller.kill()
        controller.communicate()
        retire(folder)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def runs_free(pid: int) -> bool:
    """Nobody stops it, no group limits it."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        quota = Path("/sys/fs/cgroup/cpu", path.lstrip("/"), "cpu.cfs_quota_us")
        if controllers == "cpu" and quota.exists() and quota.read_text().strip() != "-1":
            return False
    return not any(procfs.stopped(each) for each in procfs.tree(pid))


@pytest.mark.parametrize("enforcer", HOLDERS)
def test_after_kill_9_programs_run_on_unthrottled_and_can_be_adopted(enforcer: str, tmp_path: Path):
    with controlled(enforcer, tmp_path) as (controller, programs, watcher):
        assert eventually(lambda: all(speed(pid, 0.2) < 0.1 for pid in programs.values()), 4)
        os.killpg(controller.pid, signal.SIGKILL)
        killed = time.monotonic()
        controller.wait()

        def free() -> bool:
            """For a while: between two turns a held program is not stopped either."""
            looks = [all(map(runs_free, programs.values())) for _ in range(20) if not time.sleep(0.01)]
            return all(looks)

        assert eventually(free, PROMISED)
        assert time.monotonic() - killed < PROMISED + 0.2  # the looks themselves take so long
        assert eventually(lambda: not procfs.started(watcher), 3)  # its work is done
        assert free()

        again = LocalExecutor([burner("one"), burner("two", "--children", "1")], enforcer, tmp_path, WallClock())
        try:
            assert {name: child.pid for name, child in again._children.children.items()} == programs
            again.grant(allocation({"one": 40, "two": 40}))
            time.sleep(1.0)  # the old guardian, were it there, would undo this
            assert eventually(lambda: all(speed(pid, 0.3) < 0.1 for pid in programs.values()), 3)
        finally:
            again.close()
        assert not any(procfs.started(pid) for pid in programs.values())
        assert not [group for group in machine._ours() if group.name.endswith(again.run)]


def test_two_faults_at_once_leave_limits_that_release_lifts(tmp_path: Path):
    with controlled("cgroup1", tmp_path) as (controller, programs, watcher):
        os.kill(watcher, signal.SIGKILL)
        os.killpg(controller.pid, signal.SIGKILL)
        controller.wait()
        time.sleep(0.5)
        assert not any(map(runs_free, programs.values()))
        run = json.loads(places.state(tmp_path).read_text())["run"]
        assert run not in machine.clean(run)  # programs live in it
        assert not any(map(runs_free, programs.values()))
        assert guardian.release(tmp_path) == []
        assert all(map(runs_free, programs.values()))


@pytest.mark.parametrize("enforcer", HOLDERS)
def test_ctrl_c_stops_every_program_and_the_guardian_stays_out_of_it(enforcer: str, tmp_path: Path):
    with controlled(enforcer, tmp_path) as (controller, programs, watcher):
        run = json.loads(places.state(tmp_path).read_text())["run"]
        everyone = [each for pid in programs.values() for each in procfs.tree(pid)]
        assert os.getpgid(watcher) != os.getpgid(controller.pid)  # Ctrl-C does not reach it
        assert not [fd for fd in os.listdir(f"/proc/{watcher}/fd") if "tty" in os.readlink(f"/proc/{watcher}/fd/{fd}")]
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.wait(30) == 0
        assert not any(procfs.started(pid) for pid in everyone)
        assert not procfs.started(watcher)
        assert not places.state(tmp_path).exists()
        assert not [group for group in machine._ours() if group.name.endswith(run)]


def test_the_guardian_is_small(tmp_path: Path):
    places.run(tmp_path).mkdir()
    watcher = Guardian(tmp_path)
    try:
        pid = watcher._process.pid
        assert eventually(lambda: b"guardian" in command(pid) and "poll" in waits_in(pid), 5)
        assert procfs.resident(pid) < 20 * 1024
        assert set(os.listdir(f"/proc/{pid}/fd")) <= {"0", "1", "2", "3"}  # pipe, nowhere, nowhere, its controller
    finally:
        watcher.dismiss()
    assert watcher._process.returncode == 0


def waits_in(pid: int) -> str:
    return Path(f"/proc/{pid}/wchan").read_text()


def test_a_fork_that_keeps_the_pipe_open_does_not_fool_the_guardian(tmp_path: Path):
    places.run(tmp_path).mkdir()
    script = (
        "import os, sys, time; from pathlib import Path; from apportion.execution.guardian import Guardian\n"
        "w = Guardian(Path(sys.argv[1])); keeper = os.fork()\n"
        "if not keeper: os.close(1); time.sleep(30); os._exit(0)\n"
        "print(w._process.pid, keeper, flush=True); input(); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdin is not None
        assert controller.stdout is not None
        watcher, keeper = map(int, controller.stdout.readline().split())
        assert eventually(lambda: b"guardian" in command(watcher) and "poll" in waits_in(watcher), 5)
        controller.stdin.write("\n")
    try:
        assert eventually(lambda: not procfs.started(watcher), 3)
    finally:
        os.kill(keeper, signal.SIGKILL)


def test_a_guardian_that_is_killed_is_replaced(tmp_path: Path):
    executor = LocalExecutor([burner("a", want=0.1)], "none", tmp_path, WallClock())
    try:
        os.kill(executor._guardian._process.pid, signal.SIGKILL)
        assert eventually(lambda: not executor._guardian.alive, 2)
        executor.grant(allocation({"a": 100}))
        assert any("guardian" in note for note in executor.observe().notes)
        assert executor._guardian.alive
    finally:
        executor.close()


def test_lifting_touches_only_the_run_of_the_controller_that_died(tmp_path: Path):
    group = tmp_path / "apportion.ab" / "x"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("1000 25000")
    places.run(tmp_path).mkdir()
    state = {"run": "ab", "controller": 111, "groups": [str(group)], "runs": [], "children": {}}
    places.state(tmp_path).write_text(json.dumps(state))
    assert guardian.lift(tmp_path, controller=222) == []  # another controller has taken over
    assert (group / "cpu.max").read_text() == "1000 25000"
    assert guardian.lift(tmp_path, controller=111) == []
    assert (group / "cpu.max").read_text() == "max"


def test_the_weight_is_given_back(tmp_path: Path):
    run = tmp_path / "apportion.r"
    for name in (places.CONTROLLER, "a", "b"):
        (run / name).mkdir(parents=True)
    (run / "cpu.shares").write_text("65536")
    assert guardian.open_up([run / "a", run / "b"], [run]) == []
    assert (run / "cpu.shares").read_text() == "2048"  # two programs, as if each stood alone
