"""The shipped programs are real: they need their CPU and each other, and nobody's input ends them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from shipped import KINDS, Caller, Running, free_port, linux, running

from apportion.workloads.net import MAX_LINE

CALM = 0.15  # of its time, that a program may have to wait for a core in what passes for a fair trial


# --- one scene, played once: full CPU, then a third of it (and a registry that stands still), then full CPU again ------


@dataclass
class Scene:
    """What was played, and when."""

    city: dict[str, Running]  # at ordinary size, alone, on a third of their CPU in the second act
    village: dict[str, Running]  # small, together; the registry stands still in the second act
    load: Path  # the village's load file
    acts: tuple[tuple[float, float], ...]
    delay: float  # part of its time that some program waited for a core in the first and the third act

    def must_be_fair(self) -> None:
        """Skip where the neighbours took so much that it would be them who are measured."""
        if self.delay >= CALM:
            pytest.skip(f"busy: a program spent {self.delay:.0%} of its time waiting for a core, which others had")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    load = tmp_path_factory.mktemp("scene") / "load"
    load.write_text("1")
    with contextlib.ExitStack() as at_end:

        def start(kind: str, size: int, **peers: int) -> Running:
            more = ("--load", str(load)) if size != KINDS[kind].ordinary else ()
            return at_end.enter_context(running(kind, size, *more, peers=peers))

        city = {kind: start(kind, program.ordinary) for kind, program in KINDS.items()}
        registry, hall = start("assets", 8), start("social", 24)
        village = {
            "assets": registry,
            "social": hall,
            "commerce": start("commerce", 20, assets=registry.port),
            "game": start("game", 24, assets=registry.port, social=hall.port),
        }
        everyone = [*city.values(), *village.values()]
        for program in everyone:
            program.wait_for_lines(2)
        acts, delay = [], 1.0
        for _ in range(3):  # on a busy machine, wait for a better moment
            acts, delay = [], 0.0
            for starve in (False, True, False):
                for program in city.values():
                    wanted = [line["wanted"]["cpu"] for _, line in program.said]
                    program.cores = sorted(wanted)[len(wanted) // 2] / 3 if starve else None
                registry.child.send_signal(signal.SIGSTOP if starve else signal.SIGCONT)
                time.sleep(1.3)  # to settle in
                start_of_act, queued = time.monotonic(), [program.queued() for program in everyone]
                time.sleep(2.1)
                acts.append((start_of_act, time.monotonic()))
                if not starve:
                    queued = [program.queued() - before for program, before in zip(everyone, queued, strict=True)]
                    delay = max(delay, max(queued) / (acts[-1][1] - start_of_act))
            if delay < CALM:
                break
        yield Scene(city, village, load, tuple(acts), delay)


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_line_says_what_it_should(scene: Scene, kind: str):
    lines = [line for _, line in scene.city[kind].said]
    assert len(lines) >= 8
    for line in lines:
        assert line.keys() == {"t", "asked", "in_time", "wanted", "used", "metrics"}
        assert line["wanted"].keys() == {"cpu", "memory", "bandwidth", "storage"}
        assert line["used"].keys() == {"bandwidth", "storage"}
        assert isinstance(line["asked"], int)
        assert 0 <= line["in_time"] <= line["asked"]
        assert min([*line["wanted"].values(), *line["used"].values()]) >= 0
        assert 0 < line["wanted"]["memory"] < 80 / 1024
    assert all(0.4 < later["t"] - earlier["t"] < 3 for earlier, later in itertools.pairwise(lines))


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_experience_falls_with_the_cpu_and_is_back_with_it(scene: Scene, kind: str):
    scene.must_be_fair()
    full, third, again = (scene.city[kind].experience(*act) for act in scene.acts)
    assert third < 0.8 * full
    assert again > third + 0.5 * (full - third)


@linux
@pytest.mark.parametrize("kind", ["commerce", "game"])
def test_a_starved_registry_is_felt_by_whom_it_serves(scene: Scene, kind: str):
    scene.must_be_fair()
    full, starved, again = (scene.village[kind].experience(*act) for act in scene.acts)
    assert starved < full - 0.15
    assert again > starved + 0.5 * (full - starved)


@linux
def test_programs_say_that_they_want_what_they_are_denied(scene: Scene):
    """Held to a third, a program still wants more than it gets."""
    scene.must_be_fair()
    for program in scene.city.values():
        full, starved = (program.between(*act) for act in scene.acts[:2])
        wanted = min(line["wanted"]["cpu"] for line in starved)
        assert wanted > 1.2 / 3 * sorted(line["wanted"]["cpu"] for line in full)[0]


@linux
def test_coins_and_items_are_conserved_while_the_registry_comes_and_goes(scene: Scene):
    for program in (scene.city["commerce"], scene.village["commerce"]):
        lines = program.between(scene.acts[0][0], scene.acts[-1][1])
        held = {(line["metrics"]["coins"], line["metrics"]["items"]) for line in lines}
        assert len(held) == 1  # and the program ends itself when its own count is wrong
    items = [line["metrics"]["items"] for line in scene.city["assets"].between(*scene.acts[-1])]
    assert set(items) == {6 * 40}


@linux
def test_a_load_of_six_is_felt_in_a_second_and_a_half(scene: Scene):
    def asked_per_second(program: Running) -> float:
        (_, earlier), (_, later) = program.said[-2:]
        return later["asked"] / (later["t"] - earlier["t"])

    before = {kind: asked_per_second(program) for kind, program in scene.village.items()}
    scene.load.write_text("6")
    time.sleep(1.5)
    for program, count in [(program, len(program.said) + 1) for program in scene.village.values()]:
        program.wait_for_lines(count)
    after = {kind: asked_per_second(program) for kind, program in scene.village.items()}
    assert all(after[kind] > 2 * before[kind] for kind in KINDS), (before, after)


# --- readers and strangers --------------------------------------------------------------------------------------


RUBBISH = (
    b"\x00\xff\xfe\n",
    b"{\n",
    b"[1, 2]\n",
    b'"word"\n',
    b"[" * 100_000 + b"\n",
    b"{}\n",
    b'{"op": null, "id": 1}\n',
    b'{"op": ["put"], "id": {"a": []}}\n',
    b'{"op": "put", "item": "\\ud800", "owner": "x", "data": "AAAA", "id": 1}\n',
    b'{"op": "put", "item": "x", "owner": "x", "data": "not base64!", "id": 2}\n',
    b'{"op": "move", "moves": [[1, 2, 3], 4], "due": NaN, "id": 3}\n',
    b'{"op": "mint", "owners": [], "data": 7, "due": -1e999, "id": 4}\n',
    b'{"op": "join", "member": 3, "feeds": 17}\n',
    b'{"op": "post", "member": "x", "feed": {}, "text": 1e999, "id": 5}\n',
    b'{"op": "order", "trader": "nobody", "side": "buy", "goods": [], "limit": true, "count": -1, "tag": 0, "id": 6}\n',
    b'{"op": "enter", "trader": "", "key": null, "id": 7}\n',
    b'{"op": "look", "player": "99999999999999999999999", "id": 8}\n',
)


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_on_a_socket_ends_nobody(scene: Scene, kind: str):
    program = scene.village[kind]
    question = {
        "game": {"op": "state"},
        "social": {"op": "post", "member": "me", "feed": "@me", "text": "still there?"},
        "commerce": {"op": "depth", "goods": "ore"},
        "assets": {"op": "get", "item": "nothing"},
    }[kind]
    for rubbish in RUBBISH:
        with Caller(program.port) as stranger:
            stranger.socket.sendall(rubbish)
            assert stranger.ask(**question)["ok"], rubbish[:50]
    with Caller(program.port) as stranger, contextlib.suppress(ConnectionError):
        stranger.socket.sendall(b"x" * (MAX_LINE + 10))  # never a line end: it is cut off
        assert b"longer" in stranger.lines.readline()
    assert program.child.poll() is None


@linux
def test_sigterm_ends_every_program_within_a_second(scene: Scene):
    """The last of the scene: after this nobody is left."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
    busy = max(1.0, (time.monotonic() - started) / 0.3)  # a machine on which this takes longer ends programs later
    for program in (*scene.city.values(), *scene.village.values()):
        assert program.end() < busy, program.kind
        assert program.child.returncode == 0, program.kind


def test_whoever_reads_the_probe_may_go_away():
    """A closed pipe, as when the controller has died: the program serves on."""
    command = [sys.executable, "-m", "apportion.workloads.social", "--size", "5", "--seconds", "1.8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline()
        child.stdout.close()
        child.wait(10)
        assert child.stderr
        assert (child.returncode, child.stderr.read()) == (0, b"")


def test_a_peer_that_is_not_there_costs_experience_and_nothing_else():
    with running("commerce", 10, peers={"assets": free_port()}) as program:
        program.wait_for_lines(2)
        assert program.experience(program.started, time.monotonic()) < 0.9
        assert program.child.poll() is None


@pytest.mark.parametrize(
    ("flag", "value"), [("--listen", "nowhere"), ("--peer", "assets"), ("--size", "0"), ("--data", __file__)]
)
def test_a_wrong_flag_is_told_in_one_line(flag: str, value: str):
    done = subprocess.run(
        [sys.executable, "-m", "apportion.workloads.assets", flag, value], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert value in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_nothing_is_left_behind(tmp_path: Path):
    """Without --data a program keeps its files in a temporary folder and takes it away."""
    command = [sys.executable, "-m", "apportion.workloads.assets", "--size", "3", "--seconds", "0.3"]
    subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, check=True, timeout=20)
    assert list(tmp_path.iterdir()) == []
