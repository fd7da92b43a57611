"""A log as a folder of static files that anyone can serve (c2sp.org/tlog-tiles), and read back.

    checkpoint                         the last head
    tile/<level>/<index>[.p/<width>]   up to 256 hashes; those of level l+1 are roots over full tiles of level l
    tile/entries/<index>[.p/<width>]   the entries themselves, each after its length in two bytes
    blobs/<sha256>                     tables, ours beside the standard

A full tile never changes, and the checkpoint is written last, so a reader never sees a head whose tiles are not
there, whenever an export is cut short. The folder can be made again from the log at any time; it is a copy, not the store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from apportion.core.errors import BadInput, Refused, Unverifiable
from apportion.core.files import alone_in, read_whole, replacing
from apportion.ledger import tree
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Note, Verifier

FULL = 256  # hashes or entries in a full tile
_TILE = re.compile(r"tile/(entries|[0-9]|[1-5][0-9])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?")
_LARGEST = 1 << 30  # bytes of a file that is read: a table may be large


def index_path(index: int) -> str:
    """Spell a tile's index: groups of three digits, all but the last after an x."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def layout(size: int) -> list[tuple[int, int, int]]:
    """Give level, number of full tiles and width of the partial tile for every level of a log of this size."""
    out = []
    while size:
        out.append((len(out), size // FULL, size % FULL))
        size //= FULL
    return out


def files(size: int) -> Iterator[tuple[str, int, int, int]]:
    """Give path, level (-1: entries), index and width of every tile of a log of this size."""
    for level, full, partial in layout(size):
        for name, at in ((f"tile/{level}", level), *([("tile/entries", -1)] if level == 0 else [])):
            for index in range(full):
                yield f"{name}/{index_path(index)}", at, index, FULL
            if partial:
                yield f"{name}/{index_path(full)}.p/{partial}", at, full, partial


def bundle(entries: list[bytes]) -> bytes:
    """Write entries as a bundle."""
    for entry in entries:
        if len(entry) >= 1 << 16:
            raise BadInput(f"an entry of {len(entry)} bytes does not fit a tile of entries, where 65535 is the most.")
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def unbundle(data: bytes, width: int, path: str) -> list[bytes]:
    """Read a bundle of `width` entries; raise Refused where it holds more, fewer or pieces."""
    out, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise Refused(f"{path}: its last entry is cut off.")
        out.append(data[at + 2 : end])
        at = end
    if len(out) != width:
        raise Refused(f"{path}: it holds {len(out)} entries, not {width}.")
    return out


def export(log: Log, folder: str | os.PathLike[str], *, cosigned: bool = False) -> Head:
    """Write a log's last state as tiles, and its head with the cosignatures on it; what is there already is left as it is.

    cosigned: the state of the newest head that a witness cosigned. A folder that holds another log, or more of this one, is
    refused.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with log.snapshot(), alone_in(folder):
        head = _newest(log, cosigned)
        _goes_on(log, folder, head.size)
        whole = log.merkle()
        for path, *tile in (*files(head.size), *_left_over(_listed(folder), head.size)):
            _put(folder / path, _content(whole, log.entries, *tile))
        for digest, data in log.blobs():
            _put(folder / "blobs" / digest, data)
        _put(folder / "checkpoint", "".join([head.note, *log.cosignatures(head.size)]).encode())
    return head


def _listed(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.glob("tile/**/*") if path.is_file())


def _left_over(paths: Iterable[str], size: int) -> Iterator[tuple[str, int, int, int]]:
    """Give, as `files` does, the partial tiles of earlier heads: readers of those may still ask for them.

    Tiles ahead of a head of this size are not covered by it, and nothing reads them.
    """
    for path in sorted(set(paths) - {path for path, *_ in files(size)}):
        if match := _TILE.fullmatch(path):
            level = -1 if match[1] == "entries" else int(match[1])
            index, width = int(re.sub("[x/]", "", match[2])), int(match[3] or FULL)
            if 0 < width <= FULL and (index * FULL + width) << 8 * max(level, 0) <= size:
                yield path, level, index, width


def _content(
    whole: tree.Tree, entries: Callable[[int, int], Iterator[bytes]], level: int, index: int, width: int
) -> bytes:
    """Give what a tile holds (level -1: of entries)."""
    start = index * FULL
    if level < 0:
        return bundle(list(entries(start, start + width)))
    return b"".join([whole.hash(8 * level, start + k) for k in range(width)])


def _newest(log: Log, cosigned: bool) -> Head:
    head = log.head()
    if head is None:
        raise Unverifiable(f"{log.path}: no head is signed yet, so there is nothing to export.")
    if not cosigned:
        return head
    size = max((size for size, _ in log.cosigned()), default=0)
    if not size:
        raise BadInput(f"{log.path}: no witness has cosigned a head yet. Ask one: apportion witness add")
    note = dict(log.heads())[size]
    return Head.parse(Note.parse(note).text, note)


def _goes_on(log: Log, folder: Path, size: int) -> None:
    """See that what the folder holds is an earlier state of this log: a reader who saw it must find it a prefix."""
    try:
        held = Head.parse(Note.parse(read_whole(folder / "checkpoint")).text)
        same = held.size <= size and held.root == log.merkle().root(held.size) and held.origin == log.verifier.name
    except FileNotFoundError:
        return
    except Refused as error:
        raise BadInput(f"{folder}/checkpoint: {error} Export into another folder.") from None
    if not same:
        raise BadInput(
            f"{folder} holds a head of {held.size} entries of {held.origin!r}, of which the {size} entries to be exported are no "
            "later state. Export into another folder."
        )


class Tiles:
    """A log read from tiles. Everything is held against the signed checkpoint before it is given out."""

    def __init__(
        self, read: Callable[[str], bytes | None], verifier: Verifier, name: str = "tiles", paths: Iterable[str] = ()
    ):
        """read: gives a file's bytes by its path in the folder, or None; paths: all there are, where that is known."""
        self._read, self.path, self.verifier, self._paths = read, name, verifier, tuple(paths)
        note = read("checkpoint")
        if note is None:
            raise Unverifiable(f"{name}: there is no file `checkpoint`, so no head to check anything against.")
        self._head = open_head(note, verifier)[0]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verifier: Verifier) -> Tiles:
        """Open a folder of tiles."""
        folder = Path(folder)

        def read(path: str) -> bytes | None:
            try:
                return read_whole(folder / path, _LARGEST) if (folder / path).is_file() else None
            except OSError as error:
                raise Unverifiable(f"{folder / path}: {error.strerror}.") from None

        if not folder.is_dir():
            raise Unverifiable(f"{folder}: there is no folder of tiles here.")
        return cls(read, verifier, str(folder), _listed(folder))

    def head(self) -> Head:
        return self._head

    def heads(self) -> Iterator[tuple[int, str]]:
        yield self._head.size, self._head.note

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the entries as stored; `check` says whether they are the right ones."""
        end = self._head.size if end is None else min(end, self._head.size)
        for index in range(start // FULL, -(-end // FULL)):
            width = min(FULL, self._head.size - index * FULL)
            path, data = self._tile("tile/entries", index, width)
            if len(data) == 0 and width:
                raise Refused(f"{path}: it is empty.")
            held = unbundle(data, FULL if not path.endswith(f".p/{width}") else width, path)[:width]
            first = index * FULL
            yield from held[max(0, start - first) : end - first]

    def blob(self, digest: str) -> bytes:
        """Give a table by its SHA-256; its bytes are checked."""
        data = self._read(f"blobs/{digest}") if re.fullmatch("[0-9a-f]{64}", digest) else None
        if data is None:
            raise Unverifiable(f"{self.path}: table {digest} is named by an entry and not in the folder.")
        if sha256(data).hexdigest() != digest:
            raise Refused(f"{self.path}: table {digest}: its bytes have another SHA-256.")
        return data

    def check(self) -> int:
        """Hold every tile and entry against the checkpoint; give how many tiles there are."""
        size = self._head.size
        whole = tree.Tree([tree.leaf(entry) for entry in self.entries()])
        if whole.size != size or whole.root() != self._head.root:
            raise Refused(f"{self.path}: its entries do not hash to the root of the checkpoint.")
        count = 0
        for _, level, index, width in files(size):
            count += 1
            if level >= 0:
                path, data = self._tile(f"tile/{level}", index, width)
                if data[: width * tree.WIDTH] != _content(whole, self.entries, level, index, width):
                    raise Refused(f"{self.path}/{path}: its hashes are not those of the entries.")
                if len(data) != (width if path.endswith(f".p/{width}") else FULL) * tree.WIDTH:
                    raise Refused(f"{self.path}/{path}: it has {len(data)} bytes.")
        for path, *tile in _left_over(self._paths, size):
            if self._read(path) != _content(whole, self.entries, *tile):
                raise Refused(f"{self.path}/{path}: left over from an earlier head, and not what it was.")
        return count

    def extends(self, remembered: Head) -> None:
        """See that a head seen before is a prefix of what is here; raise Refused where it is not."""
        leaves = [tree.leaf(entry) for entry in self.entries(0, remembered.size)]
        if remembered.size > self._head.size:
            raise Refused(
                f"{self.path} holds {self._head.size} entries, but a head of {remembered.size} was seen before."
            )
        if tree.root(leaves) != remembered.root:
            raise Refused(f"{self.path}: its first {remembered.size} entries are not those of the head seen before.")

    def _tile(self, kind: str, index: int, width: int) -> tuple[str, bytes]:
        """Read a tile; a log that has grown may hold the full one in place of the partial."""
        full = f"{kind}/{index_path(index)}"
        path = full if width == FULL else f"{full}.p/{width}"
        data = self._read(path)
        if data is None and width < FULL:
            path, data = full, self._read(full)
        if data is None:
            raise Refused(f"{self.path}/{full}: missing; the checkpoint promises {self._head.size} entries.")
        return path, data


def _put(path: Path, data: bytes) -> None:
    """Write a file, unless it is there as it should be."""
    try:
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as part:  # a copy: it can be made again
        part.write_bytes(data)
