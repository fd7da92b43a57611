"""Opening to write: a store that was edited, damaged or put back is refused, and the way out is told."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
from small_log import KEY, remark, small_log

from apportion.audit import verify
from apportion.core.errors import Refused, Unverifiable
from apportion.ledger.checkpoint import Head
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Note, Signer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


EDITS = [
    "UPDATE heads SET note = REPLACE(note, 'example', 'elsewhere') WHERE size = 2",
    "UPDATE heads SET note = (SELECT note FROM heads WHERE size = 4) WHERE size = 2",
    "INSERT INTO heads SELECT 3, note FROM heads WHERE size = 2",
    "UPDATE entries SET entry = CAST(REPLACE(entry, '000001', '000009') AS BLOB) WHERE idx = 1",
    "DELETE FROM entries WHERE idx = 1",
    "DELETE FROM entries WHERE idx = 3",
    "INSERT INTO entries VALUES (4, x'7b7d')",
    "UPDATE heads SET size = 9 WHERE size = 4",
    "UPDATE heads SET note = REPLACE(note, 'a', 'b')",
    "DELETE FROM heads WHERE size = 4",
    "UPDATE frontier SET size = 3",
    "UPDATE frontier SET peaks = x''",
    "UPDATE meta SET value = 'apportion/9' WHERE name = 'format'",
    "DELETE FROM meta",
    "UPDATE meta SET value = 'another.example' WHERE name = 'origin'",
    "INSERT INTO meta VALUES ('more', 'x')",
    "DROP TABLE heads",
    "CREATE TABLE more (x)",
    "CREATE VIEW more AS SELECT * FROM entries",
    "CREATE INDEX more ON entries (entry)",
    "CREATE TRIGGER more AFTER INSERT ON entries BEGIN DELETE FROM heads; END",
    "ALTER TABLE blobs ADD COLUMN more",
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_store_is_not_signed_on(path: Path, edit: str):
    with Log.create(path, KEY) as log:
        log.append([remark(0), remark(1)])
        log.append([remark(2), remark(3)])
    db = sqlite3.connect(path)
    db.execute(edit)
    db.commit()
    db.close()
    with pytest.raises(Refused):
        Log.open(path, KEY)
    with pytest.raises(Refused):
        verify(path, KEY.verifier, level=0)


DAMAGE = {
    "an old head edited": "UPDATE heads SET note = REPLACE(note, 'world', 'w0rld') WHERE size = 1",
    "an old head signed by another key": "UPDATE heads SET note = :foreign WHERE size = 1",
    "an old head in another's place": "UPDATE heads SET note = (SELECT note FROM heads WHERE size = 2) WHERE size = 1",
    "a table that no entry names": "INSERT INTO blobs VALUES (:digest, :data)",
    "a table missing": "DELETE FROM blobs WHERE sha256 = (SELECT MIN(sha256) FROM blobs)",
    "a table cut": "UPDATE blobs SET data = SUBSTR(data, 1, LENGTH(data) - 9) WHERE sha256 = (SELECT MAX(sha256) FROM blobs)",
    "a cosignature damaged": "UPDATE cosignatures SET line = SUBSTR(line, 1, LENGTH(line) - 9)",
    "a cosignature of no head": "UPDATE cosignatures SET size = 99",
    "the tree state edited": "UPDATE frontier SET peaks = x''",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_an_audit_refuses_is_not_signed_on(path: Path, damage: str):
    """Opening for writing and `verify` run one check; opening says what to do."""
    small_log(path, rounds=2)
    with Log.open(path, KEY) as log:
        head = log.head()
        log.cosign(head, [Signer.generate("w", COSIGNATURE).sign(head.text, 1).line])
    Log.open(path, KEY).close()
    verify(path, KEY.verifier, level=1)
    other, bare = Signer.generate(KEY.name), Head(KEY.name, 1, b"r" * 32)
    values = {"foreign": str(Note(bare.text, (other.sign(bare.text),))), "digest": sha256(b"").hexdigest(), "data": b""}
    with sqlite3.connect(path) as db:
        assert db.execute(DAMAGE[damage], values).rowcount == 1
    db.close()
    with pytest.raises((Refused, Unverifiable)):
        verify(path, KEY.verifier, level=1)
    before = path.read_bytes()
    with pytest.raises(Refused, match="put back the newest"):
        Log.open(path, KEY)
    assert path.read_bytes() == before


def went_back(path: Path) -> None:
    """Put the store back to its first entry after a second one was given out."""
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
    old = path.read_bytes()
    with Log.open(path, KEY) as log:
        log.append([remark(1)])
    path.write_bytes(old)


def test_a_store_whose_last_head_is_forgotten_is_not_signed_on(path: Path):
    """An old copy put back looks whole; only the file beside it tells, so its absence is no yes."""
    went_back(path)
    Path(f"{path}.head").unlink()
    with pytest.raises(Refused, match="touch"):
        Log.open(path, KEY)
    Path(f"{path}.head").touch()  # the operator's word that this is the newest
    with Log.open(path, KEY) as log:
        assert log.append([remark(1)]).size == 2


def test_an_old_copy_put_back_is_not_signed_on(path: Path):
    went_back(path)
    with pytest.raises(Refused, match="given out"):
        Log.open(path, KEY)


def test_a_short_head_is_remembered_after_a_long_one(path: Path):
    """Two keys of a long name sign more than a sector holds; the next head is signed by one."""
    one, two = (Signer.generate("n" * 150) for _ in range(2))
    with Log.create(path, one) as log:
        log.append([remark(0)])
        log.rotate(two, "0.000")
        log.append([remark(1)])
    with Log.open(path, two) as log:
        assert log.append([remark(2)]).size == 4


def test_a_store_that_a_witness_is_ahead_of_is_not_signed_on(path: Path):
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
        old = path.read_bytes(), Path(f"{path}-wal").read_bytes()
        ahead = log.append([remark(1)])
    path.write_bytes(old[0])
    Path(f"{path}-wal").write_bytes(old[1])
    Path(f"{path}.head").write_bytes(b"")  # the whole folder went back in time; only the witness knows
    with pytest.raises(Refused, match="given out"):
        Log.open(path, KEY, seen=[ahead])
    Log.open(path, KEY).close()
