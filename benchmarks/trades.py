"""The marketplace under real trades: the running program replays them, and every coin and good is counted after.

    python benchmarks/trades.py [--rows 4000] [--flying 32] [--json FILE]

Reads APPORTION_DATA/trades (default ../shared/data/trades) and prints, for each part of it,

    wow     an auction house's ledger: each row is a sell order and a buy order that meet, fee 5 %
    cdnow   purchases in a shop: one seller, many buyers
    ebay    auctions with all their bids, side by side, as proxy bids; compared with settlement's `second_price`

commands a second, latency from sending to the answer that is on disk, and whether each account holds what plain addition
says. Beside it the same commands on the rules alone, in memory: what disk, sockets and signatures cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from apportion.settlement.lots import second_price
from apportion.workloads.commands import Refusal, signature
from apportion.workloads.market import BASIS, TREASURY, Market
from apportion.workloads.net import LATE, Line, on_wire

DATA = Path(os.environ.get("APPORTION_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "trades"
FEE = 500  # basis points, as that auction house takes
KEY = "benchmark operator's key"
PURSE = 20_000  # coins that every newcomer brings
AUCTION_SECONDS = 8


@dataclass
class Replay:
    """What is to be played, and what each account must hold in the end."""

    name: str
    commands: list[dict[str, Any]] = field(default_factory=list)  # trader, op and what it says
    coins: Counter[str] = field(default_factory=Counter)  # to be minted
    goods: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    items: dict[str, str] = field(default_factory=dict)  # item -> owner
    received: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    bought: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    left_out: int = 0  # rows that are no trade

    def trade(self, seller: str, buyer: str, goods: str, count: int, price: int) -> None:
        order = {"op": "order", "goods": goods, "count": count, "limit": price}
        self.commands += [order | {"trader": seller, "side": "sell"}, order | {"trader": buyer, "side": "buy"}]
        self.goods[seller][goods] += count
        self.bought[buyer][goods] += count
        self.coins[buyer] += count * price
        self.paid[buyer] += count * price
        self.received[seller] += count * price

    def traders(self) -> list[str]:
        return sorted({command["trader"] for command in self.commands})


def wow(rows: int) -> Replay:
    out = Replay("wow")
    query = (
        f"SELECT * FROM '{DATA / 'wow_auction_ledger.parquet'}' ORDER BY ts_unix, item_id, counterparty LIMIT {rows}"
    )
    table = duckdb.sql(query)
    for row in table.fetchall():
        one = dict(zip(table.columns, row, strict=True))
        other, own, price = one["counterparty"], one["player"], int(one["unit_price_copper"])
        if other == own or price < 1 or one["quantity"] < 1:
            out.left_out += 1
            continue
        seller, buyer = (other, own) if one["side"] == "buy" else (own, other)
        out.trade(seller, buyer, one["item_id"], int(one["quantity"]), price)
    return out


def cdnow(rows: int) -> Replay:
    out = Replay("cdnow")
    query = f"SELECT customer_id, number_of_cds, dollar_value FROM '{DATA / 'cdnow.csv.gz'}' ORDER BY date LIMIT {rows}"
    for customer, count, dollars in duckdb.sql(query).fetchall():
        if dollars <= 0:
            out.left_out += 1
            continue
        out.trade("shop", f"customer{customer}", "cd", int(count), max(1, round(100 * dollars / count)))
    return out


def ebay(rows: int) -> Replay:
    out = Replay("ebay")
    query = f"SELECT auctionid, bidder, bid, openbid FROM '{DATA / 'ebay_bids.csv.gz'}' ORDER BY auctionid, bidtime"
    auctions: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for auction, bidder, bid, opens in duckdb.sql(query).fetchall()[:rows]:
        if bidder is None:
            out.left_out += 1
            continue
        auctions[auction].append((f"bidder{bidder}", round(100 * bid), max(1, round(100 * opens))))
    bids: list[dict[str, Any]] = []
    for auction, told in auctions.items():
        item, reserve, most = f"item{auction}", told[0][2], dict[str, int]()
        sale = {"op": "list", "trader": "house", "item": item, "reserve": reserve, "seconds": AUCTION_SECONDS}
        out.commands.append(sale)
        for bidder, bid, _ in told:
            bids.append({"op": "bid", "trader": bidder, "lot": item, "most": bid})
            out.coins[bidder] += bid
            most[bidder] = max(bid, most.get(bidder, 0))
        names = list(dict.fromkeys(name for name, bid, _ in told if bid == most[name]))  # as they reached their highest
        result = second_price(np.array([most[name] for name in names]), reserve)
        out.items[item] = "house"
        if result.winners:
            winner = names[result.winners[0]]
            out.paid[winner] += result.price
            out.received["house"] += result.price
    out.commands += bids
    return out


class Caller:
    """One connection with so many commands under way."""

    def __init__(self, flying: int):
        self.line = Line(lambda message, _: self.hear(message))
        self.room, self.news = asyncio.Semaphore(flying), 0
        self.sent: dict[int, tuple[float, dict[str, Any], asyncio.Future[dict[str, Any]]]] = {}
        self.order: Counter[str] = Counter()
        self.delays: list[float] = []
        self.again = self.number = 0

    async def ask(self, key: str, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command, again under a new number where it came too late; give the answer."""
        while True:
            async with self.room:
                signed = command
                if command["op"] not in ("enter", "account"):
                    self.order[command["trader"]] += 1
                    signed = command | {"order": self.order[command["trader"]]}
                self.number += 1
                tag, now = signature(key, signed), time.monotonic()
                answer = asyncio.get_running_loop().create_future()
                self.sent[self.number] = now, signed, answer
                self.line.send(signed | {"tag": tag, "id": self.number, "due": on_wire(now + 1)})
                told = await answer
            if told.get("error") != LATE:
                return told
            self.again += 1

    def hear(self, message: dict[str, Any]) -> None:
        if message.get("id") in self.sent:
            since, _, answer = self.sent.pop(message["id"])
            self.delays.append(time.monotonic() - since)
            answer.set_result(message)

    async def all(self, keys: dict[str, str], commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send commands, in this order, as fast as there is room."""
        return list(await asyncio.gather(*(self.ask(keys[command["trader"]], command) for command in commands)))


async def played(replay: Replay, port: int, flying: int) -> dict[str, Any]:
    """Play against the running program; give the figures."""
    caller = Caller(flying)
    for _ in range(100):
        try:
            await asyncio.get_running_loop().create_connection(lambda: caller.line, "127.0.0.1", port)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.1)
    names = [*replay.traders()]
    keys = {name: f"key of {name}" for name in names} | {TREASURY: KEY}
    must(await caller.all(keys, [{"op": "enter", "trader": name, "key": keys[name]} for name in names]))
    mint = {"op": "mint", "trader": TREASURY}
    purses = [mint | {"to": name, "coins": replay.coins[name], "goods": replay.goods[name]} for name in names]
    purses += [mint | {"to": owner, "item": item} for item, owner in replay.items.items()]
    must(await caller.all(keys, purses))

    caller.delays.clear()
    begun, cpu = time.monotonic(), caller.again
    if replay.items:
        sales = [command for command in replay.commands if command["op"] == "list"]
        lots = {sale["item"]: told["lot"] for sale, told in zip(sales, await caller.all(keys, sales), strict=True)}
        rest = [command | {"lot": lots[command["lot"]]} for command in replay.commands if command["op"] == "bid"]
        answers = await caller.all(keys, rest)
        refused = sum(not told["ok"] for told in answers)  # bids below where their lot stood
        seconds = time.monotonic() - begun
        if seconds > AUCTION_SECONDS:
            sys.exit(f"the bids took {seconds:.1f} s, longer than the auctions last: try fewer --rows")
        await asyncio.sleep(AUCTION_SECONDS + 0.5)
    else:
        answers, refused = must(await caller.all(keys, replay.commands)), 0
        seconds = time.monotonic() - begun
    delays = sorted(caller.delays)
    accounts = await caller.all(keys, [{"op": "account", "trader": name} for name in names])
    wrong = [name for name, account in zip(names, accounts, strict=True) if not right(replay, name, account)]
    caller.line.close()
    return {
        "commands": len(replay.commands),
        "refused": refused,
        "late": caller.again - cpu,
        "per_second": round(len(replay.commands) / seconds),
        "p50_ms": round(1e3 * statistics.median(delays), 1),
        "p99_ms": round(1e3 * delays[int(0.99 * len(delays))], 1),
        "accounts": len(names),
        "wrong": wrong,
    }


def must(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for told in answers:
        if not told["ok"]:
            sys.exit(f"the market refuses what the trades say: {told['error']}")
    return answers


def right(replay: Replay, name: str, account: dict[str, Any]) -> bool:
    """Tell whether an account holds what plain addition says."""
    received = replay.received[name] - replay.received[name] * FEE // BASIS
    coins = PURSE + replay.coins[name] - replay.paid[name] + received
    goods = {what: count for what, count in account["items"].items() if what in replay.bought[name]}
    return (account["coins"], account["orders"]) == (coins, []) and goods == dict(replay.bought[name])


def in_memory(replay: Replay) -> float:
    """Play the same on the rules alone; give commands a second."""
    market, order = Market(), Counter[str]()
    market.apply(0, {"op": "open", "fee": FEE, "custody": False, "goods": []})
    for name in replay.traders():
        items = [item for item, owner in replay.items.items() if owner == name]
        purse = {"coins": replay.coins[name] + PURSE, "goods": replay.goods[name], "items": items}
        market.apply(0, {"op": "enter", "trader": name, "key": "k", **purse})
    lots: dict[str, int] = {}
    begun = time.perf_counter()
    for command in replay.commands:
        order[command["trader"]] += 1
        told = command | {"order": order[command["trader"]]}
        try:
            answer = market.apply(0, told | ({"lot": lots[command["lot"]]} if command["op"] == "bid" else {}))[0]
        except Refusal:
            order[command["trader"]] -= 1
            continue
        if command["op"] == "list":
            lots[command["item"]] = answer["lot"]
    seconds = time.perf_counter() - begun
    market.check()
    return len(replay.commands) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="of each file")
    parser.add_argument("--flying", type=int, default=32, help="commands under way at a time")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there. Set APPORTION_DATA to the folder that holds `trades`.")
        return
    result, head = {}, ("commands", "refused", "late", "per_second", "p50_ms", "p99_ms", "accounts")
    print(f"{'':8}" + "".join(f"{name:>12}" for name in (*head, "wrong", "in memory", "ratio", "left out")))
    for read in (wow, cdnow, ebay):
        replay = read(args.rows)
        with tempfile.TemporaryDirectory(prefix="apportion-bench-") as folder:
            (secret := Path(folder) / "operator").write_text(KEY)
            port = _free_port()
            command = [
                sys.executable,
                "-m",
                "apportion.workloads.commerce",
                "--without-load",
                "--data",
                f"{folder}/data",
            ]
            command += ["--listen", f"127.0.0.1:{port}", "--operator", str(secret), "--fee", str(FEE)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as program:
                try:
                    row = asyncio.run(played(replay, port, args.flying))
                finally:
                    program.terminate()
        memory = in_memory(replay)
        row |= {"in_memory": round(memory), "left_out": replay.left_out}
        result[replay.name] = row
        figures = [
            *(row[name] for name in head),
            len(row["wrong"]),
            round(memory),
            round(memory / row["per_second"], 1),
        ]
        print(f"{replay.name:8}" + "".join(f"{figure:>12}" for figure in (*figures, replay.left_out)), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if any(row["wrong"] for row in result.values()):
        sys.exit("an account does not hold what the trades say")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
