"""What the shipped programs are made of: a world that collides, work shed in time, input of any shape."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import KINDS, faults, options

from apportion.workloads.arena import SEEN, TOLD, TOUCH, VIEW, Arena, Entity
from apportion.workloads.commands import signature
from apportion.workloads.load import Backlog, Window
from apportion.workloads.net import Line, due_of
from apportion.workloads.probe import Meter, read_load
from apportion.workloads.traders import GOODS

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
    "order",
    "number",
    "lot",
]
OPS = ["put", "get", "mint", "move", "owned", "join", "post", "enter", "order", "depth", "state", "look"]
OPS += ["cancel", "list", "bid", "swap", "account", "lots", "exchange", "tick", "open", "wake"]
messages = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | json_values}, optional=dict.fromkeys(FIELDS, json_values)
)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The four services without a network: the test is their sockets."""
    out: dict[str, Any] = {kind: make(options(tmp_path_factory.mktemp(kind)), Meter()) for kind, make in KINDS.items()}
    yield out
    for kind in ("assets", "commerce", "game"):
        out[kind].close()


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
            assert faults(service.store) == []
        case "commerce":
            while len(service.backlog):
                keep_and_answer(service)
            service.market.check()
        case "social":
            while work := service.backlog.take():
                service._fan_out(*work)
            service._flush()
    answers = [json.loads(text) for text in line.transport.written.splitlines()]
    told = [answer for answer in answers if answer.get("id") is not None]  # an id of null asks for no answer of its own
    assert len(told) == sum(message.get("id") is not None for message in sent)


def keep_and_answer(service: Any) -> None:
    """Do for the marketplace what it does itself while it runs."""
    batch = service.turn()
    service.journal.keep(batch.at, batch.commands)
    service.finish(batch)


@given(limit=st.integers(-5, 30_000), count=st.integers(-2, 10), goods=st.sampled_from(GOODS))
def test_only_who_holds_the_key_can_order(services: dict[str, Any], limit: int, count: int, goods: str):
    service = services["commerce"]

    def told(**message: Any) -> dict[str, Any]:
        line = Line(service.hear)
        line.connection_made(Wire())
        line.data_received(json.dumps({"id": 1, **message}).encode() + b"\n")
        keep_and_answer(service)
        return json.loads(line.transport.written)

    number = told(op="enter", trader="ann", key="secret")["last_order"] + 1
    order = {
        "op": "order",
        "trader": "ann",
        "order": number,
        "side": "buy",
        "goods": goods,
        "limit": limit,
        "count": count,
    }
    for key, accepted in (("guess", False), ("secret", limit > 0 < count and limit * count <= 20_000)):
        answer = told(**order, tag=signature(key, order))
        assert answer["ok"] == accepted
    if accepted:
        cancel = {"op": "cancel", "trader": "ann", "order": number + 1, "number": answer["number"]}
        assert told(**cancel, tag=signature("secret", cancel))["ok"]
    service.market.check()
