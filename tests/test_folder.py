"""The folder of a run: what is set aside, whole, alone, and nobody else's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from small_log import small_log

from apportion.core.errors import BadInput, LogUnavailable
from apportion.execution.guardian import release
from apportion.execution.local import _lock, retire
from apportion.ledger.disk import alone, take
from apportion.ledger.log import Log
from apportion.ledger.note import Signer, read_key
from apportion.serve.build import Choice
from apportion.serve.folder import Folder
from apportion.serve.up import launch_day, up


def test_what_is_set_aside_is_of_the_run_alone(tmp_path: Path):
    """Where people keep other things in --out these stay: a `run` or an `old` of theirs too."""
    out = tmp_path / "project"
    theirs = [out / name for name in ("world.yaml", "ledger.txt", "src/run.py", "run/start.sh", "old/notes")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for _ in range(3):
        up(launch_day(), out, Choice(engine="sim", rounds=1, fresh=True))
    assert {path.read_text() for path in theirs} == {"mine"}
    assert len(list(out.glob("old/*/ledger.db"))) == len(list(out.glob("old/*/report.html"))) == 2


def test_who_sets_a_run_aside_lets_nobody_begin_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What another one began meanwhile would be moved from under its writer."""
    small_log(tmp_path / "ledger.db")
    (tmp_path / "operator.key").write_text("no key")

    def begin_too(folder: Path) -> list[str]:
        with pytest.raises(LogUnavailable, match="is being written by process"):
            Log.create(folder / "ledger.db", Signer.generate("world.example/other"))
        return []

    monkeypatch.setattr("apportion.serve.folder.retire", begin_too)
    Folder(tmp_path)._set_aside()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["ledger.db.lock"]


def test_runs_set_aside_in_one_second_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")  # as by a clock that was set back
    for k in range(3):
        (tmp_path / "ledger.db").write_text(str(k))
        Folder(tmp_path)._set_aside()
    assert sorted(p.read_text() for p in tmp_path.glob("old/*/ledger.db")) == ["0", "1", "2"]


def test_a_lock_holds_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only the name of who holds it is missing; what the disk then refuses is told by whoever needs it."""
    (tmp_path / "run").mkdir()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "pwrite"):
        monkeypatch.setattr(os, name, full)
    with alone(tmp_path / "ledger.db"), pytest.raises(LogUnavailable, match="being written by another process"):
        take(tmp_path / "ledger.db")
    with _lock(tmp_path), pytest.raises(BadInput, match="in use by another controller"):
        _lock(tmp_path)


DAMAGED = [
    "",
    "[]",
    "{}",
    "null",
    '{"run": "../../x", "controller": 1, "groups": [], "runs": [], "children": {}}',
    '{"run": "ab", "controller": 1, "groups": ["/sys/fs/cgroup/cpu"], "runs": [], "children": {}}',
    '{"run": "ab", "controller": 1, "groups": [], "runs": [], "children": {"x": {"pid": "1"}}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_whom_a_damaged_state_names_is_left_alone_and_the_way_out_is_told(text: str, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "children.json").write_text(text)
    assert "End them by hand" in release(tmp_path)[0]
    with pytest.raises(BadInput, match="End them by hand"):
        retire(tmp_path)


def test_a_signer_key_that_is_not_text_is_told(tmp_path: Path):
    key = tmp_path / "operator.key"
    key.touch(0o600)
    key.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="it is not text"):
        read_key(key)
