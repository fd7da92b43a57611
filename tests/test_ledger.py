"""The log: nothing acknowledged is lost, nothing half-written stays, one writes and others read meanwhile."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from small_log import KEY, genesis, remark, small_log

from apportion.audit import verify
from apportion.core.clock import VirtualClock
from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.ledger import records, tree
from apportion.ledger.canonical import read_entry
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.journal import Journal
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Signer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


# --- the log --------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_there_under_a_signed_head(path: Path):
    with Log.create(path, KEY) as log:
        assert log.head() is None
        head = log.append([remark(k) for k in range(5)])
        assert log.head() == head == open_head(head.note, KEY.verifier)[0]
        log.append([genesis()])
        assert len(list(log.entries())) == 6
        assert list(log.entries(2, 4)) == list(log.entries())[2:4]
        assert [size for size, _ in log.heads()] == [5, 6]
    with Log.open(path) as log:
        assert log.head().size == 6
        assert log.head().root == tree.root([tree.leaf(e) for e in log.entries()])
        digest, data = next(log.blobs())
        assert log.blob(digest) == data
        with pytest.raises(Unverifiable, match="not in the store"):
            log.blob("00" * 32)
        with pytest.raises(LogUnavailable, match="reading only"):
            log.append([remark(9)])


_MALFORMED = """
import sys
from apportion.core.errors import BadInput, LogUnavailable, Refused
from apportion.ledger import tree
from apportion.ledger.canonical import Record
from apportion.ledger.log import Log
from apportion.ledger.note import Signer

h, log = bytes(32), Log.create(sys.argv[1], Signer.generate("a.example"))
head = log.append([Record("note", {}, {})])
asked = [(Refused, f, x) for f in (tree.verify_inclusion, tree.verify_consistency) for x in (
    ("1", 2, h, h, [h]), (1.0, 2, h, h, [h]), (1, True, h, h, [h]), (None, 2, h, h, [h]), (1, 2, "x" * 32, h, [h]),
    (1, 2, h, None, [h]), (1, 2, h, h, ["x" * 32]), (1, 2, h, h, h), (1, 2, h, h, None))]
asked += [(BadInput, f, (x,)) for f in (log.prove_inclusion, log.prove_consistency) for x in ("0", 1.5, -1, 2, True)]
asked += [(BadInput, log.append, (x,)) for x in (None, "x", [], ["x"], Record("note", {}, {}), [Record(5, {}, {})],
    [Record("note", {}, {"t": [[1]]})], [Record("note", {5: "x"}, {})])]
for error, verb, arguments in asked:
    try:
        print(verb.__name__, arguments, "gave", verb(*arguments))
    except error:
        pass
print(log.head() == head)
log.close()
for verb in (log.head, lambda: list(log.entries()), lambda: log.append([Record("note", {}, {})])):
    try:
        print("closed, and gave", verb())
    except LogUnavailable:
        pass
"""


def test_malformed_input_is_a_typed_error(path: Path):
    """In a process of its own: the tests check types as they run, and users' programs do not."""
    out = subprocess.run([sys.executable, "-c", _MALFORMED, path], capture_output=True, text=True)
    assert (out.stdout, out.stderr) == ("True\n", "")


def test_a_log_goes_on_where_it_stopped(path: Path):
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
    for k in range(1, 4):
        with Log.open(path, KEY) as log:
            assert log.append([remark(k)]).size == k + 1
    with Log.open(path) as log:
        assert [b"%06d" % k in e for k, e in enumerate(log.entries())] == [True] * 4


def test_the_same_records_give_the_same_entries_tables_and_heads(tmp_path: Path):
    one, two = (small_log(tmp_path / name) for name in ("one.db", "two.db"))
    with Log.open(one) as a, Log.open(two) as b:
        assert list(a.entries()) == list(b.entries())
        assert list(a.heads()) == list(b.heads())
        assert sorted(a.blobs()) == sorted(b.blobs())


def test_other_keys_and_other_files_are_refused(path: Path, tmp_path: Path):
    Log.create(path, KEY).close()
    with pytest.raises(BadInput, match="own key"):
        Log.open(path, Signer.generate("world.example/small"))
    with pytest.raises(LogUnavailable, match="there already"):
        Log.create(path, KEY)
    with pytest.raises(LogUnavailable, match="no log here"):
        Log.open(tmp_path / "none.db")
    with pytest.raises(LogUnavailable):
        Log.create(tmp_path / "no" / "folder" / "ledger.db", KEY)
    with pytest.raises(BadInput, match="witness"):
        Log.create(tmp_path / "new.db", Signer.generate("w", COSIGNATURE))
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to look like one" * 99)
    with pytest.raises(Refused, match="damaged"):
        Log.open(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(Refused, match="no log"):
        Log.open(tmp_path / "other.db")


def test_a_start_that_was_cut_short_can_be_begun_again(path: Path):
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")  # as far as a crash may let `create` come
    db.close()
    assert path.stat().st_size
    with Log.create(path, KEY) as log:
        assert log.append([remark(0)]).size == 1


def test_a_key_that_signed_a_log_begins_no_second_one_in_its_place(path: Path):
    """Two logs of one origin would be a fork, and a verifier that remembers heads would prove it."""
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
    path.unlink()
    with pytest.raises(LogUnavailable, match="fork"):
        Log.create(path, KEY)
    Log.create(path, Signer.generate(KEY.name)).close()


def test_a_log_is_one_log_under_all_its_names(path: Path, tmp_path: Path):
    """A link leads to the same lock, the same head given out and the same write-ahead file."""
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
        with pytest.raises(LogUnavailable, match="is being written"):
            Log.open(link, KEY)
    with Log.open(link, KEY) as log:
        log.append([remark(1)])
    with Log.open(path, KEY) as log:
        assert log.head().size == 2
    assert [p.name for p in link.parent.iterdir()] == ["link.db"]


def test_a_second_writer_is_refused_and_told_who_writes(path: Path):
    with Log.create(path, KEY) as log:
        with pytest.raises(LogUnavailable, match=f"process {os.getpid()}"):
            Log.open(path, KEY)
        code = f"from apportion.ledger.log import Log\nfrom apportion.ledger.note import Signer\nLog.open({str(path)!r}, Signer({KEY.name!r}, {KEY.seed!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()}" in other.stderr
        log.append([remark(0)])
    Log.open(path, KEY).close()


def test_readers_read_whole_states_while_one_writes(path: Path):
    log, wrong, stop = Log.create(path, KEY), [], threading.Event()
    log.append([remark(0)])

    def read() -> None:
        while not stop.is_set():
            with Log.open(path) as reader, reader.snapshot():
                head, entries = reader.head(), list(reader.entries())
                if len(entries) != head.size or tree.root([tree.leaf(e) for e in entries]) != head.root:
                    wrong.append(head)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for t in threads:
        t.start()
    for k in range(1, 30):
        log.append([remark(3 * k), remark(3 * k + 1), remark(3 * k + 2)])
    stop.set()
    for t in threads:
        t.join()
    log.close()
    assert not wrong


def test_a_log_in_a_folder_that_cannot_be_written_is_read(path: Path):
    small_log(path, rounds=1)
    Path(f"{path}.lock").unlink()
    uri = path.resolve().as_uri() + "?immutable=1"
    with Log.open(path) as log:
        entries = list(log.entries())
    assert [e for (e,) in sqlite3.connect(uri, uri=True).execute("SELECT entry FROM entries ORDER BY idx")] == entries


WRITER = textwrap.dedent("""
    import sys
    from apportion.ledger import records
    from apportion.ledger.log import Log
    from apportion.ledger.note import Signer
    log = Log.open(sys.argv[1], Signer({name!r}, {seed!r}))
    k = 0
    while True:
        head = log.append([records.note("0.000", f"{{k + i:06d}}" + "x" * 900) for i in range(1 + k % 5)])
        k = head.size
        print(head.size, head.root.hex(), flush=True)
""").format(name=KEY.name, seed=KEY.seed)


@pytest.mark.parametrize("after", [1, 7, 23])
def test_kill_9_loses_nothing_that_was_acknowledged(path: Path, after: int):
    Log.create(path, KEY).close()
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    acknowledged = [child.stdout.readline().split() for _ in range(after)]
    time.sleep(0.0007 * after)
    child.send_signal(signal.SIGKILL)
    acknowledged += [line.split() for line in child.stdout.read().splitlines() if len(line.split()) == 2]
    child.stdout.close()
    child.wait()

    with Log.open(path, KEY) as log:
        leaves = [tree.leaf(e) for e in log.entries()]
        for size, root in acknowledged:
            if len(root) == 64:
                assert tree.root(leaves[: int(size)]).hex() == root
        sizes = [size for size, _ in log.heads()]
        assert len(set(sizes)) == len(sizes)
        before = log.head().size
        assert log.append([remark(before)]).size == before + 1


def limited(path: Path, more: int):
    """Let this process write no file beyond its present size and a bit: what a full disk looks like."""
    size = max(os.path.getsize(f) for f in (path, f"{path}-wal") if os.path.exists(f))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_nothing_half_written_and_the_log_usable(path: Path):
    with Log.create(path, KEY) as log:
        before = log.append([remark(k, 900) for k in range(30)])
        try:
            limited(path, 3000)
            with pytest.raises(LogUnavailable, match=r"ledger\.db"):
                log.append([remark(k, 1800) for k in range(400)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert log.head() == before
        assert len(list(log.entries())) == 30
        assert log.append([remark(30)]).size == 31
    with Log.open(path, KEY) as log:
        assert log.head().size == 31


def fill(log: Log) -> Head:
    """Append until the disk is full; give the last head that was acknowledged."""
    last = log.append([remark(0, 1500)])
    with pytest.raises(LogUnavailable, match="full"):  # noqa: PT012
        while last.size < 1000:
            last = log.append([remark(last.size, 1500)])
    return last


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="root: mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)], check=False).returncode:
        pytest.skip("mount: this machine does not let us mount a small disk")
    try:
        with Log.create(disk / "ledger.db", KEY) as log:
            last = fill(log)
            assert log.head() == last
        with Log.open(disk / "ledger.db", KEY) as log:
            assert log.head() == last
            assert len(list(log.entries())) == last.size
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Faulty:
    """A connection whose k-th statement fails as a broken disk would."""

    def __init__(self, db: sqlite3.Connection, at: int, error: BaseException | None = None):
        self._db, self.left, self.error = db, at, error or sqlite3.OperationalError("disk I/O error")

    def __getattr__(self, name: str):
        found = getattr(self._db, name)
        if name not in ("execute", "executemany"):
            return found

        def call(*args):
            self.left -= 1
            if self.left == 0:
                raise self.error
            return found(*args)

        return call


@pytest.mark.parametrize("at", range(1, 10))
def test_an_error_at_any_statement_leaves_all_or_nothing(path: Path, at: int):
    with Log.create(path, KEY) as log:
        before = log.append([remark(0)])
        whole, log._db = log._db, Faulty(log._db, at)
        try:
            log.append([remark(1), genesis()])
            failed = False
        except LogUnavailable:
            failed = True
        finally:
            log._db = whole
        assert log.head().size == (1 if failed else 3)
        if failed:
            assert log.head() == before
        assert log.append([remark(3)]).size == log.head().size
    with Log.open(path, KEY) as log:
        assert tree.root([tree.leaf(e) for e in log.entries()]) == log.head().root


def test_an_append_interrupted_after_its_commit_is_taken_up(path: Path):
    with Log.create(path, KEY) as log:
        log.append([remark(0)])
        frontier, head = log._frontier, log._head
        log.append([remark(1)])
        log._frontier, log._head = frontier, head
        assert log.append([remark(2)]).size == 3
        assert tree.root([tree.leaf(e) for e in log.entries()]) == log.head().root


def together(log: Log, count: int) -> list[Head | BaseException]:
    """Let threads append at one time; give what came of each."""
    came: list[Head | BaseException] = []

    def append(k: int) -> None:
        try:
            came.append(log.append([remark(k), remark(100 + k)]))
        except BaseException as error:
            came.append(error)

    threads = [threading.Thread(target=append, args=(k,)) for k in range(count)]
    with log._turn:  # nobody can write before all of them wait
        for t in threads:
            t.start()
        while len(log._queue) < count:
            time.sleep(0.001)
    for t in threads:
        t.join()
    return came


def test_threads_that_append_together_share_a_commit_and_its_head(path: Path):
    with Log.create(path, KEY) as log:
        log.append([remark(999)])
        came = together(log, 8)
        assert came == [log.head()] * 8
        assert [size for size, _ in log.heads()] == [1, 17]
        entries = [read_entry(e)["text"][:6] for e in log.entries(1)]
        assert sorted(entries[::2]) == [f"{k:06d}" for k in range(8)]
        assert [int(b) - int(a) for a, b in zip(entries[::2], entries[1::2], strict=True)] == [100] * 8
    verify(path, KEY.verifier, level=1)


def test_every_thread_returns_only_once_its_entry_is_in_the_store(path: Path):
    wrong = []

    def append(number: int) -> None:
        for k in range(20):
            text = f"{number:03d}{k:03d}"
            head = log.append([records.note("0.000", text)])
            with Log.open(path) as reader:  # another connection sees what is committed, and nothing else
                if text.encode() not in b"".join(reader.entries(0, head.size)):
                    wrong.append(text)

    with Log.create(path, KEY) as log:
        threads = [threading.Thread(target=append, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert log.head().size == 120
    assert not wrong
    verify(path, KEY.verifier, level=1)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt()], ids=repr)
def test_a_failing_disk_is_told_to_every_thread_that_waited(path: Path, error: BaseException):
    with Log.create(path, KEY) as log:
        before = log.append([remark(999)])
        whole, log._db = log._db, Faulty(log._db, 4, error)
        came = together(log, 8)
        log._db = whole
        told = [type(e) for e in came]
        assert told.count(LogUnavailable) == (8 if isinstance(error, sqlite3.Error) else 7)
        assert len({id(e) for e in came}) == 8  # each raises its own
        assert log.head() == before
        assert log.append([remark(1)]).size == 2
    verify(path, KEY.verifier, level=1)


def test_a_rest_folds_what_was_appended_into_the_store(path: Path, tmp_path: Path):
    """The store alone, without its write-ahead file, is then the whole log."""
    with Log.create(path, KEY) as log:
        journal = Journal(log, "market", VirtualClock())
        log.append([genesis()])
        for k in range(3):
            log.append([remark(k)])
            journal.rest()
            shutil.copy(path, tmp_path / "alone.db")
            with Log.open(tmp_path / "alone.db") as alone:
                assert alone.head() == log.head()
        with Log.open(path) as reader, reader.snapshot():
            before = reader.head()
            log.append([remark(9)])
            journal.rest()  # a reader needs what it began to read
            assert reader.head() == before
        whole, log._db = log._db, Faulty(log._db, 1)
        journal.rest()  # a disk that fails harms nothing
        log._db = whole
        assert log.append([remark(10)]).size == 6
    assert verify(path, KEY.verifier, level=1).head.size == 6


def test_heads_read_as_they_are_written():
    head = Head("world.example/small", 3, b"r" * 32)
    assert Head.parse(head.text) == head
