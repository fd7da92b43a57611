"""The Merkle tree of RFC 6962 / RFC 9162: hashes, roots, growth, and proofs made and checked.

    leaf = SHA-256(0x00 | bytes)        node = SHA-256(0x01 | left | right)        root of nothing = SHA-256()

A tree of n leaves splits at the largest power of two below n. `Frontier` keeps the roots of the complete
subtrees from left to right, which is all that growing needs; `Tree` keeps every complete subtree, which is
what proving needs. The checking functions take nothing but the evidence and raise Refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from apportion.core.errors import BadInput, Refused

EMPTY = sha256().digest()
WIDTH = 32  # bytes in a hash


def leaf(data: bytes) -> bytes:
    """Hash an entry."""
    return sha256(b"\x00" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Hash two neighbours into their parent."""
    return sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Give the root over leaf hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


class Frontier:
    """A tree that can only grow: its size and the roots of its complete subtrees, largest first."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()):
        if size < 0 or len(peaks) != size.bit_count() or any(len(p) != WIDTH for p in peaks):
            raise Refused(f"a tree of {size} leaves has {max(size, 0).bit_count()} complete parts, not {len(peaks)}.")
        self.size = size
        self._peaks = list(peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        return tuple(self._peaks)

    def copy(self) -> Frontier:
        return Frontier(self.size, self._peaks)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes."""
        peaks, size = self._peaks, self.size
        for h in leaves:
            full = size
            while full & 1:  # the new leaf closes a subtree for every trailing one bit of the size
                h = sha256(b"\x01" + peaks.pop() + h).digest()
                full >>= 1
            peaks.append(h)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """Give the root of what is there now."""
        if not self._peaks:
            return EMPTY
        out = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            out = node(peak, out)
        return out


class Tree:
    """Every complete subtree of a list of leaves, level by level: proves any size up to its own."""

    def __init__(self, leaves: Iterable[bytes] = ()):
        self._levels: list[bytearray] = [bytearray()]  # 32 bytes a hash: a list of bytes would take three times that
        self.extend(leaves)

    @property
    def size(self) -> int:
        return len(self._levels[0]) // WIDTH

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes."""
        self._levels[0] += b"".join(leaves)
        level = 0
        while len(self._levels[level]) >= 2 * WIDTH:
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            below, above = self._levels[level], self._levels[level + 1]
            view, start = memoryview(below), 2 * len(above)
            pairs = range(start, len(below) - 2 * WIDTH + 1, 2 * WIDTH)
            above += b"".join([sha256(b"\x01" + view[k : k + 2 * WIDTH]).digest() for k in pairs])
            view.release()
            level += 1

    def hash(self, level: int, index: int) -> bytes:
        """Give the root of the complete subtree of 2^level leaves that starts at leaf index * 2^level."""
        out = bytes(self._levels[level][index * WIDTH : (index + 1) * WIDTH]) if level < len(self._levels) else b""
        if index < 0 or len(out) != WIDTH:
            raise BadInput(f"there is no complete subtree {index} at level {level} of {self.size} leaves.")
        return out

    def root(self, size: int | None = None) -> bytes:
        """Give the root of the first `size` leaves."""
        size = self.size if size is None else size
        self._within(size)
        return self._span(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Prove that leaf `index` is in the tree of the first `size` leaves (RFC 9162, 2.1.3.1)."""
        self._within(size)
        if type(index) is not int or not 0 <= index < size:
            raise BadInput(f"there is no leaf {index} in a tree of {size}: indices run from 0 to {size - 1}.")
        proof, start, end = [], 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._span(middle, end))
                end = middle
            else:
                proof.append(self._span(start, middle))
                start = middle
        return tuple(reversed(proof))

    def consistency(self, size1: int, size2: int) -> tuple[bytes, ...]:
        """Prove that the first `size1` leaves are a prefix of the first `size2` (RFC 9162, 2.1.4.1)."""
        self._within(size2)
        if type(size1) is not int or not 0 < size1 <= size2:
            raise BadInput(
                f"a consistency proof goes from 1 or more leaves to no fewer: {size1} to {size2} is neither."
            )
        proof, start, end = [], 0, size2
        while size1 != end:
            middle = start + _split(end - start)
            if size1 <= middle:
                proof.append(self._span(middle, end))
                end = middle
            else:
                proof.append(self._span(start, middle))
                start = middle
        if start:  # the verifier holds the root of size1 itself, but not a part of it
            proof.append(self._span(start, end))
        return tuple(reversed(proof))

    def _within(self, size: int) -> None:
        if type(size) is not int or not 0 <= size <= self.size:
            raise BadInput(f"the tree has {self.size} leaves; {size} was asked for.")

    def _span(self, start: int, end: int) -> bytes:
        """Root of leaves start..end, where start is a multiple of the power of two at or above their number."""
        parts = []
        while start < end:
            level = (end - start).bit_length() - 1
            parts.append(self.hash(level, start >> level))
            start += 1 << level
        out = parts.pop()
        while parts:
            out = node(parts.pop(), out)
        return out


def _split(size: int) -> int:
    """The largest power of two below size."""
    return 1 << (size - 1).bit_length() - 1


def verify_inclusion(index: int, size: int, leaf_hash: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that a leaf is in a tree (RFC 9162, 2.1.3.2); raise Refused where it is not shown."""
    _well_formed("inclusion", (index, size), (leaf_hash, root), proof)
    if not 0 <= index < size:
        raise Refused(f"inclusion: leaf {index} cannot be in a tree of {size}.")
    fn, sn, r = index, size - 1, leaf_hash
    for p in proof:
        if not sn:
            raise Refused(f"inclusion: the proof has {len(proof)} hashes, more than a path of leaf {index} of {size}.")
        if fn & 1 or fn == sn:
            r = node(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise Refused(f"inclusion: the proof has {len(proof)} hashes, fewer than a path of leaf {index} of {size}.")
    if r != root:
        raise Refused(f"inclusion: leaf {index} leads to another root than that of size {size}.")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that one tree is a prefix of another (RFC 9162, 2.1.4.2); raise Refused where it is not shown."""
    _well_formed("consistency", (size1, size2), (root1, root2), proof)
    if not 0 < size1 <= size2:
        raise Refused(f"consistency: nothing can be shown from size {size1} to size {size2}.")
    if size1 == size2:
        if proof or root1 != root2:
            raise Refused(f"consistency: two trees of size {size1} must have one root and need no proof.")
        return
    path = list(proof)
    if size1 & (size1 - 1) == 0:
        path.insert(0, root1)
    if not path:
        raise Refused(f"consistency: the proof from {size1} to {size2} is empty.")
    fn, sn = size1 - 1, size2 - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if not sn:
            raise Refused(f"consistency: the proof from {size1} to {size2} has {len(proof)} hashes, which is too many.")
        if fn & 1 or fn == sn:
            fr, sr = node(c, fr), node(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(sr, c)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise Refused(f"consistency: the proof from {size1} to {size2} has {len(proof)} hashes, which is too few.")
    if fr != root1:
        raise Refused(f"consistency: the proof does not lead to the root of size {size1}.")
    if sr != root2:
        raise Refused(f"consistency: the proof does not lead to the root of size {size2}.")


def _well_formed(what: str, numbers: tuple[int, int], hashes: tuple[bytes, bytes], proof: Sequence[bytes]) -> None:
    """See that evidence, which may come from anywhere, is made of whole numbers and hashes."""
    for n in numbers:
        if type(n) is not int:
            raise Refused(f"{what}: {n!r:.60} is no whole number.")
    if not isinstance(proof, list | tuple):
        raise Refused(f"{what}: a proof is a list of hashes, not {proof!r:.60}.")
    for h in (*hashes, *proof):
        if type(h) is not bytes or len(h) != WIDTH:
            raise Refused(f"{what}: {h!r:.60} is no hash, which has {WIDTH} bytes.")
