"""What leaves the log still convinces who holds its key: proofs, receipts, tiles; and others' vectors."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from conftest import CASES
from small_log import KEY, long_log, small_log

from apportion.core.errors import BadInput, Refused, Unverifiable
from apportion.ledger import proof, reading, records, tiles, tree, vectors
from apportion.ledger.checkpoint import open_head
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Note, Signer
from apportion.ledger.sql import query
from apportion.ledger.tiles import Tiles

VECTORS = CASES.parent / "ledger"
FOUND = sorted(VECTORS.glob("*.json")) or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"cases: no *.json in {VECTORS}; it lies beside APPORTION_CASES"))
]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem if path else "absent")
def test_the_vectors_of_others_come_out_as_they_say(path: Path):
    ok, wrong = vectors.check_file(path)
    assert wrong == []
    assert ok >= len(json.loads(path.read_text())["cases"])


ANSWERS = [
    "expect",
    "verdict",
    "expect_hex",
    "expect_message",
    "expect_timestamp",
    "canonical_b64",
    "canonical_text",
    "status",
]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem if path else "absent")
def test_a_vector_with_another_answer_is_named(path: Path, tmp_path: Path):
    """Turn every answer round; a kind that then still says ok checks nothing."""
    told = json.loads(path.read_text())
    turned = {"accept": "refuse", "refuse": "accept", "consistent": "fork", "fork": "invalid", "unproven": "fork"}
    for case in told["cases"]:
        answers = ANSWERS if "expect" in case else (*ANSWERS, "root")  # with a verdict beside it, a root is asked about
        for name in answers:
            if name in case:
                case[name] = turned.get(str(case[name]), base64.b64encode(bytes(32)).decode())
    (tmp_path / path.name).write_text(json.dumps(told))
    ok, wrong = vectors.check_file(tmp_path / path.name)
    assert len(wrong) >= len(told["cases"])
    assert ok <= len(told.get("consistency", [])) + 2  # small_log's proofs and tiles are not cases


def test_files_that_are_no_vectors_are_bad_input(tmp_path: Path):
    (tmp_path / "vkey.json").write_text("[]")
    for name in ("vkey.json", "roots.json", "other.json"):
        with pytest.raises(BadInput):
            vectors.check_file(tmp_path / name)


# --- proofs -------------------------------------------------------------------------------------------------------------


def test_an_entry_is_proven_to_who_holds_the_key(tmp_path: Path):
    with Log.open(long_log(tmp_path / "ledger.db", 21)) as log:
        for index, entry in enumerate(log.entries()):
            text = str(proof.prove(log, index, b"extra" if index % 2 else None))
            told = proof.TlogProof.parse(text.encode())
            assert str(told) == text
            assert told.verify(entry, KEY.verifier) == log.head()
            with pytest.raises(Refused):
                told.verify(entry + b" ", KEY.verifier)
            with pytest.raises(Refused):
                told.verify(entry, Signer.generate(KEY.name).verifier)
        tree.verify_consistency(5, 21, log.merkle().root(5), log.head().root, log.prove_consistency(5))
        with pytest.raises(BadInput):
            log.prove_inclusion(21)


def test_a_quorum_counts_witnesses_not_signatures(tmp_path: Path):
    with Log.open(long_log(tmp_path / "ledger.db", 3)) as log:
        told, entry = proof.prove(log, 1), list(log.entries())[1]
    one, two = Signer.generate("one", COSIGNATURE), Signer.generate("two", COSIGNATURE)
    text = Note.parse(told.checkpoint).text
    twice = told.checkpoint + one.sign(text, 1).line + one.sign(text, 2).line
    told = proof.TlogProof(told.index, told.proof, twice)
    witnesses = [one.verifier, two.verifier]
    told.verify(entry, KEY.verifier, witnesses, quorum=1)
    with pytest.raises(Refused, match="1 of the witnesses"):
        told.verify(entry, KEY.verifier, witnesses, quorum=2)
    told = proof.TlogProof(told.index, told.proof, twice + two.sign(text, 3).line)
    told.verify(entry, KEY.verifier, witnesses, quorum=2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.replace("@v1", "@v2"),
        lambda t: t.replace("index 1", "index 01"),
        lambda t: t.replace("index 1\n", ""),
        lambda t: t.replace("\n\n", "\n"),
        lambda t: t.replace("index 1\n", "index 1\nAAAA\n"),
        lambda t: t.replace("index 1\n", "index 1\nnot base64\n"),
        lambda t: t.replace("index 1\n", "extra \nindex 1\n"),
    ],
)
def test_damaged_proofs_are_refused(tmp_path: Path, damage):
    with Log.open(long_log(tmp_path / "ledger.db", 3)) as log:
        text, entry = str(proof.prove(log, 1)), list(log.entries())[1]
    with pytest.raises(Refused):
        proof.TlogProof.parse(damage(text)).verify(entry, KEY.verifier)


# --- receipts -----------------------------------------------------------------------------------------------------------


def test_a_receipt_shows_what_one_task_got_and_nothing_of_the_others(tmp_path: Path):
    with Log.open(small_log(tmp_path / "ledger.db", rounds=2)) as log:
        text = json.dumps(proof.receipt(log, 1, "task-2"))
        head, shown = proof.check_receipt(text, KEY.verifier)
        assert head == log.head()
    assert {(kind, table) for kind, table, _ in shown} >= {
        ("demand", "roster"),
        ("demand", "tasks"),
        ("decision", "shares"),
        ("outcome", "delivered"),
        ("bills", "charges"),
    }
    assert "task-1" not in text


def test_a_receipt_with_any_byte_changed_is_refused(tmp_path: Path):
    with Log.open(small_log(tmp_path / "ledger.db", rounds=1)) as log:
        text = json.dumps(proof.receipt(log, 0, "task-0"))
    for k in range(0, len(text), 211):
        changed = text[:k] + chr(ord(text[k]) ^ 1) + text[k + 1 :]
        with pytest.raises(Refused):
            proof.check_receipt(changed, KEY.verifier)
    with pytest.raises(Refused):
        proof.check_receipt(text, Signer.generate(KEY.name).verifier)


def test_there_is_no_receipt_for_what_is_not_there(tmp_path: Path):
    with Log.open(small_log(tmp_path / "ledger.db", rounds=1)) as log:
        for number, task, why in ((0, "task-9", "It has task-0, "), (7, "task-0", "its last is 0")):
            with pytest.raises(BadInput, match=why):
                proof.receipt(log, number, task)


# --- two heads ----------------------------------------------------------------------------------------------------------


def test_two_heads_are_consistent_forked_invalid_or_unproven(tmp_path: Path):
    with Log.open(long_log(tmp_path / "a.db", 4)) as log:
        small = log.head().note
    long_log(tmp_path / "a.db", 9, start=4)
    with Log.create(tmp_path / "b.db", KEY) as other:
        forked = other.append([records.note("0.000", "other") for _ in range(4)]).note
    with Log.open(tmp_path / "a.db") as log:
        large, growth = log.head().note, log.prove_consistency(4)
    judge = lambda a, b, p=(): proof.compare(a, b, p, KEY.verifier)  # noqa: E731
    assert judge(small, large, growth) == judge(large, small, growth) == "consistent"
    assert judge(small, large) == judge(forked, large, growth) == "unproven"
    assert judge(small, forked) == "fork"
    assert judge(small, large.replace("world", "wurld"), growth) == "invalid"
    assert judge(small, small) == "consistent"
    error = proof.fork(open_head(small, KEY.verifier)[0], open_head(forked, KEY.verifier)[0], "Two heads of size 4.")
    assert error.exit_code == 2
    assert [judge(small, h) for h in json.loads(error.proof)["heads"]] == ["consistent", "fork"]


# --- tiles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_tiles_hold_the_whole_log(tmp_path: Path, size: int):
    path, folder = long_log(tmp_path / "ledger.db", size), tmp_path / "tiles"
    with Log.open(path) as log:
        assert tiles.export(log, folder) == log.head()
        copy = Tiles.open(folder, KEY.verifier)
        assert copy.check() == len(list(tiles.files(size)))
        assert list(copy.entries()) == list(log.entries())
        assert list(copy.entries(size // 2, size - 1)) == list(log.entries(size // 2, size - 1))


def test_tiles_of_a_grown_log_are_the_same_files_and_some_more(tmp_path: Path):
    path, folder = long_log(tmp_path / "ledger.db", 300), tmp_path / "tiles"
    with Log.open(path) as log:
        old = tiles.export(log, folder)
    full = {f: f.read_bytes() for f in folder.glob("tile/0/000")}
    long_log(path, 700, start=300)
    with Log.open(path) as log:
        tiles.export(log, folder)
    copy = Tiles.open(folder, KEY.verifier)
    copy.check()
    copy.extends(old)
    assert {f: f.read_bytes() for f in full} == full


def test_tables_lie_beside_the_tiles(tmp_path: Path):
    with Log.open(small_log(tmp_path / "ledger.db", rounds=1)) as log:
        tiles.export(log, tmp_path / "tiles")
        copy = Tiles.open(tmp_path / "tiles", KEY.verifier)
        for digest, data in log.blobs():
            assert copy.blob(digest) == data
        (one,), (two,) = reading.rounds(copy), reading.rounds(log)
        assert one.bills.postings == two.bills.postings
    with pytest.raises(Unverifiable):
        copy.blob("00" * 32)


def test_any_changed_file_of_a_tile_folder_is_refused(tmp_path: Path):
    path, folder = long_log(tmp_path / "ledger.db", 300), tmp_path / "tiles"
    with Log.open(path) as log:
        tiles.export(log, folder)
    long_log(path, 310, start=300)
    with Log.open(path) as log:
        tiles.export(log, folder)  # leaves the partial tiles of 300 lying about
    whole = {file: file.read_bytes() for file in folder.glob("tile/**/*") if file.is_file()}
    for file, data in whole.items():
        file.write_bytes(data[:-1])
    with Log.open(path) as log:
        tiles.export(log, folder)  # mends these too
    assert {file: file.read_bytes() for file in whole} == whole
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        whole = file.read_bytes()
        at = len(whole) // 2
        for damaged in (whole[:-1], whole + b"\0", whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], b""):
            file.write_bytes(damaged)
            with pytest.raises(Refused):
                Tiles.open(folder, KEY.verifier).check()
        file.write_bytes(whole)
    Tiles.open(folder, KEY.verifier).check()
    (folder / "tile/1/000.p/1").unlink()
    with pytest.raises(Refused, match="missing"):
        Tiles.open(folder, KEY.verifier).check()
    (folder / "checkpoint").unlink()
    with pytest.raises(Unverifiable, match="checkpoint"):
        Tiles.open(folder, KEY.verifier)
    shutil.rmtree(folder)
    with pytest.raises(Unverifiable, match="no folder"):
        Tiles.open(folder, KEY.verifier)


# --- questions ----------------------------------------------------------------------------------------------------------


def test_a_log_answers_questions_and_cannot_be_changed_by_them(tmp_path: Path):
    with Log.open(small_log(tmp_path / "ledger.db", rounds=2)) as log:
        columns, rows = query(log, "SELECT round, SUM(paid) AS paid FROM charges GROUP BY round ORDER BY round")
        assert columns == ("round", "paid")
        assert rows == [(r.number, r.bills.paid.sum()) for r in reading.rounds(log)]
        (total,) = query(log, "SELECT SUM(amount) FROM postings")[1][0]
        assert total == 0
        assert query(log, "SELECT COUNT(*) FROM entries WHERE type = 'demand'")[1] == [(2,)]
        for wrong in (
            "SELECT nothing FROM charges",
            "DELETE FROM entries",
            f"ATTACH '{tmp_path}/new.db' AS other",
            "PRAGMA writable_schema = 1",
            "",
            "SELECT 1; SELECT 2",
        ):
            with pytest.raises(BadInput, match="charges"):
                query(log, wrong)
    assert not (tmp_path / "new.db").exists()
