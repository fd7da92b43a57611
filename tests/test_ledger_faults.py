"""Break the disk and the power under the log, at every write: it recovers or refuses, and keeps what it acknowledged.

A run of 40 commits is traced once by strace. From the trace the disk is rebuilt as it was after any system call, for a
killed process (everything written is there) and for a power cut (only what was synced is sure to be there; of the rest
any part may be). The ablation drops one sync from the trace and must lose an acknowledged entry: so these tests would
notice if the log synced once too little. Where strace is missing they skip; test_ledger.py breaks statements in-process.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from small_log import KEY

from apportion.core.errors import LogUnavailable, Refused
from apportion.ledger import records, tree
from apportion.ledger.log import Log

COMMITS = 40
STRACE = shutil.which("strace")
WRITER = textwrap.dedent(f"""
    import os, sys
    from apportion.core.errors import LogUnavailable
    from apportion.ledger import records
    from apportion.ledger.log import Log
    from apportion.ledger.note import Signer
    log = Log.open(sys.argv[1], Signer({KEY.name!r}, {KEY.seed!r}))
    log._db.execute("PRAGMA wal_autocheckpoint=24")  # so that checkpoints happen within the run
    log._db.execute("PRAGMA synchronous=" + sys.argv[3])
    k = 0
    while k < int(sys.argv[2]):
        try:
            head = log.append([records.note("0.000", f"{{k:06d}}{{i}}" + "x" * 700) for i in range(1 + k % 3)])
        except LogUnavailable as error:
            os.write(1, b"unavailable\\n")
            continue
        os.write(1, f"{{head.size}} {{head.root.hex()}}\\n".encode())
        k += 1
        if k % 4 == 0:
            log.tidy()
    log.close()
""")


def can_trace() -> bool:
    return bool(STRACE) and subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace: not here, or not allowed to trace (ptrace)")


def run(path: Path, *strace: str, commits: int = COMMITS, synchronous: str = "FULL") -> str:
    """Let another process write commits under strace; give what it acknowledged."""
    command = [str(STRACE), "-f", *strace, sys.executable, "-c", WRITER, str(path), str(commits), synchronous]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout


@dataclass
class Step:
    """One system call that changed a file of ours, or said something."""

    call: str
    file: str = ""
    data: bytes = b""
    at: int = 0


def traced(folder: Path, synchronous: str = "FULL") -> list[Step]:
    """Trace a run and read what it did to the files of the log."""
    path, out = folder / "ledger.db", folder / "trace"
    Log.create(path, KEY).close()
    shutil.copytree(folder, folder / "before", ignore=shutil.ignore_patterns("before", "*.lock"))
    calls = "trace=pwrite64,write,fdatasync,fsync,ftruncate,unlink,openat"
    run(path, "-y", "-xx", "-s", "1000000", "-e", calls, "-o", str(out), synchronous=synchronous)
    return list(read_trace(out.read_text(), folder))


def read_trace(text: str, folder: Path) -> Iterator[Step]:
    said = re.compile(r"((?:\\x[0-9a-f]{2})+)")
    for line in text.splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += (\d+)", line)
        if not match:
            continue
        call, rest = match[1], match[2]
        strings = [bytes.fromhex(s.replace("\\x", "")) for s in said.findall(rest)]
        if not strings:
            continue
        at = Path(strings[0].decode(errors="replace"))
        if call == "write" and rest.startswith("1<"):
            yield Step("said", data=strings[1])
        elif call in ("fdatasync", "fsync") and at == folder:
            yield Step("sync folder")
        elif call == "openat" and "O_CREAT" in rest:
            if (made := Path(strings[-1].decode(errors="replace"))).parent == folder:
                yield Step("open", made.name)
        elif at.parent != folder or at.name.endswith(("-shm", ".lock", "trace")):
            continue
        elif call == "pwrite64":
            yield Step("write", at.name, strings[1], int(rest.rsplit(",", 1)[1]))
        elif call == "ftruncate":
            yield Step("cut", at.name, at=int(rest.rsplit(",", 1)[1]))
        elif call in ("fdatasync", "fsync"):
            yield Step("sync", at.name)
        elif call == "unlink":
            yield Step("unlink", at.name)


@dataclass
class Disk:
    """Files as processes see them, and what of them a power cut is sure to leave."""

    now: dict[str, bytes]
    sure: dict[str, bytes]
    loose: dict[str, list[Step]] = field(default_factory=dict)
    linked: set[str] = field(default_factory=set)
    said: list[tuple[int, str]] = field(default_factory=list)  # what was acknowledged

    @classmethod
    def of(cls, folder: Path) -> Disk:
        files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
        return cls(dict(files), dict(files), {}, set(files))

    def take(self, step: Step) -> None:
        if step.call == "said":
            size, root = step.data.decode().split()
            self.said.append((int(size), root))
        elif step.call == "open":
            self.now.setdefault(step.file, b"")
            self.sure.setdefault(step.file, b"")
        elif step.call == "sync folder":
            self.linked |= self.now.keys()
        elif step.call == "sync":
            self.sure[step.file] = self.now[step.file]
            self.loose[step.file] = []
        elif step.call == "unlink":
            self.now.pop(step.file, None)  # not sure before the folder is synced; the old file then lies there still
        else:
            self.now[step.file] = changed(self.now.get(step.file, b""), step)
            self.loose.setdefault(step.file, []).append(step)

    def after_kill(self) -> dict[str, bytes]:
        return dict(self.now)

    def after_power_cut(self, rng: random.Random, part: float) -> dict[str, bytes]:
        """part: how much of what was not synced is there nevertheless."""
        out = {}
        for name, data in self.sure.items():
            for step in self.loose.get(name, []):
                if rng.random() < part:
                    data = changed(data, step)
            if name in self.linked or rng.random() < part:
                out[name] = data
        return out


def changed(data: bytes, step: Step) -> bytes:
    if step.call == "cut":
        return data[: step.at].ljust(step.at, b"\0")
    data = data.ljust(step.at, b"\0")
    return data[: step.at] + step.data + data[step.at + len(step.data) :]


def lost(image: dict[str, bytes], said: list[tuple[int, str]], folder: Path) -> str:
    """Open what is left, and say what acknowledged thing is missing; nothing: it is all there and can be gone on with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in image.items():
        (folder / name).write_bytes(data)
    try:
        with Log.open(folder / "ledger.db", KEY) as log:
            leaves = [tree.leaf(entry) for entry in log.entries()]
            sizes = [size for size, _ in log.heads()]
            assert len(set(sizes)) == len(sizes)
            for size, root in said:
                if len(leaves) < size or tree.root(leaves[:size]).hex() != root:
                    return f"the {size} entries that were acknowledged"
            assert log.append([records.note("0.000", "on")]).size == len(leaves) + 1
    except Refused as error:
        return f"refused: {error}"
    return ""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Disk, list[Step]]:
    folder = tmp_path_factory.mktemp("traced")
    steps = traced(folder)
    assert sum(step.call == "said" for step in steps) == COMMITS
    assert sum(step.call == "sync" and step.file.endswith("-wal") for step in steps) >= COMMITS
    assert any(step.call == "write" and step.file == "ledger.db" for step in steps), "no checkpoint within the run"
    return Disk.of(folder / "before"), steps


def replayed(trace: tuple[Disk, list[Step]], drop: int = -1) -> Iterator[tuple[int, Step, Disk]]:
    """Give the disk after every step; `drop`: a sync that does nothing."""
    start, steps = trace
    disk = Disk(dict(start.now), dict(start.sure), {}, set(start.linked))
    for k, step in enumerate(steps):
        if k != drop:
            disk.take(step)
        yield k, step, disk


def sampled(k: int, every: int) -> bool:
    return k % every == 0


@needs_strace
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_or_sync_loses_nothing(trace: tuple[Disk, list[Step]], tmp_path: Path, every: int):
    for k, step, disk in replayed(trace):
        if sampled(k, every) or step.call == "open":
            assert not lost(disk.after_kill(), disk.said, tmp_path / "left"), (k, step.call, step.file)


@needs_strace
@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_cut_at_any_write_or_sync_loses_nothing(trace: tuple[Disk, list[Step]], tmp_path: Path, every: int):
    rng = random.Random(7)
    for k, step, disk in replayed(trace):
        if sampled(k, every):
            for part in (0.0, 0.5, 1.0):
                image = disk.after_power_cut(rng, part)
                assert not lost(image, disk.said, tmp_path / "left"), (k, step.call, step.file, part)


@needs_strace
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_without_any_one_sync_of_a_commit_something_acknowledged_is_lost(
    trace: tuple[Disk, list[Step]], tmp_path: Path, every: int
):
    """The ablation: each commit's own sync is what makes it last. (A checkpoint after it syncs once more.)"""
    _, steps = trace
    said = [k for k, step in enumerate(steps) if step.call == "said"]
    once = 0
    for number, (before, at) in enumerate(pairwise(said)):
        syncs = [k for k in range(before, at) if steps[k].call == "sync" and steps[k].file == "ledger.db-wal"]
        assert syncs
        once += len(syncs) == 1
        if len(syncs) == 1 and sampled(number, every):
            disk = next(disk for k, _, disk in replayed(trace, drop=syncs[0]) if k == at)
            assert lost(disk.after_power_cut(random.Random(0), 0.0), disk.said, tmp_path / "left"), number
    assert once > COMMITS // 2


@needs_strace
def test_with_syncs_relaxed_something_acknowledged_is_lost(tmp_path: Path):
    """The ablation for real: SQLite told to sync less (synchronous=NORMAL) must be found out."""
    steps = traced(tmp_path, synchronous="NORMAL")
    disks = replayed((Disk.of(tmp_path / "before"), steps))
    said = (disk for _, step, disk in disks if step.call == "said")
    assert any(lost(disk.after_power_cut(random.Random(0), 0.0), disk.said, tmp_path / "left") for disk in said)


@needs_strace
@pytest.mark.parametrize(
    "error", ["pwrite64:error=ENOSPC", "pwrite64:error=EIO", "fdatasync:error=EIO", "ftruncate:error=EIO"]
)
@pytest.mark.parametrize("when", [2, 9, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 60))])
def test_a_failing_disk_costs_no_acknowledged_entry(tmp_path: Path, error: str, when: int):
    path = tmp_path / "ledger.db"
    Log.create(path, KEY).close()
    only = [word for name in ("ledger.db", "ledger.db-wal") for word in ("-P", str(tmp_path / name))]
    out = run(path, *only, "-e", f"inject={error}:when={when}", "-o", "/dev/null", commits=8)
    said = [(int(line.split()[0]), line.split()[1]) for line in out.splitlines() if line[0].isdigit()]
    image = {
        f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file() and not f.name.endswith(("-shm", ".lock"))
    }
    assert not lost(image, said, tmp_path / "left")
    assert len(said) == 8 or "unavailable" not in out  # it went on after the failure, or failed before its first append


@needs_strace
@pytest.mark.parametrize("when", [1, 4, 11])
def test_a_process_killed_in_a_write_loses_nothing(tmp_path: Path, when: int):
    path = tmp_path / "ledger.db"
    Log.create(path, KEY).close()
    out = run(path, "-P", f"{path}-wal", "-e", f"inject=pwrite64:signal=KILL:when={when}", "-o", "/dev/null")
    said = [(int(line.split()[0]), line.split()[1]) for line in out.splitlines()]
    assert len(said) < COMMITS
    image = {
        f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file() and not f.name.endswith(("-shm", ".lock"))
    }
    assert not lost(image, said, tmp_path / "left")


@pytest.mark.parametrize("every", [499, pytest.param(1, marks=pytest.mark.slow)])
def test_a_log_cut_off_anywhere_in_its_last_commits_is_whole_or_refused(tmp_path: Path, every: int):
    path, said = tmp_path / "ledger.db", []
    with Log.create(path, KEY) as log:
        for k in range(4):
            head = log.append([records.note("0.000", f"{k}" + "x" * 900)])
            said.append((head.size, head.root.hex()))
        files = {f.name: f.read_bytes() for f in tmp_path.iterdir() if not f.name.endswith(("-shm", ".lock"))}
    wal = files["ledger.db-wal"]
    verdicts = set()
    for end in range(len(wal) // 2, len(wal) + 1, every):
        verdict = lost({**files, "ledger.db-wal": wal[:end]}, said, tmp_path / "left")
        assert not verdict or "given out" in verdict
        verdicts.add(bool(verdict))
    assert True in verdicts
    whole = path.read_bytes()
    for end in range(4096, len(whole), every * 4):
        image = {"ledger.db": whole[:end], "ledger.db.head": files["ledger.db.head"]}
        try:
            assert "refused" in lost(image, said, tmp_path / "left")
        except LogUnavailable:
            continue


def test_a_clock_set_back_changes_nothing(tmp_path: Path):
    with Log.create(tmp_path / "ledger.db", KEY) as log:
        log.append([records.note("2000000000.000", "late")])
        log.append([records.note("1000000000.000", "early")])
    with Log.open(tmp_path / "ledger.db", KEY) as log:
        assert log.head().size == 2
