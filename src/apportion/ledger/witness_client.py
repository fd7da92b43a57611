"""Asks witnesses to cosign a log's head (c2sp.org/tlog-witness), and keeps what they signed.

    POST <url>/add-checkpoint     200: signature lines     409: the size that the witness holds, in decimal

All are asked at once, and none can hold up the others: not by silence, nor by one byte a second, nor by an answer that never
ends. One that cannot be reached is named and left out; how many are enough is for a policy to say. One that says it holds more
than the log is a warning that the log lost entries: what the others signed is kept, and then that is Refused.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException

from apportion.core.errors import ApportionError, BadInput, Refused, Unverifiable
from apportion.ledger.checkpoint import Head
from apportion.ledger.log import Log
from apportion.ledger.note import Note, Verifier, parse_signature
from apportion.ledger.witness import request

_MOST = 1 << 16  # bytes of an answer that are read
_OFTEN = 3  # how often one witness is asked in one call: it may hold another size than we thought, or grow meanwhile


def collect(
    log: Log, witnesses: Mapping[str, Verifier], timeout_seconds: float = 10.0, head: Head | None = None
) -> dict[str, str]:
    """Ask every witness, by its URL, for a head (None: the last); keep the cosignatures; say of each what came of it.

    Answers are `cosigned` or why not; `timeout_seconds` is for all of them together. Raises BadInput where a URL is none, and
    Refused where a witness says that it has seen more than the log holds.
    """
    for url in witnesses:
        _check(url)
    head = head or log.head()
    if head is None:
        raise Unverifiable(f"{log.path}: no head is signed yet, so there is nothing to witness.")
    log.merkle()  # once, before they all want proofs of it
    came: dict[str, str | Exception] = {}

    def ask(url: str, verifier: Verifier) -> None:
        try:
            came[url] = _ask(log, head, url, verifier, timeout_seconds)
        except Exception as error:  # told by whoever waits; a thread has nobody to tell
            came[url] = error

    threads = [threading.Thread(target=ask, args=asked, daemon=True) for asked in witnesses.items()]
    until = time.monotonic() + timeout_seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    answers = {url: came.get(url, TimeoutError(f"no whole answer within {timeout_seconds:g} s")) for url in witnesses}
    log.cosign(head, [line for line in answers.values() if isinstance(line, str)])
    for error in answers.values():
        if isinstance(error, ApportionError):
            raise error
    return {url: "cosigned" if isinstance(came, str) else _told(came) for url, came in answers.items()}


def _told(error: Exception) -> str:
    if isinstance(error, _Answer):
        return str(error)
    return f"not reached: {getattr(error, 'reason', None) or error or type(error).__name__}"


class _Answer(Exception):
    """A witness said something else than yes."""


def _ask(log: Log, head: Head, url: str, verifier: Verifier, timeout_seconds: float) -> str:
    """Ask one witness; where it holds another size than we thought, again from there. Give its signature line."""
    old = 0
    for _ in range(_OFTEN):
        proof = log.prove_consistency(old, head.size) if old > 0 else ()
        status, body = _post(url, request(old, proof, head.note), timeout_seconds)
        if status == 200:
            return _own(body, head, verifier)
        if status == 422 and proof:
            raise _Answer(
                f"answered 422: what it cosigned at {old} entries is no beginning of this log: they are forked."
            )
        held = body.removesuffix("\n")
        if status != 409 or not held.isascii() or not held.isdecimal() or len(held) > 19:
            raise _Answer(f"answered {status}: {_shown(body)}")
        if int(held) > head.size:
            raise Refused(
                f"{url} says it has seen {held} entries of this log, which holds {head.size}: entries were lost, unless the "
                "witness is wrong. Do not sign on before you know."
            )
        if int(held) == old:
            break
        old = int(held)
    raise _Answer(f"holds another head of {old} entries: this log and that one are forked.")


def _shown(body: str) -> str:
    """What a stranger wrote, on one line and short."""
    return " ".join("".join(c if c.isprintable() else " " for c in body[:400]).split())[:200]


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


class _Stay(urllib.request.HTTPRedirectHandler):
    """A witness answers where it is asked: an answer from elsewhere is none."""

    def redirect_request(self, *_: object) -> None:
        return None


_open: Callable = urllib.request.build_opener(_Stay).open


def _check(url: str) -> None:
    try:
        parts = urllib.request.Request(url)
        if not url.isascii() or not url.isprintable() or " " in url or parts.type not in ("http", "https"):
            raise ValueError
        if not parts.host or urllib.parse.urlsplit(url).port == 0:
            raise ValueError
    except ValueError:
        raise BadInput(f"{url!r} is no address of a witness: it reads http://host:port or https://host.") from None


def _post(url: str, body: bytes, timeout_seconds: float) -> tuple[int, str]:
    asked = urllib.request.Request(url.rstrip("/") + "/add-checkpoint", body, {"Content-Type": "text/plain"})
    try:
        with _open(asked, timeout=timeout_seconds) as answer:
            return answer.status, answer.read(_MOST).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST).decode(errors="replace")
    except HTTPException as error:  # what answers there does not speak HTTP
        raise _Answer(f"answered no HTTP: {_shown(str(error)) or type(error).__name__}") from None
