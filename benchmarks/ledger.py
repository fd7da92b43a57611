"""How fast the log writes, proves and is audited: each beside the least that it could cost, in the same run.

    python benchmarks/ledger.py [FOLDER]

FOLDER should lie on a real disk: an append is as durable as its fdatasync. Writes nothing elsewhere and leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from apportion.audit import verify
from apportion.ledger import records, tree
from apportion.ledger.canonical import read_entry
from apportion.ledger.checkpoint import open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Signer

BATCH, BATCHES, SIZE = 1024, 40, 1024
COUNT = BATCH * BATCHES


def best(run: Callable[[], object], times: int = 3) -> float:
    """Give the least seconds that a run takes: what the machine can do when nothing else asks of it."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def main(folder: Path) -> None:
    text = "x" * (SIZE - len(records.note("0.000", "000000").seal(b"")[0]))
    written = [[records.note("0.000", f"{b * BATCH + k:06d}{text}") for k in range(BATCH)] for b in range(BATCHES)]
    entries = [record.seal(b"")[0] for batch in written for record in batch]
    assert {len(e) for e in entries} == {SIZE}

    key, path = Signer("bench.example", bytes(32)), folder / "ledger.db"

    def write() -> None:
        for file in folder.glob("ledger.db*"):
            file.unlink()
        with Log.create(path, key) as log:
            for batch in written:
                log.append(batch)

    def plain_disk() -> None:
        with open(folder / "plain", "wb") as file:
            for b in range(BATCHES):
                file.write(b"".join(entries[b * BATCH : (b + 1) * BATCH]))
                file.flush()
                os.fdatasync(file.fileno())

    append, plain = best(write), best(plain_disk)
    sha = best(lambda: [hashlib.sha256(e).digest() for e in entries])
    print(
        f"append   {COUNT / append:>10,.0f} entries/s  ({SIZE} bytes, {BATCH} a commit, one signed head each, fdatasync)"
    )
    print(
        f"         {append / sha:>10.1f} x bare SHA-256 ({COUNT / sha:,.0f}/s), {append / plain:.1f} x plain writes with one fdatasync a commit"
    )

    with Log.open(path) as log:
        stored, heads = list(log.entries()), [note for _, note in log.heads()]
        read = best(lambda: list(log.entries()))

        def audit() -> None:
            frontier = tree.Frontier()
            for b, note in enumerate(heads):
                frontier.extend([tree.leaf(e) for e in stored[b * BATCH : (b + 1) * BATCH]])
                assert open_head(note, key.verifier)[0].root == frontier.root()

        hashing, parsing = best(audit), best(lambda: [read_entry(e) for e in stored])
        whole = best(lambda: verify(path, key.verifier, level=0), 1)
        print(
            f"audit    {COUNT / hashing:>10,.0f} entries/s  (hashes, tree, signatures), reading {COUNT / read:,.0f}/s, parsing {COUNT / parsing:,.0f}/s"
        )
        print(f"         {COUNT / whole:>10,.0f} entries/s  (`verify --level 0`, everything)")

        size, root, places = COUNT, log.merkle().root(), range(0, COUNT, 7)
        proofs = [(k, tree.leaf(stored[k]), log.merkle().inclusion(k, size)) for k in places]
        proving = best(lambda: [log.merkle().inclusion(k, size) for k in places])
        checking = best(lambda: [tree.verify_inclusion(k, size, leaf, root, p) for k, leaf, p in proofs])
        print(
            f"proofs   {len(places) / checking:>10,.0f} checked/s, {len(places) / proving:,.0f} made/s  ({size:,} leaves)"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as at:
        main(Path(at))
