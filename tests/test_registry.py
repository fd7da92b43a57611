"""The asset registry loses nothing that it acknowledged: not to kill -9, not to a full disk, not halfway."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shipped import Caller, faults, linux, owners, running

from apportion.workloads.assets import Store


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
        assert faults(store) == []


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
            assert faults(store) == []
            owned = owners(store)
            for item in owner:
                found = tell(store, op="get", item=item)
                assert found["hash"] in content[item]
                assert owned.get(item, "a") in owner[item]
                owner[item], content[item] = [owned.get(item, "a")], [found["hash"]]
            assert content  # the killing left time to do something


def test_a_move_happens_wholly_or_not_at_all(store: Store):
    tell(store, op="mint", owners={"sword": "ann", "map": "bob"}, data=packed(b"thing"))
    refused = tell(store, op="move", moves=[["sword", "ann", "bob"], ["map", "ann", "bob"], ["boat", "ann", "bob"]])
    assert "boat" in refused["error"]
    assert owners(store) == {"sword": "ann", "map": "bob"}
    assert "belongs to 'bob'" in tell(store, op="move", moves=[["sword", "ann", "eve"], ["map", "eve", "ann"]])["error"]
    assert owners(store) == {"sword": "ann", "map": "bob"}
    for _ in range(2):  # asking again after a lost answer does no harm
        assert tell(store, op="move", moves=[["sword", "ann", "bob"], ["map", "bob", "bob"]]) == {"moved": 2}
        assert owners(store) == {"sword": "bob", "map": "bob"}


def test_a_late_request_changes_nothing(store: Store):
    put = {"op": "put", "item": "sword", "owner": "ann", "data": packed(b"steel")}
    assert store.apply([(time.monotonic() - 1, put)]) == [{"error": "late"}]
    assert owners(store) == {}


def test_content_is_stored_once_and_goes_with_its_last_item(store: Store):
    blobs = lambda: store.db.execute("SELECT refs FROM blob ORDER BY refs").fetchall()  # noqa: E731
    for item in ("one", "two"):
        tell(store, op="put", item=item, owner="ann", data=packed(b"same"))
    assert blobs() == [(2,)]
    tell(store, op="put", item="two", owner="ann", data=packed(b"other"))
    assert blobs() == [(1,), (1,)]
    tell(store, op="put", item="one", owner="ann", data=packed(b"other"))
    assert blobs() == [(2,)]
    assert faults(store) == []


def test_damaged_content_is_found_and_not_given_out(store: Store):
    tell(store, op="put", item="sword", owner="ann", data=packed(b"steel"))
    store.db.execute("UPDATE blob SET data = ?", (b"stool",))
    assert "hash" in tell(store, op="get", item="sword")["error"]
    assert len(faults(store)) == 1


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
    assert owners(store) == {"sword": "ann"}
    assert faults(store) == []
    assert store.count() == store.created == 1
