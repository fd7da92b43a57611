"""The marketplace loses nothing and doubles nothing: not by any stream of commands, not by kill -9, not by a full disk."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped import Caller, Running, linux, options, running

from apportion.settlement.lots import second_price
from apportion.workloads import journal as journals
from apportion.workloads.assets import Store
from apportion.workloads.commands import Fields, Refusal, Uncovered, signature
from apportion.workloads.commerce import Commerce
from apportion.workloads.journal import Journal, dump, restored
from apportion.workloads.market import LIMIT, READING, ROUND, TRADERS, TREASURY, Market
from apportion.workloads.probe import Meter

NAMES = ("ann", "bob", "cyd", "dee")
seeds = st.integers(0, 2**32 - 1)


class Told(Market):
    """A market that numbers the commands of its traders itself."""

    def tell(self, who: str, op: str, at: int = 0, **fields: Any) -> Fields:
        number = self.traders[who].last + 1
        return self.apply(at, {"op": op, "trader": who, "order": number, **fields})[0]


def opened(fee: int = 0, coins: int = 2000, goods: int = 12, custody: bool = False, exchange: Any = None) -> Told:
    """Four traders with a purse each, and ore to trade."""
    market = Told()
    market.apply(0, {"op": "open", "fee": fee, "custody": custody, "goods": ["ore"], "exchange": exchange})
    for name in NAMES:
        purse = {"coins": coins, "goods": {"ore": goods}, "items": [f"{name}/0", f"{name}/1"]}
        market.apply(0, {"op": "enter", "trader": name, "key": "k", **purse})
    return market


def state(market: Market) -> Fields:
    """Give all that a market knows, as a file does."""
    return json.loads(json.dumps(dump(market)))


# --- any stream of commands, with kills in between ----------------------------------------------------------------


def anything(rng: random.Random, market: Market, at: int) -> Fields:
    """Make up a command that makes sense often enough."""
    who = rng.choice(NAMES)
    number = market.traders[who].last + rng.choice((1, 1, 1, 2, 0, -1))
    command = {"trader": who, "order": number}
    match rng.choice(
        ("order",) * 5 + ("cancel", "list", "list", "bid", "bid", "bid", "swap", "mint", "tick", "registry")
    ):
        case "order":
            limit = rng.choice((None, *range(90, 111)))
            count = rng.randrange(1, 6)
            more = {"op": "order", "side": rng.choice(("buy", "sell")), "goods": rng.choice(("ore", "ore", "silk"))}
            return command | more | {"limit": limit, "count": count, "seconds": rng.randrange(1, 9)}
        case "cancel":
            return command | {"op": "cancel", "number": rng.randrange(1, market.next_number + 1)}
        case "list":
            item = f"{rng.choice(NAMES)}/{rng.randrange(3)}"
            return command | {
                "op": "list",
                "item": item,
                "reserve": rng.randrange(1, 99),
                "seconds": rng.randrange(1, 5),
            }
        case "bid":
            lot = rng.choice([*market.lots, 0])
            return command | {"op": "bid", "lot": lot, "most": rng.randrange(1, 900)}
        case "swap":
            give = rng.choice(("coins", "credits"))
            return command | {"op": "swap", "give": give, "amount": rng.randrange(1, 300), "least": rng.randrange(3)}
        case "mint":
            number = market.traders[TREASURY].last + 1
            goods = {rng.choice(("ore", "silk")): rng.randrange(-3, 9)}
            mint = {"op": "mint", "to": who, "coins": rng.randrange(-50, 100), "goods": goods}
            return mint | {"trader": TREASURY, "order": number}
        case "tick":
            return {"op": "tick"}
        case _:
            return {
                "op": rng.choice(("arrived", "arrived", "lost", "left", "left")),
                "lot": rng.choice([*market.lots, 0]),
            }


@pytest.mark.parametrize("custody", [False, True], ids=["alone", "with a registry"])
@given(seed=seeds)
def test_nothing_is_lost_or_doubled_whatever_is_commanded_and_whenever_it_is_killed(
    tmp_path_factory: pytest.TempPathFactory, custody: bool, seed: int
):
    """After every command all is conserved; a refused one has changed nothing; a kill gives back what was kept."""
    rng, folder, at = random.Random(seed), tmp_path_factory.mktemp("market"), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "AGAIN", -25)  # so that the whole is written now and then in a short life too
        journal = Journal(folder)
        journal.load()
        journal.keep(0, [], json.dumps(dump(opened(fee=250, custody=custody, exchange=(5000, 90_000)))))
        market = journal.load()
        for _ in range(12):
            batch, kept = [], state(market)
            at += rng.randrange(0, 3000)
            for _ in range(rng.randrange(1, 9)):
                command, before = anything(rng, market, at), state(market)
                try:
                    changed = market.apply(at, command)[1]
                except Refusal:
                    changed = False
                batch += [command] * changed
                assert changed or state(market) == before
                market.check()
            if rng.random() < 0.3:  # killed before the batch was kept
                journal.close()
                journal = Journal(folder)
                market = journal.load()
                assert state(market) == kept
                continue
            if batch:
                journal.keep(at, batch, journal.full(market))
            after = state(market)
            assert state(restored(after)) == after
            if rng.random() < 0.3:  # killed after it
                journal.close()
                journal = Journal(folder)
                market = journal.load()
                assert state(market) == after
        journal.close()


def test_a_lost_coin_or_good_or_item_stops_the_market():
    for spoil, told in (
        (lambda market: setattr(market.traders["ann"], "coins", 1), "6001 of 8000 coins"),
        (lambda market: market.traders["ann"].goods.update(ore=11), "goods"),
        (lambda market: market.items.pop("ann/0"), "7 of 8 items"),
        (lambda market: market.traders["bob"].__setattr__("coins", -1) or market.made.update(coins=5999), "less than"),
    ):
        market = opened()
        spoil(market)
        with pytest.raises(AssertionError, match=told):
            market.check()


# --- the book -----------------------------------------------------------------------------------------------------


class PlainBook:
    """Price-time priority the slow way, to compare with: one list, sorted anew for each order."""

    def __init__(self) -> None:
        self.resting: list[list[Any]] = []  # number, trader, buys, limit, left

    def meets_itself(self, trader: str, buys: bool, limit: int) -> bool:
        return any(o[1] == trader and o[2] != buys and (o[3] <= limit if buys else o[3] >= limit) for o in self.resting)

    def place(self, number: int, trader: str, buys: bool, limit: int, count: int) -> tuple[int, int]:
        """Give what was filled and what was paid."""
        filled = paid = 0
        others = [order for order in self.resting if order[2] != buys]
        for order in sorted(others, key=lambda order: (order[3] if buys else -order[3], order[0])):
            if filled == count or (order[3] > limit if buys else order[3] < limit):
                break
            some = min(count - filled, order[4])
            filled, paid, order[4] = filled + some, paid + some * order[3], order[4] - some
        self.resting = [o for o in [*self.resting, [number, trader, buys, limit, count - filled]] if o[4]]
        return filled, paid


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans(), st.integers(98, 102), st.integers(1, 4)), min_size=20))
def test_trades_follow_price_and_time(steps: list[tuple[str, bool, int, int]]):
    market, plain = opened(coins=10**6, goods=500), PlainBook()
    for who, buys, limit, count in steps:
        order = {"side": "buy" if buys else "sell", "goods": "ore", "limit": limit, "count": count}
        if plain.meets_itself(who, buys, limit):
            with pytest.raises(Refusal, match="trade with itself: its order"):
                market.tell(who, "order", **order)
            continue
        answer = market.tell(who, "order", **order)
        assert (answer["filled"], answer["paid"]) == plain.place(answer["number"], who, buys, limit, count)
        resting = sorted([o.number, o.trader, o.buys, o.limit, o.left] for o in market.orders.values())
        assert resting == sorted(plain.resting)


def test_an_order_at_the_market_takes_what_its_coins_reach_and_never_rests():
    market = opened(coins=1000)
    market.tell("ann", "order", side="sell", goods="ore", limit=100, count=3)
    market.tell("bob", "order", side="sell", goods="ore", limit=300, count=9)
    answer = market.tell("cyd", "order", side="buy", goods="ore", count=50)
    assert (answer["filled"], answer["paid"], answer["left"]) == (5, 900, 0)
    assert (market.traders["cyd"].coins, market.traders["cyd"].goods["ore"]) == (100, 17)
    assert len(market.orders) == 1
    market.check()


def test_what_backs_an_order_is_out_of_hand_until_it_trades_is_cancelled_or_ends():
    market = opened()
    ann = market.traders["ann"]
    for end in ("cancel", "time"):
        number = market.tell("ann", "order", side="buy", goods="ore", limit=100, count=15, seconds=5)["number"]
        assert ann.coins == 500
        with pytest.raises(Uncovered, match="10 ore at up to 60 need 600 coins, and 'ann' has 500 at hand"):
            market.tell("ann", "order", side="buy", goods="ore", limit=60, count=10)
        market.tell("bob", "order", side="sell", goods="ore", limit=90, count=5)
        if end == "cancel":
            with pytest.raises(Refusal, match="no order of 'bob' at rest"):
                market.tell("bob", "cancel", number=number)
            assert market.tell("ann", "cancel", number=number)["left"] == 10
        else:
            market.apply(4999, {"op": "tick"})
            assert ann.coins == 500
            market.apply(5000, {"op": "tick"})
        assert not market.orders
        assert ann.coins == 1500
        market.tell(TREASURY, "mint", to="ann", coins=500)
    market.check()


@given(seed=seeds, fee=st.integers(0, 5000))
def test_fees_are_the_same_however_a_sale_is_split(seed: int, fee: int):
    """Each trade's fee is whole coins; all of them come to the fee on the whole, rounded down once."""
    rng, market = random.Random(seed), opened(fee=fee, coins=10**6, goods=1000)
    sold = 0
    for _ in range(rng.randrange(1, 40)):
        price, count = rng.randrange(1, 30), rng.randrange(1, 4)
        market.tell("ann", "order", side="sell", goods="ore", limit=price, count=count)
        sold += market.tell("bob", "order", side="buy", goods="ore", count=count)["paid"]
        assert market.traders[TREASURY].coins == sold * fee // 10_000
    assert market.traders["ann"].coins == 10**6 + sold - sold * fee // 10_000
    market.check()


# --- auctions and the exchange ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=0, max_size=12), st.integers(1, 60))
def test_an_auction_sells_as_a_second_price_auction_does(bids: list[int], reserve: int):
    """Proxy bids in the open, one each, in any order: winner and price are those of the sealed auction."""
    market = opened()
    for k in range(len(bids)):
        market.apply(0, {"op": "enter", "trader": f"b{k}", "key": "k", "coins": 100})
    lot = market.tell("ann", "list", item="ann/0", reserve=reserve, seconds=1)["lot"]
    for k, most in enumerate(bids):
        with contextlib.suppress(Refusal):  # at or below where it stands: it has lost
            market.tell(f"b{k}", "bid", lot=lot, most=most)
    market.apply(1000, {"op": "tick"})
    sealed = second_price(np.array(bids, np.int64), reserve)
    winner = f"b{sealed.winners[0]}" if sealed.winners else "ann"
    assert market.items["ann/0"] == winner
    assert market.traders["ann"].coins == 2000 + (sealed.price if sealed.winners else 0)
    hands = {f"b{k}": 100 - sealed.price * (f"b{k}" == winner) for k in range(len(bids))}
    assert {name: market.traders[name].coins for name in hands} == hands
    market.check()


def test_a_bid_is_refused_where_it_cannot_lead():
    market = opened()
    lot = market.tell("ann", "list", item="ann/0", reserve=50, seconds=1)["lot"]
    market.tell("bob", "bid", lot=lot, most=100)
    for who, at, most, why in (
        ("ann", 0, 200, "its seller may not bid"),
        ("cyd", 0, 50, "it stands at 50. Bid at least 51"),
        ("bob", 0, 100, "its own bid is 100. Bid at least 101"),
        ("cyd", 0, 2001, "it needs 2001 coins, and 'cyd' has 2000"),
        ("cyd", 1000, 300, "not open for bids"),
    ):
        with pytest.raises(Refusal, match=why):
            market.tell(who, "bid", at, lot=lot, most=most)
    with pytest.raises(Refusal, match="in lot 1 already"):
        market.tell("ann", "list", item="ann/0", reserve=50, seconds=1)
    with pytest.raises(Refusal, match="belongs to 'bob'"):
        market.tell("ann", "list", item="bob/0", reserve=50, seconds=1)


def test_a_faucet_of_coins_makes_no_credits_and_little_leaves_the_pool_in_a_round():
    market = opened(coins=10**9, exchange=(100_000, 2_000_000))
    most = 2_000_000 * LIMIT // 1000
    got = 0
    for _ in range(200):
        with contextlib.suppress(Refusal):
            got += market.tell("ann", "swap", give="coins", amount=100)["got"]
    assert 0.9 * most < got <= most
    with pytest.raises(Refusal, match="may in this round; wait for the next"):
        market.tell("ann", "swap", give="coins", amount=10**8)
    assert market.tell("ann", "swap", ROUND, give="coins", amount=100)["got"] > 0
    market.tell(TREASURY, "mint", to="ann", coins=10**9)
    assert market.held()["credits"] == 2_000_000
    with pytest.raises(Refusal, match="less than the 1 asked for"):
        market.tell("ann", "swap", 2 * ROUND, give="credits", amount=1)
    market.check()


@pytest.mark.parametrize(
    ("who", "fields", "why"),
    [
        ("ann", {"op": "fly"}, "no operation 'fly': there are order, cancel, list, bid, swap, mint, enter"),
        ("eve", {"op": "order"}, "trader is 'eve': nobody of that name is here. Enter first."),
        ("ann", {"op": "order", "goods": "air"}, "goods is 'air': not traded here. There are ore."),
        ("ann", {"op": "order", "goods": "ore", "side": "hold"}, "side is 'hold': buy or sell."),
        ("ann", {"op": "order", "goods": "ore", "side": "buy", "count": True}, "count is True: a whole number from 1"),
        ("ann", {"op": "order", "goods": "ore", "side": "sell", "count": 13}, "'ann' has 12 ore at hand. Sell at most"),
        ("ann", {"op": "cancel", "number": 7}, "number is 7: no order of 'ann' at rest. It has none."),
        (
            "ann",
            {"op": "list", "item": "moon", "reserve": 1, "seconds": 1},
            "item is 'moon': there is no such item here",
        ),
        ("ann", {"op": "bid", "lot": 9, "most": 1}, "lot is 9: not open for bids. Ask for the lots"),
        ("ann", {"op": "swap", "give": "coins", "amount": 1}, "starts the market with --exchange COINS:CREDITS"),
        ("ann", {"op": "mint", "to": "ann", "coins": 5}, "only 'treasury' may mint"),
        (TREASURY, {"op": "mint", "to": "ann", "coins": -2001}, "'ann' has not that much of coins"),
        (TREASURY, {"op": "mint", "to": "ann", "item": "bob/0"}, "item is 'bob/0': it is here already."),
    ],
    ids=lambda x: " ".join(map(str, x.values())) if isinstance(x, dict) else None,
)
def test_a_refusal_says_what_to_do_and_changes_nothing(who: str, fields: Fields, why: str):
    market = opened()
    before = state(market)
    with pytest.raises(Refusal) as told:
        market.apply(0, {"trader": who, "order": 1, **fields})
    assert why in str(told.value)
    assert state(market) == before


def test_a_command_is_taken_once_and_answered_again():
    market = opened()
    order = {"op": "order", "trader": "ann", "order": 5, "side": "sell", "goods": "ore", "limit": 50, "count": 2}
    answer, changed = market.apply(0, order)
    assert changed
    assert market.apply(0, order) == (answer | {"again": True}, False)
    assert len(market.orders) == 1
    with pytest.raises(Refusal, match=r"'ann' has come to 5, and 4 is not among its last 16.*go on with 6"):
        market.apply(0, order | {"order": 4})


# --- on disk, and with the registry -------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Commerce]:
    service = Commerce(options(tmp_path), Meter())
    yield service
    service.close()


def test_what_a_full_disk_refuses_has_not_happened_and_may_be_sent_again(service: Commerce):
    market = service.market
    market.apply(0, {"op": "enter", "trader": "ann", "key": "k", "coins": 100, "goods": {"ore": 9}})
    service.journal.keep(0, [], json.dumps(dump(market)))
    kept, order = state(market), {"op": "order", "trader": "ann", "order": 1, "side": "buy", "limit": 5, "count": 2}
    order["goods"] = "ore"
    pages = service.journal.db.execute("PRAGMA page_count").fetchone()[0]
    service.journal.db.execute(f"PRAGMA max_page_count = {pages}")
    market.apply(0, order)
    with pytest.raises(sqlite3.Error, match="full"):
        service.journal.keep(0, [order | {"pad": "x" * 100_000}])
    market = service.journal.load()
    assert state(market) == kept
    service.journal.db.execute("PRAGMA max_page_count = 100000")
    assert market.apply(0, order)[1]
    service.journal.keep(0, [order])
    assert state(service.journal.load()) == state(market)


def test_a_damaged_file_and_one_in_use_are_refused(tmp_path: Path):
    with contextlib.closing(Journal(tmp_path)) as journal:
        journal.load()
        with pytest.raises(OSError, match=r"market\.db cannot be used: database is locked"):
            Journal(tmp_path)
        journal.keep(0, [{"op": "tick"}])
        journal.keep(0, [{"op": "tick"}])
        journal.db.execute("DELETE FROM batch WHERE number = 1")
        with pytest.raises(OSError, match=r"damaged \(batch 1 is missing\): restore the folder from a copy"):
            journal.load()


def test_a_lot_waits_for_the_registry_at_both_ends():
    """No answer: coins and item stay. A refusal undoes a listing; a yes, however late and however often, settles once."""
    market = opened(custody=True)
    lost = market.tell("ann", "list", item="ann/1", reserve=50, seconds=1)["lot"]
    market.apply(0, {"op": "lost", "lot": lost})
    assert "ann/1" not in market.items
    lot = market.tell("ann", "list", item="ann/0", reserve=50, seconds=1)["lot"]
    assert market.moving == [lost, lot]
    with pytest.raises(Refusal, match="not open"):
        market.tell("bob", "bid", lot=lot, most=70)
    market.apply(0, {"op": "arrived", "lot": lot})
    market.tell("bob", "bid", lot=lot, most=70)
    with pytest.raises(Refusal, match="not arriving any more"):
        market.apply(0, {"op": "arrived", "lot": lot})
    market.apply(1000, {"op": "tick"})
    assert (market.lots[lot].state, market.traders["bob"].coins, market.traders["ann"].coins) == ("leaving", 1950, 2000)
    assert "ann/0" not in market.items
    market.check()
    market.apply(1000, {"op": "left", "lot": lot})
    assert (market.items["ann/0"], market.traders["bob"].coins, market.traders["ann"].coins) == ("bob", 1950, 2050)
    with pytest.raises(Refusal, match="not leaving any more"):
        market.apply(1000, {"op": "left", "lot": lot})
    market.check()


def test_a_market_that_is_opened_without_its_registry_waits_for_it_no_longer():
    market = opened(custody=True)
    for item in ("ann/0", "ann/1"):
        market.tell("ann", "list", item=item, reserve=50, seconds=1)
    market.apply(0, {"op": "arrived", "lot": 1})
    market.apply(1000, {"op": "tick"})
    market.apply(2000, {"op": "open", "fee": 0, "custody": False, "goods": []})
    assert market.items["ann/0"] == "ann"
    assert market.lots[2].state == "open"
    market.check()


# --- the running program ------------------------------------------------------------------------------------------

KEY = "the operator's own key"


class Trader:
    """Somebody who trades over a socket, and repeats what was not answered."""

    def __init__(self, name: str, key: str):
        self.name, self.key, self.next = name, key, 1

    def signed(self, op: str, **fields: Any) -> Fields:
        command = {"op": op, "trader": self.name, **fields}
        return command | {"tag": signature(self.key, command)}

    def command(self, op: str, **fields: Any) -> Fields:
        self.next += 1
        return self.signed(op, order=self.next - 1, **fields)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "operator"
    path.write_text(KEY + "\n")
    return path


def goods_and_coins(caller: Caller, traders: list[Trader]) -> tuple[int, int]:
    """Add up what some traders have, at hand and at rest."""
    goods = coins = 0
    for trader in traders:
        account = caller.ask(**trader.signed("account"))
        assert account["ok"], account
        coins += account["coins"] + sum(o["limit"] * o["left"] for o in account["orders"] if o["buys"])
        goods += account["items"]["tin"] + sum(o["left"] for o in account["orders"] if not o["buys"])
    return goods, coins


def test_a_killed_market_has_kept_what_it_acknowledged_and_took_nothing_twice(tmp_path: Path, key_file: Path):
    """kill -9 in the middle of trading, twice over. Tin is traded by us alone, so our coins and our tin stay ours."""
    rng, data = random.Random(11), tmp_path / "data"
    treasury, traders = Trader(TREASURY, KEY), [Trader(f"me{k}", f"key{k}") for k in range(3)]
    pending: tuple[Trader, Fields] | None = None
    acknowledged: dict[str, tuple[Fields, Fields]] = {}
    more = ("--data", str(data), "--operator", str(key_file), "--fee", "0")
    answered = 0
    for life in range(3):
        with running("commerce", 20, *more) as program, Caller(program.port) as caller:
            for trader in traders:
                assert caller.ask(op="enter", trader=trader.name, key=trader.key)["ok"]
            if not life:
                for trader in traders:
                    mint = treasury.command("mint", to=trader.name, goods={"tin": 1000}, coins=10**6)
                    assert caller.ask(**mint)["ok"]
                total = goods_and_coins(caller, traders)
                assert total == (3000, 3 * (10**6 + 20_000))
            assert goods_and_coins(caller, traders) == total
            for trader in traders:  # what was acknowledged is answered again, and has not been taken again
                if trader.name in acknowledged:
                    command, answer = acknowledged[trader.name]
                    again = caller.ask(**command)
                    assert again["again"]
                    assert again["number"] == answer["number"]
            if pending:
                answer = caller.ask(**pending[1])  # a repeat of what may or may not have happened
                assert answer["ok"] or "itself" in answer["error"], answer
                pending = None
                assert goods_and_coins(caller, traders) == total
            if life == 2:
                break
            threading.Timer(0.5 + rng.random() * 0.5, program.child.kill).start()
            with contextlib.suppress(ConnectionError, OSError):
                while True:
                    trader = rng.choice(traders)
                    order = {"side": rng.choice(("buy", "sell")), "goods": "tin", "limit": rng.randrange(90, 111)}
                    command = trader.command("order", **order, count=rng.randrange(1, 5))
                    pending = trader, command
                    answer = caller.ask(**command)
                    if answer["ok"]:
                        acknowledged[trader.name] = command, answer
                        answered += 1
                    else:
                        assert "itself" in answer["error"], answer
                    pending = None
    assert answered > 20


def sold(program: Running, enough: int) -> None:
    """Wait until so many lots were settled."""
    until = time.monotonic() + 20
    while sum(line["metrics"]["settled"] for _, line in program.said) < enough:
        assert time.monotonic() < until, program.said
        time.sleep(0.05)


def test_market_and_registry_agree_on_every_item_though_both_were_killed(tmp_path: Path):
    """One is killed, then the other, with auctions under way. Then no item is with two, and none with nobody."""
    books, shelf = ("--data", str(tmp_path / "market")), ("--data", str(tmp_path / "items"))
    with contextlib.ExitStack() as registry, running("assets", 2, *shelf) as first:
        with running("commerce", 20, *books, peers={"assets": first.port}) as program:
            sold(program, 20)
            first.child.kill()
            first.child.wait()
            with_port = ("--listen", f"127.0.0.1:{first.port}")  # of two flags the later one counts
            registry.enter_context(running("assets", 2, *with_port, *shelf))
            sold(program, sum(line["metrics"]["settled"] for _, line in program.said) + 20)
            program.child.kill()
        with running("commerce", 20, *books, peers={"assets": first.port}) as program:
            sold(program, 20)
            program.child.kill()
    with (
        contextlib.closing(Journal(tmp_path / "market")) as journal,
        contextlib.closing(Store(tmp_path / "items")) as store,
    ):
        market = journal.load()
        owners = dict(store.db.execute("SELECT name, owner FROM item WHERE name LIKE 'market0/%'"))
    assert len(owners) == 160 == market.made["items"]
    places = {item: {f"market0:{name}"} for item, name in market.items.items()}
    for lot in market.lots.values():
        ends = {"arriving": {f"market0:{lot.seller}", "market0"}, "leaving": {"market0", f"market0:{lot.taker}"}}
        places[lot.item] = ends.get(lot.state, {"market0"})
    assert places.keys() == owners.keys()
    assert [item for item in owners if owners[item] not in places[item]] == []


def test_only_the_key_signs_and_only_the_operator_mints(tmp_path: Path, key_file: Path):
    with running("commerce", 2, "--exchange", "100000:2000000", "--operator", str(key_file)) as program:
        ann, treasury, eve = Trader("ann", "secret"), Trader(TREASURY, KEY), Trader(TREASURY, "guess")
        with Caller(program.port) as caller:
            assert caller.ask(op="enter", trader="ann", key="secret")["coins"] == 20_000
            assert "another key" in caller.ask(op="enter", trader="ann", key="other")["error"]
            assert caller.ask(op="enter", trader="ann", key="secret")["ok"]
            swap = ann.command("swap", give="coins", amount=500)
            assert "does not sign" in caller.ask(**swap | {"amount": 400})["error"]
            got = caller.ask(**swap)["got"]
            assert caller.ask(**ann.signed("account"))["credits"] == got > 0
            assert "does not sign" in caller.ask(**eve.command("mint", to="ann", coins=1))["error"]
            assert "only 'treasury' may mint" in caller.ask(**ann.command("mint", to="ann", coins=1))["error"]
            assert caller.ask(**treasury.command("mint", to="ann", item="crown"))["ok"]
            assert "crown" in caller.ask(**ann.signed("account"))["unique"]
            assert caller.ask(op="exchange")["coins"] == 100_500
    with running("commerce", 2) as program, Caller(program.port) as caller:
        assert "start the market with --operator FILE" in caller.ask(**treasury.command("mint", to="x"))["error"]


@linux
def test_a_failing_disk_is_told_and_what_it_refused_may_be_sent_again(tmp_path: Path):
    """The kernel refuses every byte to files (EFBIG, as a full disk does) for a while, without a word to the program."""
    resource = pytest.importorskip("resource", reason="linux: limits another process")
    ann = Trader("ann", "secret")
    with running("commerce", 5, "--data", str(tmp_path)) as program, Caller(program.port) as caller:
        assert caller.ask(op="enter", trader="ann", key="secret")["ok"]
        order = ann.command("order", side="buy", goods="ore", limit=1, count=7)
        resource.prlimit(program.child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        refused = caller.ask(**order)
        assert "not stored" in refused["error"], refused
        assert "Send it again under its number" in refused["error"]
        resource.prlimit(program.child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until = time.monotonic() + 10
        while not (answer := caller.ask(**order))["ok"]:
            assert time.monotonic() < until, answer
        account = caller.ask(**ann.signed("account"))
        assert (account["coins"], len(account["orders"])) == (20_000 - 7, 1)
        program.child.kill()
    with contextlib.closing(Journal(tmp_path)) as journal:
        assert len(journal.load().traders["ann"].orders) == 1


@linux
def test_the_market_counts_what_it_is_asked_and_says_what_that_takes():
    with running("commerce", 20) as program:
        program.wait_for_lines(4)
        line = program.said[-1][1]
    assert line["asked"] > 100
    assert line["in_time"] / line["asked"] > 0.5
    assert line["wanted"]["cpu"] > 0
    assert line["wanted"]["storage"] > 0
    assert {"orders", "settled", "resting", "lots", "treasury", "p99_ms"} <= line["metrics"].keys()


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("--fee", "5001", "Write basis points, a whole number from 0 to 5000"),
        ("--exchange", "5", "Write for example 1000000:5000000"),
        ("--operator", "/nowhere/key", "cannot be read"),
    ],
)
def test_a_wrong_flag_of_the_market_is_told_in_one_line(flag: str, value: str, why: str):
    command = [sys.executable, "-m", "apportion.workloads.commerce", flag, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert value in done.stderr.splitlines()[-1]
    assert why in done.stderr.splitlines()[-1]


def test_the_example_of_the_documentation_trades(root: Path):
    page = (root / "docs" / "marketplace.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    with running("commerce", 1, "--without-load") as program, Caller(program.port):
        done = subprocess.run(
            [sys.executable, "-c", example.replace("7000", str(program.port))],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert "'ok': True" in done.stdout, done.stderr
        assert "'left': 2" in done.stdout
        program.wait_for_lines(1)
    assert program.said[-1][1]["metrics"]["coins"] == 20_000  # nobody else is there
    told = (*TRADERS, *READING, *Commerce.flags)
    assert [name for name in told if f"`{name}" not in page] == []
