"""What the shipped programs are made of: a market that conserves, a world that collides, work shed in time, input of any shape."""

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
from apportion.workloads.commerce import GOODS, Commerce, signature
from apportion.workloads.load import Backlog, Window
from apportion.workloads.market import Market, Order, Trade, Uncovered
from apportion.workloads.net import Line, due_of
from apportion.workloads.probe import Meter, read_load

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
            assert faults(service.store) == []
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
