"""One contract for every executor, and what only real processes can break."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from executors import HOLDERS, allocation, burner, eventually, local, simulated, speed
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.clock import VirtualClock, WallClock
from apportion.core.errors import BadInput
from apportion.core.market import Tasks
from apportion.execution import Executor, machine, places, procfs
from apportion.execution.children import Children
from apportion.execution.crowd import Crowd
from apportion.execution.guardian import release
from apportion.execution.local import LocalExecutor, retire
from apportion.execution.probes import LineReader, PageReader, counter
from apportion.execution.programs import KINDS, Kind, Probe, own, shipped
from apportion.execution.sim import SimExecutor

# ---- the contract ----


@dataclass
class Stage:
    """An executor with two tasks, `busy` and `calm`, and a way to let time pass."""

    executor: Executor
    wait: Callable[[float], None]
    exact: float  # by how much a delivery may miss its grant, relative


@contextmanager
def on_stage(engine: str, folder: Path) -> Iterator[Stage]:
    if engine == "sim":
        clock = VirtualClock()
        with simulated(("busy", "calm"), clock) as executor:
            yield Stage(executor, lambda seconds: clock.sleep_until(clock.now() + seconds), 0.0)
    else:
        with local(engine, folder, burner("busy", want=1.0), burner("calm", want=0.4)) as executor:
            yield Stage(executor, time.sleep, 0.2)


ENGINES = ["sim", "cgroup1", "governor"]


@pytest.mark.parametrize("engine", ENGINES)
def test_grants_are_held_and_felt(engine: str, tmp_path: Path):
    with on_stage(engine, tmp_path) as stage:
        felt = {}
        for cpu in (150, 500):
            stage.executor.grant(allocation({"busy": cpu, "calm": cpu}))
            stage.wait(0.2)  # what was under way before belongs to nobody
            stage.executor.observe()
            stage.executor.grant(allocation({"busy": cpu, "calm": cpu}))
            stage.wait(0.6)
            outcome = stage.executor.observe()
            felt[cpu] = outcome.experience
            got = outcome.delivered[:, 0]
            assert (got <= cpu * (1 + stage.exact)).all(), got
            assert (got >= 0).all()
            assert ((felt[cpu] >= 0) & (felt[cpu] <= 1)).all()
        assert (felt[500] > felt[150]).all(), felt


@pytest.mark.parametrize("engine", ENGINES)
def test_an_outcome_speaks_of_every_pair_and_task(engine: str, tmp_path: Path):
    with on_stage(engine, tmp_path) as stage:
        plan = allocation({"busy": 300, "calm": 200}, pools=(0.75, 0.25))
        stage.executor.grant(plan)
        stage.wait(0.7)
        outcome = stage.executor.observe()
        assert outcome.delivered.shape == (4, 4)
        assert (outcome.delivered >= -1).all()
        assert outcome.enforcer == engine
        assert len(outcome.source) == 4
        assert "unmeasured" not in outcome.source
        assert (outcome.asked > 0).all()
        assert (outcome.in_time <= outcome.asked).all()
        busy = outcome.delivered[:2, 0]  # one task in two pools: pro rata of the grant
        assert busy[0] == pytest.approx(3 * busy[1], abs=4)


@pytest.mark.parametrize("engine", ["sim", *HOLDERS])
def test_observing_again_still_counts_from_the_grant(engine: str, tmp_path: Path):
    with on_stage(engine, tmp_path) as stage:
        stage.executor.grant(allocation({"busy": 300, "calm": 200}))
        stage.wait(0.4)
        first = stage.executor.observe()
        stage.wait(0.4)
        second = stage.executor.observe()
        assert (second.asked >= first.asked).all()
        assert second.asked.sum() > first.asked.sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_misuse_is_told(engine: str, tmp_path: Path):
    with on_stage(engine, tmp_path) as stage:
        with pytest.raises(BadInput, match="before the first grant"):
            stage.executor.observe()
        with pytest.raises(BadInput, match="'stranger'"):
            stage.executor.grant(allocation({"stranger": 100}))
        stage.executor.close()
        stage.executor.close()
        with pytest.raises(BadInput, match="closed"):
            stage.executor.grant(allocation({"busy": 100, "calm": 100}))


# ---- simulation ----


def outcome_of(seed: int, u: float = 0.5) -> bytes:
    clock = VirtualClock()
    with simulated([f"t{i}" for i in range(20)], clock, seed, kind="game") as executor:
        executor.grant(allocation({f"t{i}": 1000 * u for i in range(20)}))
        clock.sleep_until(1.0)
        outcome = executor.observe()
        return outcome.in_time.tobytes() + outcome.delivered.tobytes()


def test_the_same_seed_gives_the_same_bytes():
    assert outcome_of(1) == outcome_of(1)
    assert outcome_of(1) != outcome_of(2)


@pytest.mark.parametrize("kind", KINDS)
@given(u=st.floats(0, 1), v=st.floats(0, 1))
def test_more_is_never_worse(kind: str, u: float, v: float):
    low, high = KINDS[kind].own(np.sort(np.array([u, v])))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_gets_all_it_wants_is_well(kind: str):
    assert KINDS[kind].own(np.ones(1)) == pytest.approx(1.0)


def felt_by(needs: dict[str, tuple[str, ...]], granted: dict[str, float], kinds: dict[str, str]) -> dict[str, float]:
    clock = VirtualClock()
    executor = SimExecutor(kinds, needs, clock, seed=0, noise=False)
    executor.grant(allocation({name: 1000 * u for name, u in granted.items()}))
    clock.sleep_until(1000.0)
    return dict(zip(granted, executor.observe().experience.tolist(), strict=True))


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds of which one leans on the other, so that the arithmetic can be done by hand."""
    monkeypatch.setitem(KINDS, "front", Kind("", "", needs={"back": 0.5}))
    monkeypatch.setitem(KINDS, "back", Kind("", "", needs={"store": 1.0}))
    monkeypatch.setitem(KINDS, "store", Kind("", ""))


@pytest.mark.usefixtures("chain")
def test_starving_a_needed_task_is_felt_along_the_chain():
    kinds = {"f": "front", "b": "back", "s": "store", "alone": "front"}
    felt = felt_by({"f": ("b",), "b": ("s",)}, {"f": 1, "b": 0.8, "s": 0.5, "alone": 1}, kinds)
    assert felt["s"] == pytest.approx(0.5, abs=1e-4)
    assert felt["b"] == pytest.approx(0.8 * 0.5, abs=1e-4)  # own x what the store lets through
    assert felt["f"] == pytest.approx(1 - 0.5 + 0.5 * 0.4, abs=1e-4)
    assert felt["alone"] == 1.0


@given(u=st.floats(0, 1), v=st.floats(0, 1))
def test_a_starving_registry_is_felt_by_the_game_and_the_market_and_by_nobody_else(u: float, v: float):
    """By as much as was measured on the real programs, and never the other way round."""
    kinds = {"shard": "game", "shop": "commerce", "hall": "social", "items": "assets"}
    needs = {"shard": ("items", "hall"), "shop": ("items",)}
    low, high = (felt_by(needs, {"shard": 1, "shop": 1, "hall": 1, "items": part}, kinds) for part in sorted((u, v)))
    resolution = 1e-3  # operations in time over operations asked, as whole numbers
    for task, kind in (("shard", "game"), ("shop", "commerce")):
        strength = KINDS[kind].needs["assets"]
        assert strength > 0.1
        assert low[task] <= high[task] + resolution
        for felt in (low, high):
            assert felt[task] == pytest.approx(1 - strength * (1 - felt["items"]), abs=resolution)
    assert low["hall"] == high["hall"] == 1
    starving = felt_by(needs, {"shard": 0, "shop": 0, "hall": 1, "items": 1}, kinds)
    assert starving["items"] == 1


@pytest.mark.usefixtures("chain")
def test_rounding_down_to_whole_base_units_is_not_felt():
    clock = VirtualClock()
    executor = SimExecutor({"tiny": "store"}, {}, clock, seed=0, noise=False)
    executor.grant(allocation({"tiny": 3 * (1 - 1e-9)}, demand=3))
    clock.sleep_until(1e6)
    outcome = executor.observe()
    assert outcome.delivered[0, 0] == 2
    assert outcome.experience[0] > 0.99


def test_ten_thousand_tasks_are_no_burden():
    names = [f"t{i}" for i in range(10_000)]
    clock = VirtualClock()
    needs = {name: (names[i // 100],) for i, name in enumerate(names) if i >= 100}
    kinds = {name: "assets" if i < 100 else "game" for i, name in enumerate(names)}
    executor = SimExecutor(kinds, needs, clock, seed=0)
    plan = allocation(dict.fromkeys(names, 700.0))
    executor.grant(plan)
    begun = time.perf_counter()
    executor.grant(plan)
    outcome = executor.observe()
    assert len(outcome.experience) == 10_000
    assert time.perf_counter() - begun < 1.0  # some ms; a Python loop over pairs and passes would show


# ---- processes ----


def play(executor: LocalExecutor, plan, seconds: float = 0.4):
    executor.grant(plan)
    time.sleep(seconds)
    return executor.observe()


def test_a_program_that_crashes_is_started_again_later_and_later(tmp_path: Path):
    with local("none", tmp_path, burner("weak", "--crash-after", "0.2", want=0.1)) as executor:
        notes: list[str] = []

        def told(what: str) -> list[str]:
            return [note for note in notes if what in note]

        def seen() -> bool:
            notes.extend(play(executor, allocation({"weak": 100}), 0.05).notes)
            return len(told("exit status 3")) >= 2

        assert eventually(seen, 6)
        assert "burner: as asked" in told("exit status 3")[0]  # the program's own last word
        assert [note.split("in ")[-1] for note in told("exit status 3")] == ["0.5 s", "1.0 s"]
        assert len(told("started again")) == 1


def test_a_program_that_says_nothing_is_measured_and_not_believed(tmp_path: Path):
    with local("none", tmp_path, burner("mute", "--silent", want=0.2)) as executor:
        outcome = play(executor, allocation({"mute": 500}))
        assert outcome.asked[0] == outcome.in_time[0] == -1
        assert np.isnan(outcome.experience[0])
        assert outcome.delivered[0, 0] > 0
        assert outcome.delivered[0, 2] == -1
        assert outcome.source[2] == "unmeasured"


def test_closing_leaves_nothing(tmp_path: Path):
    programs = [burner("kind", "--children", "1"), burner("deaf", "--deaf", want=0.1)]
    with local("auto", tmp_path, *programs) as executor:
        play(executor, allocation({"kind": 100, "deaf": 100}))
        run = executor.run
        pids = [pid for child in executor._children.children.values() for pid in procfs.tree(child.pid)]
        assert len(pids) == 3
        begun = time.monotonic()
        executor.close()
        assert 1.9 < time.monotonic() - begun < 4  # the deaf one had its two seconds
    assert not any(procfs.started(pid) for pid in pids)
    assert not places.state(tmp_path).exists()
    assert not [group for group in machine._ours() if group.name.endswith(run)]


def test_a_command_that_is_not_there_starts_nothing(tmp_path: Path):
    before = set(procfs.tree(os.getpid()))
    with pytest.raises(BadInput, match=r"task 'b': its command '/no/such/program'"):
        LocalExecutor([burner("a"), own("b", ("/no/such/program",))], "none", tmp_path, WallClock())
    assert set(procfs.tree(os.getpid())) <= before
    assert not places.state(tmp_path).exists()


def test_two_controllers_do_not_share_a_folder(tmp_path: Path):
    with local("none", tmp_path, burner("a", want=0.05)), pytest.raises(BadInput, match="another controller"):
        LocalExecutor([burner("a")], "none", tmp_path, WallClock())


def test_shipped_programs_know_their_ports_and_peers_and_keep_them(tmp_path: Path):
    programs = [shipped("shard", "game", 10, ("vault", "mine")), shipped("vault", "assets", 5), burner("mine")]
    children = Children(programs, "r", tmp_path, WallClock())
    argv = {name: children._argv(child) for name, child in children.children.items()}
    vault = argv["vault"][argv["vault"].index("--listen") + 1]
    assert f"assets={vault}" in argv["shard"]
    assert argv["shard"].count("--peer") == 1  # somebody's own program has no port of ours
    assert "--load" not in argv["mine"]
    known = {name: {"port": child.port} for name, child in children.children.items()}
    again = Children(programs, "r", tmp_path, WallClock(), known)
    assert [child.port for child in again.children.values()] == [child.port for child in children.children.values()]
    with pytest.raises(BadInput, match="'opera'"):
        shipped("x", "opera", 1)


def test_release_lifts_limits_for_good_and_closing_still_cleans_up(tmp_path: Path):
    with local("auto", tmp_path, burner("a", want=1.0)) as executor:
        play(executor, allocation({"a": 50}))
        pid = executor._children.children["a"].pid
        assert speed(pid) < 0.15
        assert release(tmp_path) == []
        assert eventually(lambda: speed(pid, 0.2) > 0.1, 5)
        outcome = play(executor, allocation({"a": 50}))
        assert outcome.enforcer == "none"
        assert any("release" in note for note in outcome.notes)
        assert eventually(lambda: speed(pid) > 0.1, 5)  # twice its grant


def test_a_release_that_came_while_grants_were_written_is_obeyed(tmp_path: Path):
    with local("auto", tmp_path, burner("a")) as executor:
        play(executor, allocation({"a": 50}), 0.1)
        places.flag(tmp_path).touch()  # as `release` does first, and then lifts what it finds
        play(executor, allocation({"a": 50}), 0.1)
        assert eventually(lambda: speed(executor._children.children["a"].pid, 0.2) > 0.1, 5)


def test_a_second_run_on_the_machine_is_told_of_the_first(tmp_path: Path):
    with (
        local("cgroup1", tmp_path / "first", burner("a", want=0.05)) as first,
        local("cgroup1", tmp_path / "second", burner("b", want=0.05)) as second,
    ):
        assert any(f"run {first.run}" in note for note in play(second, allocation({"b": 100}), 0.1).notes)


def test_release_of_a_folder_where_nothing_ran_says_so(tmp_path: Path):
    assert "nothing was ever started" in release(tmp_path)[0]


def test_the_user_s_metrics_page_is_a_probe(tmp_path: Path):
    class Page(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            Page.asked += 10
            body = f'ops_total{{shop="a"}} {Page.asked}\nops_total{{shop="b"}} 5\nlate_free {Page.asked * 0.5}\n'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        reader = PageReader(Probe(url, "ops_total", "late_free"), every=0.05)
        assert eventually(lambda: reader.read() == "" and reader.told.asked >= 30, 5)
        reader.close()
        assert reader.told.in_time == reader.told.asked / 2
        wrong = PageReader(Probe(url, "nothing", "late_free"), every=0.05)
        assert eventually(lambda: "no counter 'nothing'" in wrong.read(), 5)
        wrong.close()
    finally:
        server.shutdown()
        server.server_close()


def test_counters_are_summed_over_the_series_that_match():
    page = '# TYPE x counter\nx{a="1",b="2"} 3 1700000000\nx{a="1"} 4\nx{a="2"} 5e0\nxx 9\n'
    assert counter(page, "x") == 12
    assert counter(page, 'x{a="1"}') == 7
    assert np.isnan(counter(page, "y"))
    with pytest.raises(BadInput, match="metric's name"):
        counter(page, "x{{{")


@given(text=st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(repr))
def test_no_line_whatever_breaks_the_reader(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("probe") / "x.out"
    reader = LineReader(path)
    hostile = [
        text,
        "{" + text,
        json.dumps({"asked": text}),
        '{"asked":-1,"in_time":NaN}',
        '{"asked":1e999,"in_time":1}',
    ]
    good = json.dumps({"asked": 4, "in_time": 9, "used": {"bandwidth": 2}})
    path.write_bytes("\n".join([*hostile, good, ""]).encode("utf-8", "replace"))
    assert "cannot be used" in reader.read()
    assert (reader.told.lines, reader.told.asked, reader.told.in_time) == (1, 4, 4)  # never more in time than asked


def test_what_programs_print_does_not_grow_for_ever(tmp_path: Path):
    path = tmp_path / "x.out"
    reader = LineReader(path, rotate=1000)
    line = json.dumps({"asked": 2, "in_time": 1}) + "\n"
    with path.open("a") as program:
        for _ in range(500):
            program.write(line)
            program.flush()
            reader.read()
    assert reader.told.asked == 1000
    assert path.stat().st_size < 1000 + len(line)
    assert path.with_name("x.out.1").stat().st_size < 1000 + len(line)


def test_the_crowd_is_told_once_and_whole(tmp_path: Path):
    def tasks(*surge: float) -> Tasks:
        n, one = len(surge), np.ones((len(surge), 1))
        whole, part = np.zeros(n, np.int64), np.zeros(n)
        names = tuple(["a", "b/c"][:n])
        return Tasks(
            names,
            ("game",) * n,
            whole,
            whole,
            one,
            one,
            np.array(surge),
            part,
            part + 1,
            part + 1,
            whole,
            part,
            ((0,),) * n,
        )

    crowd = Crowd(tmp_path)
    crowd.play(tasks(1.0, 6.0))
    files = [places.of(tmp_path, name, "load") for name in ("a", "b/c")]
    assert [float(file.read_text()) for file in files] == [1.0, 6.0]
    before = files[0].stat().st_ino
    crowd.play(tasks(1.0, 1.5))
    assert files[0].stat().st_ino == before
    assert [float(file.read_text()) for file in files] == [1.0, 1.5]
    assert {file.name for file in places.run(tmp_path).iterdir()} == {"a.load", "b%2Fc.load"}


# ---- a controller that is killed ----


def test_programs_of_a_dead_controller_are_adopted_and_not_started_twice(tmp_path: Path):
    with local("auto", tmp_path, burner("stays", want=0.2), burner("changes", want=0.1)) as executor:
        play(executor, allocation({"stays": 100, "changes": 100}))
        state = places.state(tmp_path).read_text()
        before = {name: child.pid for name, child in executor._children.children.items()}
        # As `kill -9` leaves it: everything runs, nobody was told. (test_guardian.py kills a real one.)
        executor._lock_file.close()
        again = LocalExecutor([burner("stays", want=0.2), burner("changes", want=0.3)], "auto", tmp_path, WallClock())
        try:
            after = {name: child.pid for name, child in again._children.children.items()}
            assert json.loads(state)["run"] == again.run
            assert after["stays"] == before["stays"]
            assert after["changes"] != before["changes"]  # its command changed meanwhile
            assert not procfs.alive(before["changes"], json.loads(state)["children"]["changes"]["start"])
            outcome = play(again, allocation({"stays": 100, "changes": 100}), 0.6)
            assert any("adopted" in note for note in outcome.notes)
            assert (outcome.asked > 0).all()
            os.kill(after["stays"], signal.SIGKILL)
            assert eventually(
                lambda: any("'stays' ended" in n for n in play(again, allocation({"stays": 100})).notes), 3
            )
        finally:
            again.close()
        assert not procfs.started(after["stays"])


def test_what_a_dead_controller_left_can_be_retired(tmp_path: Path):
    with local("auto", tmp_path, burner("left", want=0.1)) as executor:
        pid, run = executor._children.children["left"].pid, executor.run
        with pytest.raises(BadInput, match="another controller"):
            retire(tmp_path)
        executor._lock_file.close()
        assert retire(tmp_path) == ["stopped 'left', left by a controller that died"]
        assert not procfs.started(pid)
        assert not places.state(tmp_path).exists()
        assert run
    assert retire(tmp_path) == []
