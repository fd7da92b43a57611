"""How fast the log writes, proves and is audited: each beside the least that it could cost, in the same run.

    python benchmarks/ledger.py [FOLDER]

FOLDER should lie on a real disk: an append is as durable as its fdatasync. Writes nothing elsewhere and leaves nothing. Wall
seconds are the best of three; CPU seconds beside them are what a busy machine leaves comparable.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from apportion.audit import verify
from apportion.clearing.clear import clear
from apportion.clearing.fix import fix
from apportion.core.market import Market, Pools, Tasks
from apportion.core.round import Outcome
from apportion.ledger import records, tree
from apportion.ledger.canonical import read_entry
from apportion.ledger.checkpoint import open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Signer
from apportion.settlement.settle import settle

BATCH, BATCHES, SIZE = 1024, 40, 1024
COUNT = BATCH * BATCHES
ROUNDS, TASKS, POOLS = 1000, 100, 4
KEY = Signer("bench.example", bytes(32))


def best(run: Callable[[], object], times: int = 3) -> tuple[float, float]:
    """Give the least wall seconds that a run takes, and its least CPU seconds."""
    took = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        took.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in took), min(cpu for _, cpu in took)


def line(name: str, count: int, took: tuple[float, float], what: str, target: str = "") -> None:
    wall, cpu = (f"{count / seconds:>11,.0f}" for seconds in took)
    print(f"{name:<9}{wall}/s wall {cpu}/s CPU   {what}{f'  (asked: {target})' if target else ''}", flush=True)


def appends(folder: Path) -> Path:
    """Durable appends, beside bare hashing and bare syncing of the same bytes."""
    text = "x" * (SIZE - len(records.note("0.000", "000000").seal(b"")[0]))
    written = [[records.note("0.000", f"{b * BATCH + k:06d}{text}") for k in range(BATCH)] for b in range(BATCHES)]
    entries = [record.seal(b"")[0] for batch in written for record in batch]
    assert {len(e) for e in entries} == {SIZE}
    path = folder / "appends.db"

    def write() -> None:
        for file in folder.glob("appends.db*"):
            file.unlink()
        with Log.create(path, KEY) as log:
            for batch in written:
                log.append(batch)

    def plain() -> None:
        with open(folder / "plain", "wb") as file:
            for b in range(BATCHES):
                file.write(b"".join(entries[b * BATCH : (b + 1) * BATCH]))
                file.flush()
                os.fdatasync(file.fileno())

    append, synced = best(write), best(plain)
    hashed = best(lambda: [hashlib.sha256(e).digest() for e in entries])
    line("append", COUNT, append, f"{SIZE} bytes, {BATCH} a commit, a signed head each, fdatasync", "40,000 wall")
    line("", COUNT, hashed, f"bare SHA-256: an append costs {append[0] / hashed[0]:.1f} times that")
    line(
        "",
        COUNT,
        synced,
        f"plain writes, one fdatasync a commit: an append costs {append[0] / synced[0]:.1f} times that",
    )
    return path


def audits(path: Path) -> None:
    """An audit's hashes, tree and signatures; parsing apart; and inclusion proofs."""
    with Log.open(path) as log:
        stored, heads = list(log.entries()), [note for _, note in log.heads()]
        root, places = log.merkle().root(), range(0, COUNT, 7)
        read = best(lambda: list(log.entries()))
        made = best(lambda: [log.merkle().inclusion(k, COUNT) for k in places])
        proofs = [(k, tree.leaf(stored[k]), log.merkle().inclusion(k, COUNT)) for k in places]

    def audit() -> None:
        frontier = tree.Frontier()
        for b, note in enumerate(heads):
            frontier.extend([tree.leaf(e) for e in stored[b * BATCH : (b + 1) * BATCH]])
            assert open_head(note, KEY.verifier)[0].root == frontier.root()

    line("audit", COUNT, best(audit), "hashes, tree, signatures", "150,000 per core")
    line("", COUNT, read, "reading from the store")
    line("", COUNT, best(lambda: [read_entry(e) for e in stored]), "parsing, and writing again to compare")
    line("", COUNT, best(lambda: verify(path, KEY.verifier, level=0), 1), "`verify --level 0`, all of it")
    checked = best(lambda: [tree.verify_inclusion(k, COUNT, leaf, root, p) for k, leaf, p in proofs])
    line("proofs", len(places), checked, f"inclusion verified, {COUNT:,} leaves", "40,000")
    line("", len(places), made, "inclusion made")


def played(path: Path) -> None:
    """Write rounds as an engine would: half of the demand does not fit, every task may use every pool."""
    rng = np.random.default_rng(0)
    resources, accounts = ("cpu", "memory", "bandwidth"), 10
    entitlement = np.full(accounts, 1 / accounts)
    balance = np.full(accounts, 10**9)
    base = rng.integers(100, 6000, (TASKS, 3)).astype(float)
    pools = Pools(
        tuple(f"node-{j}" for j in range(POOLS)), resources, np.tile(np.floor(base.sum(axis=0) / 2 / POOLS), (POOLS, 1))
    )
    account = rng.integers(0, accounts, TASKS)
    ones, zeros = np.ones(TASKS), np.zeros(TASKS)
    opening = {
        "accounts": tuple(f"account-{a}" for a in range(accounts)),
        "entitlement": entitlement,
        "balance": balance,
    }
    about = {
        "world": "bench",
        "digest": "00" * 32,
        "policy": "market",
        "seed": 0,
        "engine": "sim",
        "round_seconds": 1.0,
    }
    with Log.create(path, KEY) as log:
        log.append(
            [
                records.genesis(
                    "0.000", resources=resources, alpha=0.0, kappa=4.0, credits_per_round=10**8, **opening, **about
                )
            ]
        )
        for number in range(ROUNDS):
            demand = np.floor(base * rng.uniform(0.5, 1.5, (TASKS, 1)))
            tasks = Tasks(
                name=tuple(f"task-{i}" for i in range(TASKS)),
                kind=("game",) * TASKS,
                account=account,
                sponsor=np.full(TASKS, -1),
                demand=demand,
                base=base,
                surge=ones,
                floor=zeros,
                cap=ones,
                weight=ones,
                priority=np.zeros(TASKS, np.int64),
                target=np.full(TASKS, 0.95),
                eligible=(tuple(range(POOLS)),) * TASKS,
            )
            bid = np.floor(balance[account] / 100 / TASKS) / 1e6
            value = np.round(rng.uniform(0.3, 1.0, (TASKS, POOLS)), 4)
            market = Market(demand, pools.capacity, bid, value, tasks=tasks.name, pools=pools.name, resources=resources)
            log.append([records.demand(number, f"{number}.000", tasks, pools, market, balance)])
            allocation = fix(clear(market))
            log.append([records.decision(number, f"{number}.100", allocation, "market")])
            asked = rng.integers(1, 1000, TASKS)
            outcome = Outcome(allocation.granted, asked, asked * 9 // 10, "sim", ("measured",) * 3)
            bills = settle(tasks, allocation, outcome, balance, entitlement, 0.0, 4.0, int(balance.sum()))
            balance = balance + bills.postings.net(accounts)
            done = records.outcome(number, f"{number}.900", outcome, allocation)
            log.append([done, records.bills(number, f"{number}.900", bills, balance, tasks)])


def economics(folder: Path) -> None:
    """The default audit of a run, and how long the verb takes to start."""
    path = folder / "played.db"
    played(path)
    (folder / "key").write_text(KEY.verifier.text)
    took = best(lambda: verify(path, KEY.verifier, level=2), 1)
    what = f"rounds of {TASKS} tasks in {POOLS} pools by `verify --level 2`: {took[1]:.1f} s of CPU, {took[0]:.1f} s"
    line("verify", ROUNDS, took, what, "10 s for 1,000 rounds")
    took = best(lambda: Log.open(path, KEY).close(), 1)
    line("", ROUNDS, took, f"rounds when the same log is opened to go on with it: {took[1]:.1f} s of CPU")
    code = "import time; import apportion.serve.cli; from apportion.audit import verify; print(time.process_time())"
    start = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    )
    print(f"start    {start:11.2f} s of CPU until `verify` begins  (asked: 0.5)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as at:
        audits(appends(Path(at)))
        economics(Path(at))
