"""Proofs that travel: tlog-proofs (c2sp.org/tlog-proof), receipts of single rows, and two heads held side by side.

    c2sp.org/tlog-proof@v1
    extra base64             what the maker adds; optional
    index N
    base64                   the inclusion proof, one hash a line
                             an empty line
    checkpoint               a signed note

A receipt shows the rows that one task left in one round, each with its place in its table, the entry that commits to the
table, and that entry's place in the log. Checking one takes the log's verifier key and nothing else.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apportion.core.errors import BadInput, Forked, Refused, Unverifiable
from apportion.ledger import tree
from apportion.ledger.canonical import Json, loads, read_entry, table_lines
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Verifier, unbase64

_FIRST = "c2sp.org/tlog-proof@v1"
RECEIPT, FORK = "apportion/1 receipt", "apportion/1 fork"


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An entry's place in a log, under a signed head."""

    index: int
    proof: tuple[bytes, ...]
    checkpoint: str  # a signed note
    extra: bytes | None = None

    @classmethod
    def parse(cls, text: bytes | str) -> TlogProof:
        """Read a tlog-proof without believing it; raise Refused where it is none."""
        try:
            text = text if isinstance(text, str) else text.decode()
        except UnicodeError:
            raise Refused("tlog-proof: it is not UTF-8.") from None
        top, empty, checkpoint = text.partition("\n\n")
        lines = top.split("\n")
        if not empty or lines.pop(0) != _FIRST:
            raise Refused(f"tlog-proof: it starts with {_FIRST!r} and has an empty line before its checkpoint.")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = unbase64(lines.pop(0).removeprefix("extra "))
            if not extra:
                raise Refused("tlog-proof: its line `extra` is not base64.")
        match = re.fullmatch("index (0|[1-9][0-9]{0,18})", lines.pop(0) if lines else "")
        if not match:
            raise Refused("tlog-proof: it has no line `index N`.")
        if len(lines) > 63:
            raise Refused(f"tlog-proof: {len(lines)} hashes; no tree is 63 deep.")
        proof = tuple(decode_hash(line) for line in lines)
        return cls(int(match[1]), proof, checkpoint, extra)

    def __str__(self) -> str:
        extra = [] if self.extra is None else [f"extra {base64.b64encode(self.extra).decode()}"]
        hashes = _encoded(self.proof)
        return "\n".join([_FIRST, *extra, f"index {self.index}", *hashes, "", self.checkpoint])

    def verify(self, entry: bytes, log: Verifier, witnesses: Iterable[Verifier] = (), quorum: int = 0) -> Head:
        """Check that the entry is in the log, as `quorum` of the witnesses saw it; give the head that says so."""
        witnesses = tuple(witnesses)
        head, held = open_head(self.checkpoint, log, witnesses)
        saw = {(s.name, s.id) for s in held} & {(w.name, w.id) for w in witnesses}
        if len(saw) < quorum:
            raise Refused(f"tlog-proof: {len(saw)} of the witnesses cosigned it; {quorum} are asked for.")
        tree.verify_inclusion(self.index, head.size, tree.leaf(entry), head.root, self.proof)
        return head


def prove(log: Log, index: int, extra: bytes | None = None) -> TlogProof:
    """Prove that entry `index` is in a log, under its last head."""
    with log.snapshot():
        head = log.head()
        if head is None:
            raise Unverifiable(f"{log.path}: no head is signed yet.")
        return TlogProof(index, log.prove_inclusion(index, head.size), head.note, extra)


# --- receipts ---------------------------------------------------------------------------------------------------------


def receipt(log: Log, number: int, task: str) -> Json:
    """Make the receipt of one task in one round: every row that is about it."""
    shown, row, last, names = [], None, -1, []
    with log.snapshot():
        for index, data in enumerate(log.entries()):
            entry = read_entry(data)
            last = max(last, entry.get("round", -1))
            if entry.get("round") != number:
                continue
            for name, reference in entry.get("tables", {}).items():
                lines = table_lines(reference, log.blob(reference["sha256"]))
                rows = [loads(line) for line in lines]
                if name == "roster":
                    names = [str(r.get("task")) for r in rows]
                    row = names.index(task) if task in names else None
                about = [k for k, r in enumerate(rows) if r.get("task") in (task, row) and row is not None]
                if about:
                    inner = tree.Tree([tree.leaf(line) for line in lines])
                    shown.append(
                        {
                            "entry": data.decode(),
                            "proof": str(prove(log, index)),
                            "table": name,
                            "rows": [
                                {
                                    "row": lines[k].decode(),
                                    "index": k,
                                    "inner": _encoded(inner.inclusion(k, len(lines))),
                                }
                                for k in about
                            ],
                        }
                    )
    if not shown:
        if number > last:
            raise BadInput(f"there is no round {number} in this log: its last is {last}.")
        raise BadInput(
            f"round {number} has no task {task!r}. It has {', '.join(names[:20])}{', ...' * (len(names) > 20)}."
        )
    return {"format": RECEIPT, "round": number, "task": task, "shown": shown}


def check_receipt(text: str | bytes, log: Verifier) -> tuple[Head, list[tuple[str, str, Json]]]:
    """Check a receipt against a log's key alone; give the newest head it stands under, and (type, table, row) of each row."""
    out: list[tuple[str, str, Json]] = []
    head = None
    try:
        told = loads(text)
        if told["format"] != RECEIPT:
            raise Refused(f"receipt: its format is {told['format']!r}, not {RECEIPT!r}.")
        number, task, row = told["round"], told["task"], None
        for part in told["shown"]:
            data = part["entry"].encode()
            entry = read_entry(data)
            if entry.get("round") != number:
                raise Refused(f"receipt: a shown entry is of round {entry.get('round')}, not {number}.")
            under = TlogProof.parse(part["proof"]).verify(data, log)
            head = under if head is None or under.size > head.size else head
            reference = entry["tables"][part["table"]]
            for shown in part["rows"]:
                leaf = tree.leaf(shown["row"].encode())
                inner = [decode_hash(h) for h in shown["inner"]]
                tree.verify_inclusion(shown["index"], reference["rows"], leaf, bytes.fromhex(reference["root"]), inner)
                content = loads(shown["row"])
                if part["table"] == "roster":
                    row = shown["index"]
                if content.get("task") != task and (row is None or content.get("task") != row):
                    raise Refused(f"receipt: a row of {part['table']} is about {content.get('task')!r}, not {task!r}.")
                out.append((entry["type"], part["table"], content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(f"receipt: it is damaged: {_damage(error)}.") from None
    if head is None or not out:
        raise Refused("receipt: it shows nothing.")
    return head, out


# --- two heads ----------------------------------------------------------------------------------------------------------


def compare(
    one: bytes | str, two: bytes | str, proof: Sequence[bytes], log: Verifier
) -> Literal["consistent", "fork", "invalid", "unproven"]:
    """Say whether two signed heads can both be true of one log.

    fork: they cannot, and the heads alone prove it. unproven: nothing given shows that one is a prefix of the other.
    """
    try:
        small, large = sorted((open_head(one, log)[0], open_head(two, log)[0]), key=lambda head: head.size)
    except Refused:
        return "invalid"
    if small.size == large.size:
        return "consistent" if small.root == large.root else "fork"
    if small.size == 0:
        return "consistent"  # nothing is a prefix of everything
    try:
        tree.verify_consistency(small.size, large.size, small.root, large.root, proof)
    except Refused:
        return "unproven"
    return "consistent"


def fork(one: Head, two: Head, why: str, root: bytes = b"", growth: Sequence[bytes] = ()) -> Forked:
    """Make the error that carries the proof of a fork: both heads, as their signer wrote them.

    Heads of two sizes need more: the root that the larger log gives to the smaller size, and the consistency proof of that.
    """
    told = {"format": FORK, "why": why, "heads": [one.note, two.note], "root": root.hex(), "growth": _encoded(growth)}
    error = Forked(f"{why} Both heads are signed by {one.origin}; that is the proof.")
    error.proof = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    return error


def check_fork(text: str | bytes, log: Verifier) -> tuple[Head, Head]:
    """Check a proof of a fork against the log's key; give the two heads, or raise Refused where nothing is proven."""
    try:
        told = loads(text)
        small, large = sorted((open_head(note, log)[0] for note in told["heads"]), key=lambda head: head.size)
        root, growth = bytes.fromhex(told["root"]), [decode_hash(h) for h in told["growth"]]
        if told["format"] != FORK:
            raise Refused(f"fork: its format is {told['format']!r}, not {FORK!r}.")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"fork: it is damaged: {_damage(error)}.") from None
    if small.size == large.size:
        root = large.root
    else:
        tree.verify_consistency(small.size, large.size, root, large.root, growth)
    if root == small.root:
        raise Refused("fork: both heads can be true of one log.")
    return small, large


def _damage(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else "something in it is not of its kind"


def _encoded(hashes: Iterable[bytes]) -> list[str]:
    return [encode_hash(h) for h in hashes]


def decode_hash(text: str) -> bytes:
    """Read a hash in base64; raise Refused where it is none."""
    raw = unbase64(text)
    if raw is None or len(raw) != tree.WIDTH:
        raise Refused(f"{text[:60]!r} is not base64 of a hash.")
    return raw


def encode_hash(raw: bytes) -> str:
    """Write a hash in base64."""
    return base64.b64encode(raw).decode()
