"""The shipped programs are real: they need their CPU and each other, lose nothing, and nobody's input ends them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.workloads.arena import SEEN, TOLD, TOUCH, VIEW, Arena, Entity
from apportion.workloads.assets import Assets, Store
from apportion.workloads.commerce import GOODS, Commerce, signature
from apportion.workloads.game import Game
from apportion.workloads.load import Backlog, Window
from apportion.workloads.market import Market, Order, Trade, Uncovered
from apportion.workloads.net import MAX_LINE, Line, due_of
from apportion.workloads.probe import Meter, Options, Service, read_load
from apportion.workloads.social import Social

KINDS: dict[str, type[Service]] = {"game": Game, "social": Social, "commerce": Commerce, "assets": Assets}
CALM = 0.15  # of its time, that a program may have to wait for a core in what passes for a fair trial
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="linux: reads another process's CPU clock")


# --- running programs -------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A program under test, and what it has said so far."""

    kind: str
    child: subprocess.Popen[str]
    port: int
    started: float = field(default_factory=time.monotonic)
    said: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # when, what
    cores: float | None = None  # what the governor below leaves it
    ended: bool = False

    def listen(self) -> None:
        for line in self.child.stdout or ():
            self.said.append((time.monotonic(), json.loads(line)))

    def govern(self) -> None:
        """Stop the program whenever it is ahead of what it may use, until it no longer is: that needs no rights."""
        prefer(threading.get_native_id())
        clock, since, cores = (~self.child.pid << 3) | 2, 0.0, None  # Linux: the CPU clock of another process
        with contextlib.suppress(OSError):
            while not self.ended:
                now, used = time.monotonic(), time.clock_gettime(clock)
                if self.cores != cores or cores is None or used < spent + (now - since - 0.05) * cores:
                    since, spent, cores = now, used, self.cores  # what is not used is not saved up
                elif (ahead := (used - spent) / cores - (now - since)) > 0:
                    self.child.send_signal(signal.SIGSTOP)
                    time.sleep(min(ahead, 0.2))
                    self.child.send_signal(signal.SIGCONT)
                time.sleep(0.002)

    def between(self, start: float, end: float) -> list[dict[str, Any]]:
        return [line for when, line in self.said if start < when <= end]

    def experience(self, start: float, end: float) -> float:
        lines = self.between(start, end)
        asked = sum(line["asked"] for line in lines)
        assert asked, f"{self.kind} said nothing in {end - start:.1f} s"
        return sum(line["in_time"] for line in lines) / asked

    def queued(self) -> float:
        """Give the seconds for which it was ready to run and the machine had no core for it."""
        return int(Path(f"/proc/{self.child.pid}/schedstat").read_text().split()[1]) * 1e-9

    def wait_for_lines(self, count: int, seconds: float = 15) -> None:
        """Wait until the program has said so many lines in all."""
        until = time.monotonic() + seconds
        while len(self.said) < count and time.monotonic() < until:
            time.sleep(0.02)
        assert len(self.said) >= count, f"{self.kind} fell silent; exit code {self.child.poll()}"

    def end(self, number: int = signal.SIGTERM) -> float:
        """Tell it to end; give the seconds that took."""
        self.cores, self.ended = None, True
        self.child.send_signal(signal.SIGCONT)
        told = time.monotonic()
        self.child.send_signal(number)
        try:
            self.child.wait(5)
        finally:
            self.child.kill()
        return time.monotonic() - told


@contextlib.contextmanager
def running(kind: str, size: int, *more: str, peers: dict[str, int] | None = None) -> Iterator[Running]:
    """Start a program, governed by nobody yet; end it at the end."""
    port = free_port()
    command = [sys.executable, "-m", f"apportion.workloads.{kind}", "--size", str(size)]
    command += ["--listen", f"127.0.0.1:{port}", *more]
    for name, at in (peers or {}).items():
        command += ["--peer", f"{name}=127.0.0.1:{at}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        prefer(child.pid)
        with contextlib.suppress(OSError):  # Linux weighs sessions first, then what is in them
            Path(f"/proc/{child.pid}/autogroup").write_text("-15")
        program = Running(kind, child, port)
        threads = [threading.Thread(target=work, daemon=True) for work in (program.listen, program.govern)]
        for thread in threads:
            thread.start()
        try:
            yield program
        finally:
            if child.poll() is None:
                program.end(signal.SIGKILL)
            program.ended = True
            for thread in threads:
                thread.join()


def prefer(thread: int) -> None:
    """Let a thread go before others where that is allowed: what is measured should not depend on the neighbours."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, -15)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Caller:
    """Somebody at the other end of a socket."""

    def __init__(self, port: int):
        until = time.monotonic() + 5
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
                break
            except ConnectionRefusedError:  # it is still starting
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request with more time than usual and wait for its answer."""
        message = {"id": "mine", "due": time.time() + 30, **message}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while line := self.lines.readline():
            if (answer := json.loads(line)).get("id") == message["id"]:
                return answer
        raise ConnectionError("the other end has hung up")


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


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path)) as opened:
        yield opened


def tell(store: Store, **request: Any) -> dict[str, Any]:
    return store.apply([(time.monotonic() + 60, request)])[0]


def packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


@linux
def test_what_a_failing_disk_does_not_take_is_missed_and_the_rest_of_the_registry_goes_on(tmp_path: Path):
    """The kernel refuses every byte to files (EFBIG, as a full disk does) for a while, without a word to the program."""
    resource = pytest.importorskip("resource", reason="linux: limits another process")

    def allow(size: int) -> None:
        resource.prlimit(program.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def put(item: str) -> dict[str, Any]:
        return caller.ask(op="put", item=item, owner="me", data=packed(b"content of " + item.encode()))

    def told(enough: int) -> dict[str, int]:
        """Add up what it tells from here on until it has been asked so often."""
        said, total = len(program.said), {"asked": 0, "in_time": 0}
        while total["asked"] < enough:
            program.wait_for_lines(said + 1)
            total = {name: total[name] + program.said[said][1][name] for name in total}
            said += 1
        return total

    with running("assets", 4, "--data", str(tmp_path)) as program, Caller(program.port) as caller:
        assert put("before")["ok"]
        program.wait_for_lines(2)
        allow(0)
        refused = put("meanwhile")
        assert (refused["ok"], refused["error"][:10]) == (False, "not stored")
        program.wait_for_lines(len(program.said) + 1)  # its line still speaks of the time before
        bad = told(40)
        assert bad["in_time"] < 0.8 * bad["asked"], bad  # a third and more of what clients ask are changes
        allow(resource.RLIM_INFINITY)
        until = time.monotonic() + 10
        while not (answer := put("after"))["ok"]:
            assert time.monotonic() < until, answer
        found = {item: caller.ask(op="get", item=item)["owner"] for item in ("before", "meanwhile", "after")}
        assert found == {"before": "me", "meanwhile": None, "after": "me"}
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.faults() == []


def test_a_killed_registry_has_kept_all_that_it_acknowledged(tmp_path: Path):
    """kill -9 in the middle of its work, twice over; then everything acknowledged is there and all is sound."""
    rng, content, owner = random.Random(7), {}, {}  # item -> what may be there: a request without answer leaves two
    for _ in range(2):
        with running("assets", 10, "--data", str(tmp_path)) as program, Caller(program.port) as caller:
            threading.Timer(0.8 + rng.random() * 0.5, program.child.kill).start()
            with contextlib.suppress(ConnectionError, OSError):
                while True:
                    item, data = f"mine{rng.randrange(6)}", rng.randbytes(rng.randrange(1, 30_000))
                    if item in owner and rng.random() < 0.5:
                        giver, taker = owner[item][-1], rng.choice("abc")
                        owner[item].append(taker)
                        assert caller.ask(op="move", moves=[[item, giver, taker]])["ok"]
                        owner[item] = [taker]
                    else:
                        holder = owner.setdefault(item, ["a"])[-1]
                        content.setdefault(item, [None]).append(hashlib.sha256(data).hexdigest())
                        assert caller.ask(op="put", item=item, owner=holder, data=packed(data))["ok"]
                        content[item] = content[item][-1:]
        with contextlib.closing(Store(tmp_path)) as store:
            assert store.faults() == []
            owners = store.owners()
            for item in owner:
                found = tell(store, op="get", item=item)
                assert found["hash"] in content[item]
                assert owners.get(item, "a") in owner[item]
                owner[item], content[item] = [owners.get(item, "a")], [found["hash"]]
            assert content  # the killing left time to do something


def test_a_move_happens_wholly_or_not_at_all(store: Store):
    tell(store, op="mint", owners={"sword": "ann", "map": "bob"}, data=packed(b"thing"))
    refused = tell(store, op="move", moves=[["sword", "ann", "bob"], ["map", "ann", "bob"], ["boat", "ann", "bob"]])
    assert "boat" in refused["error"]
    assert store.owners() == {"sword": "ann", "map": "bob"}
    assert "belongs to 'bob'" in tell(store, op="move", moves=[["sword", "ann", "eve"], ["map", "eve", "ann"]])["error"]
    assert store.owners() == {"sword": "ann", "map": "bob"}
    for _ in range(2):  # asking again after a lost answer does no harm
        assert tell(store, op="move", moves=[["sword", "ann", "bob"], ["map", "bob", "bob"]]) == {"moved": 2}
        assert store.owners() == {"sword": "bob", "map": "bob"}


def test_a_late_request_changes_nothing(store: Store):
    put = {"op": "put", "item": "sword", "owner": "ann", "data": packed(b"steel")}
    assert store.apply([(time.monotonic() - 1, put)]) == [{"error": "late"}]
    assert store.owners() == {}


def test_content_is_stored_once_and_goes_with_its_last_item(store: Store):
    blobs = lambda: store.db.execute("SELECT refs FROM blob ORDER BY refs").fetchall()  # noqa: E731
    for item in ("one", "two"):
        tell(store, op="put", item=item, owner="ann", data=packed(b"same"))
    assert blobs() == [(2,)]
    tell(store, op="put", item="two", owner="ann", data=packed(b"other"))
    assert blobs() == [(1,), (1,)]
    tell(store, op="put", item="one", owner="ann", data=packed(b"other"))
    assert blobs() == [(2,)]
    assert store.faults() == []


def test_damaged_content_is_found_and_not_given_out(store: Store):
    tell(store, op="put", item="sword", owner="ann", data=packed(b"steel"))
    store.db.execute("UPDATE blob SET data = ?", (b"stool",))
    assert "hash" in tell(store, op="get", item="sword")["error"]
    assert len(store.faults()) == 1


def test_a_full_disk_refuses_the_whole_batch_and_keeps_the_rest(store: Store):
    tell(store, op="put", item="sword", owner="ann", data=packed(b"steel"))
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages + 2}")
    later = time.monotonic() + 60
    batch = [
        (later, {"op": "move", "moves": [["sword", "ann", "bob"]]}),
        (later, {"op": "put", "item": "map", "owner": "ann", "data": packed(bytes(100_000))}),
    ]
    answers = store.apply(batch)
    assert answers
    assert all("not stored" in answer["error"] for answer in answers)
    assert store.owners() == {"sword": "ann"}
    assert store.faults() == []
    assert store.count() == store.created == 1


# --- the market -------------------------------------------------------------------------------------------------------


class PlainMarket:
    """Price-time priority the slow way, to compare with: one list, sorted anew for each order."""

    def __init__(self) -> None:
        self.resting: list[list[int]] = []  # number, trader, buys, limit, left

    def place(self, number: int, trader: int, buys: bool, limit: int, count: int) -> list[tuple[int, int, int]]:
        """Give (number of the other order, items, price) of each trade."""
        trades = []
        others = [order for order in self.resting if order[2] != buys]
        others.sort(key=lambda order: (order[3] if buys else -order[3], order[0]))
        for order in others:
            if not count or (order[3] > limit if buys else order[3] < limit):
                break
            if order[1] == trader:
                order[4] = 0
                continue
            items = min(count, order[4])
            trades.append((order[0], items, order[3]))
            order[4] -= items
            count -= items
        self.resting = [order for order in [*self.resting, [number, trader, int(buys), limit, count]] if order[4]]
        return trades


orders = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(90, 110), st.integers(1, 4), st.sampled_from("skbu")),
    min_size=10,
    max_size=60,
)


@given(orders)
def test_trading_conserves_and_follows_price_and_time(steps: list[tuple[int, bool, int, int, str]]):
    """Whatever is placed, settled, busted and taken back: no coin and no item is lost, and trades are the plain ones."""
    market, plain, placed = Market(("ore",)), PlainMarket(), {}
    for k in range(4):
        market.enter(f"t{k}", 2000, {"ore": [f"t{k}/ore{n}" for n in range(12)]})
    for trader, buys, limit, count, then in steps:
        try:
            order, trades = market.place(f"t{trader}", buys, "ore", limit, count)
        except Uncovered:
            continue
        placed[order.number] = order
        expected = plain.place(order.number, trader, buys, limit, count)
        assert [(len(trade.items), trade.coins) for trade in trades] == [(n, n * price) for _, n, price in expected]
        assert [placed[number].trader for number, _, _ in expected] == [
            trade.seller if buys else trade.buyer for trade in trades
        ]
        for trade in trades:
            (market.settle if then in "sk" else market.bust if then == "b" else lambda trade: None)(trade)
        if then == "k":
            market.cancel(order.number)
            plain.resting = [other for other in plain.resting if other[0] != order.number]
        market.check()
    for trade in list(market.trades.values()):
        market.settle(trade)
    for number in list(market.orders):
        market.cancel(number)
    market.check()
    hands = [item for trader in market.traders.values() for item in trader.items["ore"]]
    assert len(hands) == len(set(hands)) == 48
    assert sum(trader.coins for trader in market.traders.values()) == 8000


def test_a_lost_coin_stops_the_market():
    market = Market(("ore",))
    market.enter("ann", 100, {"ore": ["one"]}).coins -= 1
    with pytest.raises(AssertionError, match="99 coins"):
        market.check()


def test_a_trade_without_an_answer_stays_in_escrow_until_there_is_one(tmp_path: Path):
    """No answer from the registry: neither side gets anything. A refusal undoes; a yes, however late, settles."""
    market = (service := Commerce(options(tmp_path), Meter())).market
    for name in ("ann", "bob"):
        market.enter(name, 1000, {"ore": [f"market0/{name}/ore0"]})
    order, trades = market.place("ann", False, "ore", 50, 1)[0], market.place("bob", True, "ore", 50, 1)[1]
    assert isinstance(order, Order)
    assert isinstance(trades[0], Trade)
    service._moved(trades[0], None, None)
    assert list(service.unsure) == trades
    assert (market.traders["ann"].coins, market.traders["bob"].coins) == (1000, 950)
    assert market.traders["bob"].items["ore"] == ["market0/bob/ore0"]
    market.check()
    service._moved(trades[0], None, {"ok": True})
    assert (market.traders["ann"].coins, len(market.traders["bob"].items["ore"])) == (1050, 2)
    again = market.place("bob", False, "ore", 50, 1), market.place("ann", True, "ore", 50, 1)
    service._moved(again[1][1][0], None, {"ok": False, "error": "late"})
    assert (market.traders["ann"].coins, len(market.traders["bob"].items["ore"])) == (1050, 2)
    market.check()


# --- the simulated world ----------------------------------------------------------------------------------------------


def apart(arena: Arena, a: Entity, b: Entity) -> float:
    """Give the squared distance on the torus, the slow way."""
    x, y = (abs(p - q) for p, q in ((a.x, b.x), (a.y, b.y)))
    return min(x, arena.side - x) ** 2 + min(y, arena.side - y) ** 2


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
def test_the_spatial_hash_finds_what_looking_at_all_pairs_finds(seed: int, players: int):
    arena = Arena(seed)
    for _ in range(players):
        arena.enter()
    for _ in range(3):
        arena.step(0.05)
    everyone = [*arena.players.values(), *arena.creatures]
    touching = {
        frozenset((a.number, b.number))
        for k, a in enumerate(everyone)
        for b in everyone[k + 1 :]
        if apart(arena, a, b) < TOUCH**2
    }
    assert {frozenset((a.number, b.number)) for a, b in arena.touched} == touching
    for player in arena.players.values():
        near = [one for *_, one in arena.near(player)]
        assert {one.number for one in near} == {one.number for one in everyone if apart(arena, player, one) < VIEW**2}
        assert near[0] is player
        assert len(arena.around(player)) == SEEN.size * min(len(near), TOLD)


def test_the_same_seed_makes_the_same_world():
    def played(seed: int) -> list[bytes]:
        arena = Arena(seed)
        for _ in range(30):
            arena.enter()
        for _ in range(20):
            arena.step(0.05)
        return [arena.around(player) for player in arena.players.values()]

    assert played(3) == played(3) != played(4)


# --- shedding, and input of any shape ---------------------------------------------------------------------------------


def test_a_backlog_sheds_what_cannot_be_in_time_and_keeps_the_order():
    shed: list[str] = []
    now, backlog = time.monotonic(), Backlog[str](0.5, lambda work: shed.append(work))
    for due, work in ((now - 1, "past"), (now + 0.3, "too near"), (now + 60, "first"), (now + 61, "second")):
        backlog.add(due, work)
    taken = [work[1] for _ in range(3) if (work := backlog.take())]
    assert (taken, shed) == (["first", "second"], ["past", "too near"])


def test_a_window_halves_once_for_all_that_is_late_for_one_reason():
    window = Window(64)
    window.flying = 32
    for _ in range(20):
        window.back(False)
    assert (window.size, window.flying) == (16, 12)
    for _ in range(10_000):
        window.back(True)
    assert (window.size, window.flying) == (64, 0)


def test_a_load_file_that_cannot_be_read_keeps_the_last_factor(tmp_path: Path):
    file = tmp_path / "load"
    assert read_load(None, 2.0) == read_load(file, 2.0) == 2.0
    for text, factor in (("6", 6.0), ("0.5\n", 0.5), ("six", 2.0), ("nan", 2.0), ("-1", 2.0), ("", 2.0), ("inf", 2.0)):
        file.write_text(text)
        assert read_load(file, 2.0) == factor, text
    file.write_bytes(b"\xff\xfe")
    assert read_load(file, 2.0) == 2.0


@pytest.mark.parametrize("due", [None, "soon", True, float("nan"), float("inf"), [], 1e300, -1e300])
def test_a_due_time_that_makes_no_sense_is_replaced_or_bounded(due: object):
    assert due_of({"due": due}, 100.0, 0.1, 1.0) <= 101.0


class Wire(asyncio.WriteTransport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def close(self) -> None: ...


def options(folder: Path) -> Options:
    return Options(10, None, ("127.0.0.1", 0), {}, folder, 0, None)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(("ann", "ore", "buy")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "id",
    "due",
    "item",
    "owner",
    "data",
    "owners",
    "moves",
    "member",
    "feed",
    "feeds",
    "text",
    "trader",
    "key",
    "side",
    "goods",
    "limit",
    "count",
    "tag",
    "player",
]
OPS = ["put", "get", "mint", "move", "owned", "join", "post", "enter", "order", "depth", "state", "look"]
messages = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | json_values}, optional=dict.fromkeys(FIELDS, json_values)
)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The four services without a network: the test is their sockets."""
    out: dict[str, Any] = {kind: make(options(tmp_path_factory.mktemp(kind)), Meter()) for kind, make in KINDS.items()}
    yield out
    out["assets"].close()
    out["game"].close()


@pytest.mark.parametrize("kind", KINDS)
@given(sent=st.lists(messages, min_size=1, max_size=5), junk=st.binary(max_size=30))
def test_no_message_raises_in_a_server(services: dict[str, Any], kind: str, sent: list[dict[str, Any]], junk: bytes):
    """Any JSON in any field, and any bytes: whoever gave an id gets one answer, and nothing is lost."""
    service = services[kind]
    line = Line(service.hear)
    line.connection_made(Wire())
    for message in sent:
        line.data_received(json.dumps(message).encode() + b"\n")
    line.data_received(junk + b"\n")
    match kind:
        case "assets":
            while work := service.backlog.take():
                due, request = work
                for answer in service.store.apply([(due, request.message)]):
                    service._answer(request, due, answer)
            assert service.store.faults() == []
        case "commerce":
            while work := service.backlog.take():
                service._take(*work)
            service.market.check()
        case "social":
            while work := service.backlog.take():
                service._fan_out(*work)
            service._flush()
    answers = [json.loads(text) for text in line.transport.written.splitlines()]
    assert sum("id" in answer for answer in answers) == sum("id" in message for message in sent)


@given(limit=st.integers(-5, 30_000), count=st.integers(-2, 10), goods=st.sampled_from(GOODS))
def test_only_who_holds_the_key_can_order(services: dict[str, Any], limit: int, count: int, goods: str):
    service = services["commerce"]
    if "ann" not in service.keys:
        service._enter("ann", "secret", Line(service.hear))
    order = {"trader": "ann", "side": "buy", "goods": goods, "limit": limit, "count": count}
    for key, accepted in (("guess", False), ("secret", limit > 0 < count and limit * count <= 20_000)):
        line = Line(service.hear)
        line.connection_made(Wire())
        line.data_received(json.dumps({"op": "order", "id": 1, **order, "tag": signature(key, order)}).encode() + b"\n")
        service._take(*service.backlog.take())
        assert json.loads(line.transport.written)["ok"] == accepted
        for number in list(service.market.orders):
            service.market.cancel(number)
        service.market.check()


def test_nothing_is_left_behind(tmp_path: Path):
    """Without --data a program keeps its files in a temporary folder and takes it away."""
    command = [sys.executable, "-m", "apportion.workloads.assets", "--size", "3", "--seconds", "0.3"]
    subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, check=True, timeout=20)
    assert list(tmp_path.iterdir()) == []
