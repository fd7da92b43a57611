"""Asks witnesses to cosign a log's head (c2sp.org/tlog-witness), and keeps what they signed.

    POST <url>/add-checkpoint     200: signature lines     409: the size that the witness holds, in decimal

A witness that holds a larger head than the log is proof that the log lost entries: that is Refused, and nothing should
be signed on. One that cannot be reached is skipped and named; how many are enough is for a policy to say.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

from apportion.core.errors import BadInput, Refused, Unverifiable
from apportion.ledger.checkpoint import Head
from apportion.ledger.log import Log
from apportion.ledger.note import Note, Verifier, parse_signature
from apportion.ledger.witness import request

_MOST = 1 << 16  # bytes of an answer that are read


def collect(log: Log, witnesses: Mapping[str, Verifier], timeout_seconds: float = 5.0) -> dict[str, str]:
    """Ask every witness, by its URL, for the last head; keep the cosignatures; say of each what came of it.

    Answers are `cosigned` or why not. Raises Refused where a witness has seen more than the log holds.
    """
    head = log.head()
    if head is None:
        raise Unverifiable(f"{log.path}: no head is signed yet, so there is nothing to witness.")
    out, lines = {}, []
    for url, verifier in witnesses.items():
        try:
            lines.append(_ask(log, head, url, verifier, timeout_seconds))
            out[url] = "cosigned"
        except OSError as error:
            out[url] = f"not reached: {getattr(error, 'reason', None) or error}"
        except _Answer as error:
            out[url] = str(error)
    log.cosign(head, lines)
    return out


class _Answer(Exception):
    """A witness said something else than yes."""


def _ask(log: Log, head: Head, url: str, verifier: Verifier, timeout_seconds: float) -> str:
    """Ask one witness; where it holds another size than we thought, once more from there."""
    old = 0
    for _ in range(2):
        proof = log.prove_consistency(old, head.size) if old > 0 else ()
        status, body = _post(url, request(old, proof, head.note), timeout_seconds)
        if status == 200:
            return _own(body, head, verifier)
        if status != 409 or not body.strip().isdecimal() or len(body) > 20:
            raise _Answer(f"answered {status}: {body.strip()[:200]}")
        old = int(body)
        if old > head.size:
            raise Refused(
                f"{url} has seen {old} entries of this log, which holds {head.size}: entries were lost. Do not sign on."
            )
    raise _Answer(f"holds another head of {old} entries: this log and that one are forked.")


def _own(body: str, head: Head, verifier: Verifier) -> str:
    """Find the witness's own signature among its lines."""
    text = Note.parse(head.note).text
    for line in body.splitlines():
        try:
            signature = parse_signature(line)
        except Refused:
            continue
        if (signature.name, signature.id) == (verifier.name, verifier.id) and verifier.holds(text, signature):
            return signature.line
    raise _Answer(f"answered 200 without a signature by {verifier.name!r} that holds")


def _post(url: str, body: bytes, timeout_seconds: float) -> tuple[int, str]:
    if not url.startswith(("http://", "https://")):
        raise BadInput(f"{url!r} is no address of a witness: it begins with http:// or https://.")
    asked = urllib.request.Request(url.rstrip("/") + "/add-checkpoint", body, {"Content-Type": "text/plain"})
    try:
        with urllib.request.urlopen(asked, timeout=timeout_seconds) as answer:
            return answer.status, answer.read(_MOST).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST).decode(errors="replace")
