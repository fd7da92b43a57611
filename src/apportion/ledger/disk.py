"""What lies beside a log's file, where that is and not where a link to it is.

<store>.lock    held by the process that writes, and names it; the system drops it with the process
<store>.head    the last head given out, 512 bytes written over; made before the store is
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apportion.core.errors import LogUnavailable, Refused
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.note import Signer, Verifier

_REMEMBERED = 512  # bytes: one sector, so a power cut leaves the old head or the new one


def head_file(path: Path) -> Path:
    return _beside(path, ".head")


def _beside(path: Path, suffix: str) -> Path:
    path = path.resolve()  # whoever comes by another name must meet the same lock and head
    return path.with_name(path.name + suffix)


def refuse_a_second(path: Path, key: Signer) -> None:
    """Refuse to begin a log where one of this key gave out heads: two logs of one origin are a fork."""
    try:
        head = given_out(path, key.verifier)
    except Refused:
        head = None
        head_file(path).unlink()  # of another key's log, which is gone
    if head is None:
        return
    raise LogUnavailable(
        f"{head_file(path)}: this key gave out a head of {head.size} entries for a log that is gone. A new log needs a new "
        "key; with the old one it would be a fork."
    )


def given_out(path: Path, verifier: Verifier) -> Head | None:
    """Read the head remembered beside a store; an empty file is a crash between making and writing it."""
    where = head_file(path)
    try:
        note = where.read_bytes().strip(b"\n\0")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogUnavailable(f"{where}: {error.strerror}.") from None
    return open_head(note + b"\n", verifier)[0] if note else None


def remember(path: Path, head: Head) -> None:
    """Keep the head that is given out. A crash before this leaves the store ahead, which is fine: nobody saw it.

    Not synced: after a power cut this may be an older head, and an older one guards against less but is never wrong.
    """
    note = head.note.rstrip("\n").encode().ljust(_REMEMBERED, b"\n")
    try:
        file = os.open(head_file(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, note, 0)
            os.ftruncate(
                file, len(note)
            )  # names may be long, and two keys may sign: the head before was perhaps longer
        finally:
            os.close(file)
    except OSError:
        return  # the entries are safe; only this guard is one head late, until the next append


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let nobody write the log at this path meanwhile; raises LogUnavailable, naming who it is, where somebody does."""
    lock = take(path)
    try:
        yield
    finally:
        os.close(lock)


def take(path: Path) -> int:
    """Take the writer's lock, or say who holds it."""
    name = _beside(path, ".lock")
    try:
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogUnavailable(f"{name}: {error.strerror}. The folder of the log must be there and writable.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(file, 400, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise LogUnavailable(f"{path} is being written by {holder}. Stop it first; reading needs no lock.") from None
    with suppress(OSError):  # a name for people: a full disk leaves the lock without it
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} ({' '.join(sys.argv)[:300]})\n".encode(errors="replace"), 0)
    return file


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
