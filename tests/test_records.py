"""What is written of a round is what is read of it."""

from __future__ import annotations

import dataclasses
import json
import re
from hashlib import sha256
from pathlib import Path

import golden_round
import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from small_log import ENTITLEMENT, RESOURCES, Played, genesis, opening, play

from apportion.audit import verify
from apportion.core.errors import BadInput, Refused
from apportion.core.market import Market
from apportion.core.round import Posting
from apportion.ledger import canonical, numbers, reading, records, tree
from apportion.ledger.canonical import Record, open_table, read_entry, seal_table
from apportion.ledger.log import Log

SECRET = b"s" * 32


class Memory:
    """Entries and tables in a list and a dict."""

    def __init__(self, *written: Record):
        self._entries: list[bytes] = []
        self._blobs: dict[str, bytes] = {}
        for record in written:
            self.add(record)

    def add(self, record: Record) -> None:
        data, blobs = record.seal(SECRET)
        self._entries.append(data)
        self._blobs.update(blobs)

    def entries(self, start: int = 0, end: int | None = None):
        return iter(self._entries[start:end])

    def blob(self, digest: str) -> bytes:
        return self._blobs[digest]


def a_round(number: int, p: Played) -> list[Record]:
    return [
        records.demand(number, "1.000", p.tasks, p.pools, p.market, p.before),
        records.decision(number, "1.001", p.allocation, "market"),
        records.outcome(number, "2.000", p.outcome, p.allocation),
        records.bills(number, "2.001", p.bills, p.after, p.tasks),
    ]


def assert_same(one, other, path: str = "") -> None:
    """Equal to the last bit, arrays and all."""
    assert type(one) is type(other), path
    if dataclasses.is_dataclass(one):
        for f in dataclasses.fields(one):
            assert_same(getattr(one, f.name), getattr(other, f.name), f"{path}.{f.name}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, path
        np.testing.assert_array_equal(one, other, path)
    else:
        assert one == other, path


@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), m=st.integers(1, 4), scarce=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_round_is_read_as_it_was_written(seed: int, n: int, m: int, scarce: bool):
    p = play(seed, opening(), n, m, scarce)
    (logged,) = reading.rounds(Memory(genesis(), *a_round(0, p)))

    for name in ("tasks", "pools", "market", "allocation", "outcome", "bills"):
        assert_same(getattr(p, name), getattr(logged, name), name)
    assert_same(p.before, logged.balance_before)
    assert_same(p.after, logged.balance)
    assert logged.policy == "market"
    assert logged.closed


def test_genesis_is_read_as_it_was_written():
    world = reading.state(Memory(genesis())).genesis
    assert world.accounts == ("guild", "market", "city")
    assert world.resources == RESOURCES
    assert_same(world.entitlement, ENTITLEMENT)
    assert world.supply == opening().sum()
    assert world.settings == {"objective": "proportional"}


def test_the_same_round_gives_the_same_bytes():
    once, again = (
        [r.seal(SECRET) for r in (genesis(), *a_round(0, play(3, opening())))],
        [r.seal(SECRET) for r in (genesis(), *a_round(0, play(3, opening())))],
    )
    assert once == again


def test_what_lasts_is_stored_once_and_what_is_bid_looks_new_each_round():
    p = play(3, opening())
    one, two = a_round(0, p)[0].seal(SECRET)[0], a_round(1, p)[0].seal(SECRET)[0]
    one, two = json.loads(one)["tables"], json.loads(two)["tables"]
    assert one["roster"] == two["roster"]
    assert one["pools"] == two["pools"]
    assert one["tasks"] != two["tasks"]


def test_state_says_where_to_go_on():
    p = play(5, opening())
    log = Memory(genesis())
    assert reading.state(log).number == 0
    for k, record in enumerate(a_round(0, p)):
        log.add(record)
        now = reading.state(log)
        assert now.number == 1
        assert (now.open is None) == (k == 3)
        assert_same(now.balance, p.after if k == 3 else p.before)
    log.add(records.demand(1, "3.000", p.tasks, p.pools, p.market, p.after))
    log.add(records.decision(1, "3.000", p.allocation, "market"))
    assert reading.state(log).open.number == 1
    log.add(records.aborted(1, "4.000", "the controller died"))
    now = reading.state(log)
    assert now.open is None
    assert now.number == 2
    assert_same(now.balance, p.after)


def test_entries_out_of_order_are_refused():
    p = play(5, opening())
    demand, decision, outcome, bills = a_round(0, p)
    for wrong in (
        [demand],
        [genesis(), decision],
        [genesis(), demand, outcome],
        [genesis(), demand, decision, decision],
        [genesis(), demand, decision, bills],
        [genesis(), demand, demand],
        [genesis(), demand, decision, outcome, bills, demand],
        [genesis(), genesis()],
        [genesis(), a_round(1, p)[0]],
        [genesis(), records.aborted(0, "1.000", "nothing to close")],
    ):
        with pytest.raises(Refused, match="entry"):
            list(reading.rounds(Memory(*wrong)))


@pytest.mark.parametrize("end", range(1, 15))
def test_where_a_log_stands_is_told_from_its_last_demand_as_from_all_of_it(end: int):
    p = play(3, opening())
    gave = np.array([-7, 7, 0])
    lines = [Posting(0, "transfer", -7), Posting(1, "transfer", 7)]
    written = [
        genesis(),
        records.act("0.000", "release", {"type": "demand"}),
        *a_round(0, p),
        records.transfer("2.000", lines, p.after + gave, "joined"),
        a_round(1, play(4, p.after + gave))[0],
        records.aborted(1, "4.000", "so"),
        records.note("4.000", "on"),
        *a_round(2, play(5, p.after + gave)),
    ][:end]
    log = Memory(*written)
    whole, now = reading.Reader(log.blob), reading.state(log)
    for data in log.entries():
        whole.read(data)
    assert now.balance.tolist() == whole.balance.tolist()
    assert (now.number, now.size) == (whole.number, whole.index)
    assert (now.open and now.open.number) == (whole.open and whole.open.number)


def test_a_posting_of_an_unknown_kind_is_refused():
    p = play(5, opening())
    *before, bills = a_round(0, p)
    rows = [{**row, "kind": "gift"} for row in bills.tables["postings"]]
    wrong = dataclasses.replace(bills, tables={**bills.tables, "postings": rows})
    with pytest.raises(Refused, match="kind 'gift'"):
        list(reading.rounds(Memory(genesis(), *before, wrong)))


def test_what_was_not_measured_has_one_spelling():
    """It is null; as an amount below 0 it would be the same outcome in other bytes."""
    *before, done, _ = a_round(0, play(5, opening()))
    rows = [{**row, "delivered": [["-1"] * 3 for _ in row["delivered"]]} for row in done.tables["delivered"]]
    wrong = dataclasses.replace(done, tables={**done.tables, "delivered": rows})
    with pytest.raises(Refused, match="below 0"):
        list(reading.rounds(Memory(genesis(), *before, wrong)))


@pytest.mark.parametrize(("table", "column"), [("shares", "share"), ("tasks", "bid"), ("tasks", "free")])
@pytest.mark.parametrize("amount", ["-1", str(2**63 - 1)])
def test_what_no_double_holds_is_refused(table: str, column: str, amount: str):
    demand, decision, *_ = a_round(0, play(5, opening()))
    put = lambda old: [put(x) for x in old] if isinstance(old, list) else amount  # noqa: E731
    written = [
        dataclasses.replace(
            r, tables={**r.tables, table: [{**row, column: put(row[column])} for row in r.tables.get(table, ())]}
        )
        for r in (demand, decision)
    ]
    with pytest.raises(Refused, match=r"entry [12] "):
        list(reading.rounds(Memory(genesis(), *written)))


def test_a_broken_floor_is_written_down():
    p = play(2, opening())
    tasks = dataclasses.replace(p.tasks, floor=np.array([0.9, 0.0, 0.0, 0.0]))
    (logged,) = reading.rounds(Memory(genesis(), records.demand(0, "1.000", tasks, p.pools, p.market, p.before)))
    assert [b["task"] for b in logged.broken] == ["task-0"]
    assert logged.broken[0]["promised"] == "0.9"


def test_what_is_not_whole_is_refused_by_name():
    p = play(2, opening())
    half = dataclasses.replace(p.tasks, base=p.tasks.base + 0.5)
    with pytest.raises(BadInput, match=r"base\[0, 0\]"):
        records.demand(0, "1.000", half, p.pools, p.market, p.before)
    priced = dataclasses.replace(p.allocation, price=p.allocation.price + 1.5e-13)
    with pytest.raises(BadInput, match=r"price\[0, 0\]"):
        records.decision(0, "1.000", priced, "market")


def test_a_market_of_other_tasks_is_refused():
    p = play(2, opening())
    other = Market(p.market.demand + 1, p.market.capacity)
    with pytest.raises(BadInput, match="admit"):
        records.demand(0, "1.000", p.tasks, p.pools, other, p.before)


@given(st.floats())
@settings(max_examples=300)
def test_reals_come_back_to_the_bit(x: float):
    if np.isfinite(x):
        assert numbers.to_vector([numbers.real(x)]).tobytes() == np.array(x).tobytes()
    assert np.array(numbers.to_special(numbers.real(x))).tobytes() == np.array(x if x == x else np.nan).tobytes()


@pytest.mark.parametrize("text", ["1.0", "01", "1e3", "1e-07", " 1", "+1", ".5", "1_0", "0x1", "1,5", "NaN", "١"])
def test_numbers_have_one_spelling(text: str):
    for read in (numbers.to_int, numbers.to_real):
        with pytest.raises((Refused, ValueError)):
            read(text)
    for read in (numbers.to_ints, numbers.to_vector):
        with pytest.raises((Refused, ValueError)):
            read(["7", text])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="ascii"), max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(row=st.dictionaries(st.text(st.characters(codec="ascii"), max_size=6), PLAIN, max_size=5))
@settings(max_examples=150)
def test_rows_are_canonical_json(row: dict):
    assert canonical._json(row) == rfc8785.dumps(row)


@given(rows=st.lists(st.dictionaries(st.sampled_from(["task", "share"]), PLAIN, max_size=2), max_size=5))
@settings(max_examples=50)
def test_tables_come_back_and_a_changed_byte_does_not(rows: list[dict]):
    reference, blob = seal_table(rows, SECRET, "t\n")
    assert [{k: v for k, v in row.items() if k != "salt"} for row in open_table(reference, blob)] == rows
    for k in range(0, len(blob), 7):
        with pytest.raises(Refused):
            open_table(reference, blob[:k] + bytes([blob[k] ^ 1]) + blob[k + 1 :])


def test_a_table_of_other_rows_root_or_count_is_refused():
    reference, blob = seal_table([{"task": "a"}, {"task": "b"}], SECRET, "t\n")
    for wrong in ({"rows": 1}, {"root": "00" * 32}, {"sha256": "00" * 32}, {"more": 1}):
        with pytest.raises(Refused):
            open_table({**reference, **wrong}, blob)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"format":"apportion/1","type":"note","type":"act"}', "twice"),
        ('{"at":1.5,"format":"apportion/1","type":"note"}', "float"),
        ('{"at":9007199254740993,"format":"apportion/1","type":"note"}', "integer"),
        ('{"type":"note","format":"apportion/1"}', "canonical"),
        ('{"format":"apportion/2","type":"note"}', "format"),
        ('["format"]', "object"),
        ('{"format":"apportion/1","type":"note","x":"\\ud800"}', "canonical"),
        ('{"format":"apportion/1","type":"note"', "JSON"),
        ('{"format":"apportion/1","type":"note","x":"' + "x" * 2048 + '"}', "2048"),
    ],
)
def test_entries_that_no_log_holds_are_refused(text: str, why: str):
    with pytest.raises(Refused, match=why):
        read_entry(text.encode())


def test_floats_and_long_texts_are_not_written():
    with pytest.raises(BadInput, match="float"):
        Record("note", {"text": 1.5}, {}).seal(SECRET)
    with pytest.raises(BadInput, match="2048"):
        records.note("1.000", "x" * 2048).seal(SECRET)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Record("note", {}, {"t": [{"a": 1.5}]}), "float"),
        (Record("note", {}, {"t": [{"a": float("nan")}]}), "float"),
        (Record("note", {}, {"t": [{"a": 2**53}]}), "integer"),
        (Record("note", {"type": "bills"}, {}), "of its own"),
        (Record("note", {"format": "other"}, {}), "of its own"),
    ],
    ids=["float", "nan", "large", "type", "format"],
)
def test_what_no_reader_takes_back_is_not_written(record: Record, why: str):
    """Once signed it could never be taken out again, and the log would be refused for ever."""
    with pytest.raises(BadInput, match=why):
        record.seal(SECRET)


def test_the_worked_example_of_the_format_is_what_is_written(tmp_path: Path, root: Path):
    """Golden: others rely on these bytes, so a change here is a new format."""
    golden_round.write(tmp_path / "ledger.db")
    lines = (root / "docs" / "format.md").read_text().splitlines()
    told = [line.removeprefix("    ") for line in lines if line.startswith("    ")]
    with Log.open(tmp_path / "ledger.db") as log:
        entries = [e.decode() for e in log.entries()]
        tables = [log.blob(t["sha256"]).decode() for e in entries for t in json.loads(e)["tables"].values()]
        head = log.head().note
    rows = [row for table in tables for row in table.splitlines()]
    written = [golden_round.KEY.text, golden_round.KEY.verifier.text, *entries, *rows, *filter(None, head.splitlines())]
    assert told[1:] == written  # the first quoted line shows the form of a reference


def test_the_worked_example_is_accepted_and_charges_as_it_says(tmp_path: Path):
    golden_round.write(tmp_path / "ledger.db")
    with Log.open(tmp_path / "ledger.db") as log:
        (logged,) = reading.rounds(log)
    assert logged.bills.paid.tolist() == [650 * 3000, 333 * 3000]
    assert logged.balance.tolist() == [9_524_500, 10_475_500]
    assert verify(tmp_path / "ledger.db", golden_round.KEY.verifier).gap < 1.1e-9


def test_every_type_and_table_is_documented(root: Path):
    text = (root / "docs" / "format.md").read_text()
    source = (root / "src/apportion/ledger/records.py").read_text()
    types = set(re.findall(r'Record\("(\w+)"', source + (root / "src/apportion/ledger/log.py").read_text()))
    fields = set(re.findall(r'^ +"(\w+)":|\{"(\w+)":|, "(\w+)":', source, re.M))
    assert len(types) >= 8
    for name in types | {n for found in fields for n in found if n}:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize(
    "row", [b'{"a":-0}', b'{"a":9007199254740993}', b'{"a":1,"a":1}', b'{"a":1.0}', b'{"b":1,"a":1}', b"[1]"]
)
def test_rows_that_no_table_holds_are_refused_though_their_hashes_hold(row: bytes):
    blob = row + b"\n"
    told = {"sha256": sha256(blob).hexdigest(), "root": tree.root([tree.leaf(row)]).hex(), "rows": 1}
    with pytest.raises(Refused):
        open_table(told, blob)
