"""Known answers of others, checked: one file of test vectors in, what was wrong out.

The kind is told by the file's name. A case is what its format's text says it is; see each function for what that comes to.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.core.errors import ApportionError, BadInput, Refused, Unverifiable
from apportion.core.files import read_whole
from apportion.ledger import canonical, tree
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.note import COSIGNATURE, Note, Signer, Verifier, cosigned, parse_signature
from apportion.ledger.proof import TlogProof, compare
from apportion.ledger.tiles import Tiles, bundle, index_path, layout
from apportion.ledger.witness import Witness

Case = dict[str, Any]


def check_file(path: str | Path) -> tuple[int, list[str]]:
    """Check one file; give how many cases are as expected, and the others by name and reason. Raises BadInput."""
    path = Path(path)
    if path.stem not in KINDS:
        raise BadInput(f"{path.name}: no kind of vectors has this name. Known: {', '.join(sorted(KINDS))}.")
    try:
        told = json.loads(read_whole(path))
        if not all(isinstance(case, dict) for case in told["cases"]):
            raise BadInput("a case is an object")
        results = KINDS[path.stem](told, told["cases"])
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}. Give a file of test vectors.") from None
    except (ApportionError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise BadInput(f"{path}: it is no file of test vectors: {why}.") from None
    wrong = [f"{name}: {why}" for name, why in results if why]
    return len(results) - len(wrong), wrong


def _each(judge: Callable[[Case, Case], str]) -> Callable[[Case, list[Case]], list[tuple[str, str]]]:
    """Check case by case; whatever a case cannot be read for is said, not raised."""

    def check(told: Case, cases: list[Case]) -> list[tuple[str, str]]:
        out = []
        for k, case in enumerate(cases):
            try:
                why = judge(told, case)
            except (ApportionError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                why = f"{type(error).__name__}: {error}"
            out.append((str(case.get("id", k)), why))
        return out

    return check


def _same(got: object, expected: object) -> str:
    return "" if got == expected else f"expected {expected!r:.200}, got {got!r:.200}"


def _verdict(expected: str, check: Callable[[], object]) -> str:
    """Hold accept or refuse against what a check does."""
    try:
        check()
    except (Refused, BadInput, Unverifiable, binascii.Error) as error:
        return "" if expected == "refuse" else f"expected {expected}, refused: {error}"
    return _same("accept", expected)


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _merkle_hash(_: Case, case: Case) -> str:
    if case["op"] == "leaf":
        got = tree.leaf(bytes.fromhex(case["data_hex"]))
    elif case["op"] == "node":
        got = tree.node(bytes.fromhex(case["left_hex"]), bytes.fromhex(case["right_hex"]))
    else:
        got = tree.root([tree.leaf(bytes.fromhex(x)) for x in case["leaves_hex"]])
    return _same(got.hex(), case["expect_hex"])


def _roots(told: Case, case: Case) -> str:
    entries = [_raw(e) for e in (case.get("entries_b64") or told["entries_b64"])]
    return _same(tree.root([tree.leaf(e) for e in entries[: case["size"]]]), _raw(case["root"]))


def _inclusion(_: Case, case: Case) -> str:
    def check() -> None:
        proof = [_raw(h) for h in case["proof"]]
        tree.verify_inclusion(case["index"], case["size"], _raw(case["leaf_hash"]), _raw(case["root"]), proof)

    return _verdict(case["expect"], check)


def _consistency(_: Case, case: Case) -> str:
    def check() -> None:
        proof = [_raw(h) for h in case["proof"]]
        tree.verify_consistency(case["size1"], case["size2"], _raw(case["root1"]), _raw(case["root2"]), proof)

    return _verdict(case["expect"], check)


def _rekor(_: Case, case: Case) -> str:
    """The leaf, its proof, and that the checkpoint is of this root and size; ECDSA signatures are not ours to check."""

    def check() -> None:
        leaf = tree.leaf(_raw(case["leaf_data"]))
        if leaf != _raw(case["leaf_hash"]):
            raise Refused("the leaf hash is not that of the data.")
        root = _raw(case["root"])
        tree.verify_inclusion(case["index"], case["size"], leaf, root, [_raw(h) for h in case["proof"]])
        if case.get("checkpoint"):
            head = Head.parse(Note.parse(case["checkpoint"]).text)
            if case.get("checkpoint_binds_root", True) and (head.size, head.root) != (case["size"], root):
                raise Refused("the checkpoint is of another size or root.")

    return _verdict(case["expect"], check)


def _signed_note(_: Case, case: Case, then: Callable[[Note], None] = lambda note: None) -> str:
    """Who signed; then: what else must hold of the note."""
    names: list[str] = []

    def check() -> None:
        note = Note.parse(_raw(case["note_b64"]))
        names.extend(s.name for s in note.open([Verifier.parse(v) for v in case["vkeys"]]))
        then(note)

    why = _verdict(case["expect"], check)
    return why or (_same(names, case["verified"]) if case["expect"] == "accept" and "verified" in case else "")


def _checkpoints(told: Case, case: Case) -> str:
    def of_this_log(note: Note) -> None:
        head = Head.parse(note.text)
        if head.origin != told.get("origin", head.origin):
            raise Refused(f"the checkpoint is of {head.origin!r}.")

    return _signed_note(told, case, of_this_log)


def _vkey(_: Case, case: Case) -> str:
    return _verdict(case["expect"], lambda: Verifier.parse(case["vkey"]))


def _checkpoint_text(_: Case, case: Case) -> str:
    heads: list[Head] = []
    why = _verdict(case["expect"], lambda: heads.append(Head.parse(case["text"])))
    if why or not heads:
        return why
    (head,) = heads
    told = {"origin": head.origin, "size": head.size, "root": base64.b64encode(head.root).decode()}
    told["extensions"] = list(head.extensions)
    return _same(told, {k: case[k] for k in told}) or _same(head.text, case["text"])


def _cosignature(_: Case, case: Case) -> str:
    if case["op"] == "message":
        got = cosigned(case["checkpoint_text"], case["timestamp"]).decode()
        return _same(got, case["expect_message"])
    return _same(parse_signature(case["signature_line"]).time, case["expect_timestamp"])


def _jcs(_: Case, case: Case) -> str:
    if "ieee754_hex" in case:
        (number,) = struct.unpack(">d", bytes.fromhex(case["ieee754_hex"]))
        return _same(canonical.canonicalize(repr(number)).decode(), case["canonical_text"])
    if case.get("expect") == "refuse":
        return _verdict("refuse", lambda: canonical.canonicalize(case["input_text"]))
    got = canonical.canonicalize(case["input_text"])
    return _same(base64.b64encode(got).decode(), case["canonical_b64"])


def _tlog_proof(told: Case, case: Case) -> str:
    def check() -> None:
        log = Verifier.parse(case.get("log_vkey") or told["log_vkey"])
        witnesses = case.get("witness_vkeys") or told["witness_vkeys"]
        keys = witnesses.values() if isinstance(witnesses, dict) else witnesses
        proof = TlogProof.parse(_raw(case["tlog_proof_b64"]))
        proof.verify(_raw(case["entry_b64"]), log, [Verifier.parse(v) for v in keys], case.get("quorum", 0))

    return _verdict(case["expect"], check)


def _split_view(told: Case, case: Case) -> str:
    log = Verifier.parse(case.get("log_vkey") or told["log_vkey"])
    one, two = _raw(case["checkpoint_a_b64"]), _raw(case["checkpoint_b_b64"])
    got = compare(one, two, [_raw(h) for h in case.get("consistency_proof") or []], log)
    return _same(got, case["verdict"])


def _tiles(_: Case, case: Case) -> str:
    if case["op"] == "index_path":
        return _same(index_path(case["index"]), case["expect"])
    got = [{"level": at, "full_tiles": full, "partial_width": part} for at, full, part in layout(case["size"])]
    return _same(got, case["expect"])


def _tiled_logs(told: Case, case: Case) -> str:
    def check() -> None:
        log = Verifier.parse(case.get("log_vkey") or told["log_vkey"])
        files = {path: _raw(data) for path, data in case["files"].items()}
        tiles = Tiles(files.get, log, paths=files)
        tiles.check()
        if remembered := case.get("remembered_head") or case.get("remembered_head_b64"):
            note = remembered if "\n" in remembered else _raw(remembered)
            tiles.extends(open_head(note, log)[0])

    return _verdict(case["expect"], check)


def _small_log(told: Case, cases: list[Case]) -> list[tuple[str, str]]:
    """A whole log: its tiles, its heads and the proofs between them."""
    log, entries = Verifier.parse(told["vkey"]), [e.encode() for e in told["entries"]]
    whole = tree.Tree([tree.leaf(e) for e in entries])
    level = b"".join([whole.hash(0, k) for k in range(len(entries))])
    out = [
        ("entry_bundle", _same(bundle(entries), _raw(told["entry_bundle_b64"]))),
        ("tile_0", _same(level, _raw(told["tile_0_000_p15_b64"]))),
    ]

    def head(_: Case, case: Case) -> str:
        got = open_head(case["checkpoint"], log)[0]
        told = (got.size, base64.b64encode(got.root).decode(), got.root)
        return _same(told, (case["size"], case["root"], whole.root(case["size"])))

    def growth(_: Case, case: Case) -> str:
        proof = tuple(_raw(h) for h in case["proof"])
        tree.verify_consistency(
            case["size1"], case["size2"], whole.root(case["size1"]), whole.root(case["size2"]), proof
        )
        return _same(whole.consistency(case["size1"], case["size2"]), proof)

    return [*out, *_each(head)(told, cases), *_each(growth)(told, told["consistency"])]


def _witness_sequence(told: Case, cases: list[Case]) -> list[tuple[str, str]]:
    """One witness that keeps its state from step to step."""
    key = Signer("example.com/witness", bytes(32), COSIGNATURE)
    witness = Witness(key, [Verifier.parse(told["log_vkey"])], now=lambda: 1_700_000_000)

    def step(_: Case, case: Case) -> str:
        status, body = witness.add_checkpoint(case["request"].encode())
        if status == 200:
            note = Note.parse(case["request"].partition("\n\n")[2])
            if not key.verifier.holds(note.text, parse_signature(body)):
                return "the cosignature does not hold"
        return _same(status, case["status"]) or (_same(body, case["body"]) if "body" in case else "")

    try:
        return _each(step)(told, cases)
    finally:
        witness.close()


KINDS: dict[str, Callable[[Case, list[Case]], list[tuple[str, str]]]] = {
    "merkle_hash": _each(_merkle_hash),
    "roots": _each(_roots),
    "inclusion": _each(_inclusion),
    "consistency": _each(_consistency),
    "rekor_real": _each(_rekor),
    "signed_note": _each(_signed_note),
    "checkpoints": _each(_checkpoints),
    "vkey": _each(_vkey),
    "checkpoint_text": _each(_checkpoint_text),
    "cosignature": _each(_cosignature),
    "jcs": _each(_jcs),
    "tlog_proof": _each(_tlog_proof),
    "split_view": _each(_split_view),
    "tiles": _each(_tiles),
    "tiled_logs": _each(_tiled_logs),
    "small_log": _small_log,
    "witness_sequence": _witness_sequence,
}
