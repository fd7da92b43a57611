"""Enforcers: what they promise on this machine, and that cgroup2 speaks to a kernel as kernels want it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from executors import BURNER, HOLDERS, MIB, allocation, burner, eventually, local, offered, speed
from hypothesis import given
from hypothesis import strategies as st
from kernel import Kernel

from apportion.core.clock import WallClock
from apportion.core.errors import BadInput, EnforcerRefused
from apportion.execution import machine, places, procfs
from apportion.execution.cgroup1 import Cgroup1
from apportion.execution.cgroup2 import Cgroup2
from apportion.execution.cgroups import SPARE_KIB, Ceilings, mounts
from apportion.execution.choosing import choose, table
from apportion.execution.enforcers import LONGEST_US, SLICE_US, Enforcer, NoEnforcer, Usage, turns
from apportion.execution.governor import Governor
from apportion.execution.local import LocalExecutor


@contextmanager
def burning(*arguments: str) -> Iterator[int]:
    """Run a program that wants all it can get."""
    process = subprocess.Popen([sys.executable, "-S", BURNER, "--silent", *arguments], start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def enforced(name: str, folder: Path) -> Iterator[Enforcer]:
    enforcer, _ = choose(offered(name), f"test-{os.getpid()}", folder)
    try:
        yield enforcer
    finally:
        enforcer.close()
        machine.clean(f"test-{os.getpid()}")


# ---- arithmetic ----


@given(cpu=st.integers(1, 256_000))
def test_turns_are_the_grant_and_the_kernel_takes_them(cpu: int):
    turn, period = turns(cpu)
    assert turn >= SLICE_US
    assert period <= LONGEST_US
    assert turn / period == pytest.approx(cpu / 1000, rel=0.001, abs=1e-9)


def test_a_grant_of_nothing_leaves_a_thousandth():
    assert turns(0) == (1000, 1_000_000)


@given(steps=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), max_size=12))
def test_memory_limits_never_fall_below_use_and_never_rise_above_the_grant(steps: list[tuple[int, int]]):
    """steps: what is granted and what the program holds then, in MiB."""
    ceilings, limit = Ceilings(), -1
    for grant, held in ((g * MIB, h * MIB) for g, h in steps):
        before, (new, note) = limit, ceilings.follow("t", grant, lambda held=held: held)
        limit = before if new is None else new
        assert limit >= grant
        assert limit <= max(grant, held + SPARE_KIB) or limit <= before
        assert limit <= before or grant > before or before < 0  # who grows is not followed up
        if limit > grant and 0 <= before <= grant:
            assert "stays at" in note


# ---- on this machine ----


@pytest.mark.parametrize("name", ["cgroup2", "cgroup1", "governor"])
def test_a_busy_program_gets_what_it_was_granted_and_new_grants_at_once(name: str, tmp_path: Path):
    with enforced(name, tmp_path) as enforcer, burning() as pid:
        enforcer.attach("busy", pid)
        for cpu in (300, 60):
            assert enforcer.limit("busy", cpu, -1, cpu) == ""
            time.sleep(0.1)
            before, begun = enforcer.usage("busy").cpu, time.monotonic()
            time.sleep(0.6)
            got = (enforcer.usage("busy").cpu - before) / 1e6 / (time.monotonic() - begun)
            assert got <= cpu * 1.2, f"granted {cpu}, got {got:.0f}"
            assert got >= cpu * 0.3, f"granted {cpu}, got {got:.0f}"  # others test at the same time
        enforcer.lift()
        assert eventually(lambda: speed(pid, 0.2) > 0.1, 5)  # more than it was held to


@pytest.mark.parametrize("name", HOLDERS)
def test_children_of_a_program_share_its_grant(name: str, tmp_path: Path):
    with enforced(name, tmp_path) as enforcer, burning("--children", "2") as pid:
        assert eventually(lambda: len(procfs.tree(pid)) == 3, 2)
        enforcer.attach("family", pid)
        enforcer.limit("family", 150, -1, 150)
        time.sleep(0.4)  # newcomers may run unseen for a moment, and then owe it
        assert speed(pid, 0.5) < 0.15 * 1.5
        before = enforcer.usage("family").cpu
        time.sleep(0.3)
        assert enforcer.usage("family").cpu > before


@pytest.mark.parametrize("name", ["cgroup1", "governor", "none"])
def test_totals_only_grow_also_over_a_restart(name: str, tmp_path: Path):
    with enforced(name, tmp_path) as enforcer:
        seen = []
        for _ in range(2):
            with burning() as pid:
                enforcer.attach("t", pid)
                for _ in range(3):
                    time.sleep(0.05)
                    seen.append(enforcer.usage("t").cpu)
            seen.append(enforcer.usage("t").cpu)
        assert seen == sorted(seen)
        assert seen[-1] > seen[0]


def test_cgroup1_limits_memory_but_never_below_use(tmp_path: Path):
    with enforced("cgroup1", tmp_path) as enforcer, burning("--grow", "64", "--after", "0.5", "--want", "0.05") as pid:
        enforcer.attach("big", pid)  # before it grows: memory is charged where it is first touched
        assert eventually(lambda: enforcer.usage("big").memory > 60 * MIB, 8)
        assert "stays at" in enforcer.limit("big", 500, 16 * MIB, 500)
        time.sleep(0.2)
        assert procfs.started(pid)
        assert enforcer.limit("big", 500, 16 * MIB, 500) == ""  # once is enough


def test_cgroup1_kills_who_outgrows_its_memory_and_says_why(tmp_path: Path):
    offered("cgroup1")
    with local("cgroup1", tmp_path, burner("greedy", "--grow", "512", want=0.05)) as executor:
        notes: list[str] = []

        def told() -> bool:
            executor.grant(allocation({"greedy": 500}, memory=48 * MIB * 2))
            time.sleep(0.1)
            notes.extend(executor.observe().notes)
            return any("more memory than its limit" in note for note in notes)

        assert eventually(told, 6), notes


def test_a_program_that_ends_as_it_is_taken_in_is_no_refusal(tmp_path: Path):
    """The kernel moves no process that is on its way out; the more memory it gives back, the longer that takes."""
    large = "held = b'x' * (256 << 20); print(flush=True); input()"
    with enforced("cgroup1", tmp_path) as enforcer:
        for _ in range(5):
            command = [sys.executable, "-S", "-c", large]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
                assert program.stdout
                program.stdout.readline()
                program.kill()
                while not procfs.ending(program.pid):
                    pass
                enforcer.attach("t", program.pid)


def test_cgroup1_gives_the_controller_a_turn_of_its_own_and_takes_it_back(tmp_path: Path):
    with enforced("cgroup1", tmp_path) as enforcer:
        home = mounts()["cpu"]
        enforcer.host(os.getpid())
        assert f"/{places.PREFIX}test-{os.getpid()}/{places.CONTROLLER}" in Path("/proc/self/cgroup").read_text()
        assert mounts()["cpu"] == home  # a second run stands beside the first, not inside it
        enforcer.close()
        assert places.PREFIX not in Path("/proc/self/cgroup").read_text()


def test_a_governor_that_is_killed_leaves_nobody_standing(tmp_path: Path):
    with enforced("governor", tmp_path) as enforcer, burning() as pid:
        assert isinstance(enforcer, Governor)
        enforcer.attach("t", pid)
        enforcer.limit("t", 30, -1, 30)
        assert eventually(lambda: procfs.stopped(pid), 3)
        os.kill(enforcer._process.pid, signal.SIGTERM)
        assert eventually(lambda: not procfs.stopped(pid) and speed(pid, 0.2) > 0.06, 5)
        assert "started again" in enforcer.limit("t", 30, -1, 30)
        assert eventually(lambda: procfs.stopped(pid), 3)


def test_clean_takes_dead_runs_and_leaves_the_living(tmp_path: Path):
    offered("cgroup1")
    dead, living = Cgroup1(f"dead-{os.getpid()}"), Cgroup1(f"living-{os.getpid()}")
    try:
        living.host(os.getpid())  # it lives in the hierarchy of cpu alone
        gone = machine.clean()
        assert f"dead-{os.getpid()}" in gone
        assert f"living-{os.getpid()}" not in gone
        assert len([group for group in machine._ours() if group.name.endswith(f"living-{os.getpid()}")]) == 3
    finally:
        dead.close()
        living.close()
    assert not [group for group in machine._ours() if group.name.endswith(f"-{os.getpid()}")]


def test_the_machine_promises_no_more_than_it_has():
    capacity = machine.capacity()
    assert 0 < capacity["cpu"] < len(os.sched_getaffinity(0)) * 1000
    assert 0 < capacity["memory"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    assert machine.capacity() == capacity


def test_pools_that_promise_more_than_there_is_are_told_of():
    has = {"cpu": 1900, "memory": 8 * 1024 * MIB, "bandwidth": 1, "storage": 1}
    assert machine.oversold(has, has) == []
    assert machine.oversold({"gpu": 9000, "bandwidth": 9}, has) == []
    assert machine.oversold({"cpu": 3800, "memory": 4 * 1024 * MIB}, has) == [
        "pools sum to 3.8 cores of cpu, this machine has 1.9 cores to give: deliveries will fall short"
    ]
    assert len(machine.oversold({"cpu": 1901, "memory": 9 * 1024 * MIB}, has)) == 2


def test_capacity_honours_the_groups_around_us(tmp_path: Path):
    groups = tmp_path / "cpu" / "outer" / "inner"
    groups.mkdir(parents=True)
    for group, quota in ((groups, -1), (groups.parent, 50_000), (groups.parent.parent, -1)):
        for name, value in (("cgroup.procs", ""), ("cpu.cfs_quota_us", quota), ("cpu.cfs_period_us", 100_000)):
            (group / name).write_text(str(value))
    proc = tmp_path / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("4:cpu,cpuacct:/outer/inner\n")
    (proc / "mountinfo").write_text(f"30 20 0:1 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 4096 kB\n")
    assert machine.capacity(tmp_path)["cpu"] == 400  # half a core, less what is kept for the controller
    assert machine.capacity(tmp_path)["memory"] == 4096


# ---- choosing ----


def test_the_first_that_works_is_taken_and_why_others_are_not_is_told(tmp_path: Path):
    def refuses(run: str, folder: Path) -> Enforcer:
        raise EnforcerRefused("strong: the machine says no.")

    enforcer, why = choose("auto", "r", tmp_path, {"strong": refuses, "none": lambda run, folder: NoEnforcer()})
    assert enforcer.name == "none"
    assert why == ["strong: the machine says no."]
    with pytest.raises(EnforcerRefused, match=r"says no\. Choose another"):
        choose("strong", "r", tmp_path, {"strong": refuses})
    with pytest.raises(BadInput, match=r"'iron' is unknown\. Choose one of auto, cgroup2, cgroup1, governor, none"):
        choose("iron", "r", tmp_path)


def test_one_that_holds_nobody_is_not_believed(tmp_path: Path):
    class Boaster(NoEnforcer):
        name = "boaster"

        def usage(self, task: str, memory: bool = True) -> Usage:
            return Usage(time.monotonic_ns(), 0, 0)  # a whole core, whatever it was granted

    with pytest.raises(EnforcerRefused, match="granted 50 milli-cores got"):
        choose("boaster", "r", tmp_path, {"boaster": lambda run, folder: Boaster()})


def test_the_tree_without_controllers_is_seen_for_what_it_is(tmp_path: Path):
    Kernel(tmp_path, controllers="hugetlb")
    with pytest.raises(EnforcerRefused, match=r"no controller cpu, memory \(offers: hugetlb\)"):
        Cgroup2("r", tmp_path)


# ---- cgroup2 against a simulated kernel ----


def test_cgroup2_writes_what_the_kernel_takes(tmp_path: Path):
    kernel = Kernel(tmp_path)
    enforcer = Cgroup2("r", tmp_path, kernel)
    enforcer.attach("a/b", os.getpid())
    group = tmp_path / "apportion.r" / "a%2Fb"
    assert enforcer.limit("a/b", 300, 64 * MIB, 300) == ""
    assert (group / "cpu.max").read_text() == "7500 25000\n"
    assert (group / "cpu.weight").read_text() == "300\n"
    assert (group / "memory.max").read_text() == f"{64 * 2**20}\n"
    assert (tmp_path / "apportion.r" / "cpu.weight").read_text() == "10000\n"
    enforcer.limit("a/b", 8, -1, 8)
    assert (group / "cpu.max").read_text() == "1000 125000\n"  # the shortest turn, less often
    (group / "cpu.stat").write_text("usage_usec 1500\n")
    (group / "memory.current").write_text(str(9 * 2**20))
    (group / "memory.stat").write_text(f"inactive_file {2**20}\n")
    assert enforcer.usage("a/b").cpu == 1_500_000
    assert enforcer.usage("a/b").memory == 8 * MIB
    enforcer.lift()
    assert (group / "cpu.max").read_text().split()[0] == "max"
    assert (group / "memory.max").read_text().split() == ["max"]
    enforcer.close()
    enforcer.close()
    assert not (tmp_path / "apportion.r").exists()
    assert (tmp_path / "cgroup.procs").read_text().split() == [str(os.getpid())]  # handed back, not lost


def test_cgroup2_never_gets_a_program_killed_by_a_falling_grant(tmp_path: Path):
    kernel = Kernel(tmp_path)
    enforcer = Cgroup2("r", tmp_path, kernel)
    enforcer.attach("t", os.getpid())
    current = tmp_path / "apportion.r" / "t" / "memory.current"
    for held, grant in ((100, 200), (100, 50), (30, 50), (30, 10), (10, 10)):
        current.write_text(str(held * 2**20))
        enforcer.limit("t", 100, grant * MIB, 100)
    assert kernel.killed == []
    assert int((current.parent / "memory.max").read_text()) == 18 * 2**20
    enforcer.close()


def test_cgroup2_settles_where_it_is_let(tmp_path: Path):
    """Under systemd we are in a leaf with processes: ours then stand beside it, below the slice."""
    kernel = Kernel(tmp_path)
    kernel.write(tmp_path / "cgroup.subtree_control", "+cpu +memory")
    scope = tmp_path / "user.slice" / "shell.scope"
    kernel.make(scope.parent)
    kernel.write(scope.parent / "cgroup.subtree_control", "+cpu +memory")
    kernel.make(scope)
    kernel.write(scope / "cgroup.procs", str(os.getpid()))
    enforcer = Cgroup2("r", scope, kernel)
    enforcer.host(os.getpid())
    assert (tmp_path / "user.slice/apportion.r" / places.CONTROLLER / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    enforcer.close()
    assert (scope / "cgroup.procs").read_text() == f"{os.getpid()}\n"  # home again
    assert not (scope.parent / "apportion.r").exists()


@pytest.mark.parametrize("file", ["cpu.max", "cpu.weight", "memory.max", "cgroup.procs", "cgroup.subtree_control"])
def test_a_refused_write_names_the_file_and_the_next_enforcer_is_taken(file: str, tmp_path: Path):
    kernel = Kernel(tmp_path)
    kernel.broken[file] = errno.EACCES
    offers = {"cgroup2": lambda run, folder: Cgroup2(run, tmp_path, kernel), "none": lambda run, folder: NoEnforcer()}
    enforcer, why = choose("auto", "r", tmp_path, offers)
    assert enforcer.name == "none"
    assert re.search(rf"{file}|move process|does not let us", why[0])
    assert "Permission denied" in why[0]
    assert not (tmp_path / "apportion.r").exists()


def test_a_refusal_in_the_middle_of_a_run_hands_over_to_the_next(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    kernel = Kernel(tmp_path / "tree")
    offers = {"cgroup2": lambda run, folder: Cgroup2(run, tmp_path / "tree", kernel)} | {
        name: offer for name, offer in table().items() if name == "governor"
    }
    offered("governor")
    executor = LocalExecutor([burner("t")], "auto", tmp_path, WallClock(), offers)
    try:
        executor.grant(allocation({"t": 100}))
        assert executor.enforcer == "cgroup2"
        kernel.broken["cpu.max"] = errno.EIO
        executor.grant(allocation({"t": 60}))
        time.sleep(0.3)
        outcome = executor.observe()
        assert outcome.enforcer == "governor"
        assert any(
            "cgroup2 refused cpu.max = 1500 25000 of 't'" in n and "governor enforces" in n for n in outcome.notes
        )
        assert json.loads(places.state(tmp_path).read_text())["enforcer"] == "governor"
        executor.grant(allocation({"t": 60}))
        time.sleep(0.5)
        assert 0 < executor.observe().delivered[0, 0] < 120
    finally:
        executor.close()


class Stubborn(Kernel):
    """Takes everybody in but one task."""

    def write(self, path: Path | str, value: str) -> None:
        if Path(path).parent.name == "two":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(path, value)


def test_a_refusal_in_the_middle_of_a_start_hands_over_too_also_those_that_run_already(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    kernel = Stubborn(tmp_path / "tree")
    offers = {name: offer for name, offer in table().items() if name == "none"}
    offers = {"cgroup2": lambda run, folder: Cgroup2(run, tmp_path / "tree", kernel)} | offers
    programs = [burner(name, want=0.1) for name in ("one", "two", "three")]
    executor = LocalExecutor(programs, "auto", tmp_path, WallClock(), offers)
    try:
        assert executor.enforcer == "none"
        assert any("cgroup2 could not move process" in note and "none enforces" in note for note in executor.greeting)
        executor.grant(allocation({"one": 100, "two": 100, "three": 100}))
        time.sleep(0.3)
        assert (executor.observe().delivered[:, 0] > 0).all()
    finally:
        executor.close()


def test_a_program_that_has_ended_is_in_nobody_s_way_when_another_enforcer_takes_over(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    kernel = Kernel(tmp_path / "tree")
    offers = {name: offer for name, offer in table().items() if name == "none"}
    offers = {"cgroup2": lambda run, folder: Cgroup2(run, tmp_path / "tree", kernel)} | offers
    executor = LocalExecutor(
        [burner("lives", want=0.1), burner("ends", "--crash-after", "0.1")], "auto", tmp_path, WallClock(), offers
    )
    try:
        plan = allocation({"lives": 100, "ends": 100})
        executor.grant(plan)
        pid = executor._children.children["ends"].pid
        assert eventually(lambda: not procfs.started(pid), 5)
        for group in (tmp_path / "tree").glob("apportion.*/ends"):
            (group / "cgroup.procs").write_text("")  # as a kernel does when a process ends
        executor.observe()
        kernel.broken["cpu.max"] = errno.EIO
        executor.grant(allocation({"lives": 60, "ends": 60}))
        assert executor.enforcer == "none"
        outcome = executor.observe()
        assert outcome.delivered[1, 0] == 0
        executor.grant(plan)
        time.sleep(0.3)
        assert executor.observe().delivered[0, 0] > 0
    finally:
        executor.close()


def test_a_refusal_of_the_enforcer_that_was_asked_for_is_an_error(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    kernel = Kernel(tmp_path / "tree")
    offers = {"cgroup2": lambda run, folder: Cgroup2(run, tmp_path / "tree", kernel)}
    executor = LocalExecutor([burner("t")], "cgroup2", tmp_path, WallClock(), offers)
    try:
        kernel.broken["cpu.max"] = errno.EIO
        with pytest.raises(EnforcerRefused, match=r"cpu\.max"):
            executor.grant(allocation({"t": 60}))
    finally:
        executor.close()
    assert not list((tmp_path / "tree").glob("apportion*"))
