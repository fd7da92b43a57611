"""Heads: what a log says it holds (c2sp.org/tlog-checkpoint).

origin newline  size in decimal newline  root in base64 newline  [extension lines]
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass

from apportion.core.errors import Refused
from apportion.ledger.note import Note, Signature, Verifier, unbase64
from apportion.ledger.tree import EMPTY, WIDTH


@dataclass(frozen=True, slots=True)
class Head:
    """The size and root of a log, and the note that says so (empty where nobody signed)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    note: str = ""

    @classmethod
    def parse(cls, text: str, note: str = "") -> Head:
        """Read the text of a checkpoint; raise Refused where it is none."""
        if not text.endswith("\n"):
            raise Refused("checkpoint: it must end in a newline.")
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise Refused("checkpoint: it has origin, size and root on three lines, and no empty line.")
        origin, size, encoded, *extensions = lines
        if not re.fullmatch("0|[1-9][0-9]{0,18}", size) or int(size) >= 2**63:
            raise Refused(f"checkpoint: size {size!r} is no number of entries.")
        root = unbase64(encoded) or b""
        if len(root) != WIDTH:
            raise Refused(f"checkpoint: root {encoded!r} is not base64 of {WIDTH} bytes.")
        if size == "0" and root != EMPTY:
            raise Refused("checkpoint: a log of size 0 has the root of nothing.")
        return cls(origin, int(size), root, tuple(extensions), note)

    @property
    def text(self) -> str:
        return "\n".join([self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions]) + "\n"


def open_head(
    note: bytes | str, log: Verifier, witnesses: Iterable[Verifier] = ()
) -> tuple[Head, tuple[Signature, ...]]:
    """Read a head that the log signed; give it with the signatures of known keys, the log's among them."""
    parsed = Note.parse(note)
    held = parsed.open([log, *witnesses])
    if all((s.name, s.id) != (log.name, log.id) for s in held):
        raise Refused(f"head: the log {log.name!r} did not sign it.")
    head = Head.parse(parsed.text, str(parsed))
    if head.origin != log.name:
        raise Refused(f"head: it is of the log {head.origin!r}, not of {log.name!r}.")
    return head, held
