"""Signed notes and their keys, as C2SP writes them (c2sp.org/signed-note, c2sp.org/tlog-cosignature).

    note         text ending in a newline, an empty line, then one line per signature:
                 "— " name " " base64(id | signature) newline
    vkey         name "+" id in hex "+" base64(kind | public key);   id = first 4 bytes of SHA-256(name \\n kind | key)
    signer key   "PRIVATE+KEY+" name "+" id in hex "+" base64(kind | seed), kept in a file that only its owner can read

Kind 0x01 signs the text (Ed25519); kind 0x04 is a witness: it signs "cosignature/v1\\ntime T\\n" before the
text, and its signature is T in 8 bytes, then 64. A note stands when at least one known key signed it and no
signature by a known key is false; signatures of unknown keys say nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from apportion.core.errors import BadInput, Refused
from apportion.core.files import read_whole

ED25519, COSIGNATURE = 0x01, 0x04
_KINDS = {ED25519: "Ed25519", COSIGNATURE: "Ed25519 cosignature"}
_PRIVATE = "PRIVATE+KEY+"
_LONGEST = 4096  # bytes of a file that holds a key
_MOST = 100  # signatures on a note; more is no note but an attack on whoever reads it


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, taken apart."""

    name: str
    id: bytes  # 4 bytes that say which key of that name
    value: bytes

    @property
    def line(self) -> str:
        return f"— {self.name} {base64.b64encode(self.id + self.value).decode()}\n"

    @property
    def time(self) -> int:
        """When a witness says it saw the note, in Unix seconds."""
        if len(self.value) != 72:
            raise Refused(f"signature of {self.name!r}: {len(self.value)} bytes is no cosignature, which has 72.")
        return int.from_bytes(self.value[:8], "big")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with its name."""

    name: str
    kind: int
    key: bytes

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read `name+id+base64`; raise BadInput where it is not one, or where its id is not the key's."""
        if text.startswith(_PRIVATE):  # never shown: what is printed here ends up in logs
            raise BadInput(
                "this is a signer key, which nobody but its owner may see. Give the public one: operator.pub."
            )
        name, _, rest = text.partition("+")
        shown, _, encoded = rest.partition("+")
        _name(name, text)
        raw = unbase64(encoded)
        if raw is None or len(raw) < 2:
            raise BadInput(f"verifier key {text!r}: a key reads name+id+base64; the third part is not base64.")
        if raw[0] not in _KINDS:
            raise BadInput(f"verifier key {text!r}: kind {raw[0]} is unknown; known are {_KINDS}.")
        if len(raw) != 33:
            raise BadInput(f"verifier key {text!r}: an Ed25519 key has 32 bytes, not {len(raw) - 1}.")
        out = cls(name, raw[0], raw[1:])
        if shown != out.id.hex():
            raise BadInput(f"verifier key {text!r}: its id should be {out.id.hex()}. Copy the whole key again.")
        return out

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.key).digest()[:4]

    @property
    def text(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.key).decode()}"

    def holds(self, text: str, signature: Signature) -> bool:
        """Tell whether a signature is this key's over a text."""
        value, message = signature.value, text.encode()
        if self.kind == COSIGNATURE:
            if len(value) != 72:
                return False
            message, value = cosigned(text, signature.time), value[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(value, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with its name."""

    name: str
    seed: bytes = field(repr=False)
    kind: int = ED25519

    @classmethod
    def generate(cls, name: str, kind: int = ED25519) -> Signer:
        _name(name, name)
        return cls(name, os.urandom(32), kind)

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Read a signer key; the message of a failure never shows it."""
        if not text.startswith(_PRIVATE):
            raise BadInput(f"a signer key starts with {_PRIVATE!r}. Is this the public key?")
        name, _, rest = text[len(_PRIVATE) :].partition("+")
        shown, _, encoded = rest.partition("+")
        _name(name, name)
        raw = unbase64(encoded)
        if raw is None or len(raw) != 33 or raw[0] not in _KINDS:
            raise BadInput(f"the signer key of {name!r} is damaged: it should end in base64 of 33 bytes.")
        out = cls(name, raw[1:], raw[0])
        if shown != out.verifier.id.hex():
            raise BadInput(f"the signer key of {name!r} is damaged: its id should be {out.verifier.id.hex()}.")
        return out

    @property
    def text(self) -> str:
        encoded = base64.b64encode(bytes([self.kind]) + self.seed).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{encoded}"

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self.kind, _private(self.seed).public_key().public_bytes_raw())

    def sign(self, text: str, time: int = 0) -> Signature:
        """Sign a text; a witness's key also signs the time, in Unix seconds."""
        key = _private(self.seed)
        if self.kind == COSIGNATURE:
            value = time.to_bytes(8, "big") + key.sign(cosigned(text, time))
        else:
            value = key.sign(text.encode())
        return Signature(self.name, self.verifier.id, value)


@dataclass(frozen=True, slots=True)
class Note:
    """A text and the signatures on it."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, note: bytes | str) -> Note:
        """Take a note apart without believing it; raise Refused where it is none."""
        try:
            text = note if isinstance(note, str) else note.decode("utf-8")
            text.encode("utf-8")
        except UnicodeError:
            raise Refused("note: it is not UTF-8.") from None
        if any(c < " " and c != "\n" for c in text):
            raise Refused("note: it holds a control character.")
        body, empty, tail = text.rpartition("\n\n")
        if not empty or not tail.endswith("\n"):
            raise Refused("note: it must end in an empty line and whole signature lines.")
        lines = tail[:-1].split("\n")
        if len(lines) > _MOST:
            raise Refused(f"note: it has {len(lines)} signatures; more than {_MOST} are not read.")
        return cls(body + "\n", tuple(parse_signature(line) for line in lines))

    def open(self, verifiers: Iterable[Verifier]) -> tuple[Signature, ...]:
        """Give the signatures of known keys, all of which hold; raise Refused where there is none or one is false."""
        known = {(v.name, v.id): v for v in verifiers}
        held = []
        for signature in self.signatures:
            if verifier := known.get((signature.name, signature.id)):
                if not verifier.holds(self.text, signature):
                    raise Refused(f"note: the signature of {signature.name!r} is false.")
                held.append(signature)
        if not held:
            signed = ", ".join(f"{s.name}+{s.id.hex()}" for s in self.signatures)
            raise Refused(f"note: no known key signed it (signed by {signed}).")
        return tuple(held)

    def __str__(self) -> str:
        return self.text + "\n" + "".join(s.line for s in self.signatures)


def parse_signature(line: str) -> Signature:
    """Take one signature line apart; raise Refused where it is none."""
    parts = line.removesuffix("\n").split(" ")
    raw = unbase64(parts[2]) if len(parts) == 3 and parts[0] == "—" else None
    if raw is None or len(raw) < 5 or not _named(parts[1]):
        raise Refused(f"note: {line!r} is no signature line.")
    return Signature(parts[1], raw[:4], raw[4:])


def cosigned(text: str, time: int) -> bytes:
    """Give what a witness signs: a text as seen at a time in Unix seconds."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


@lru_cache(maxsize=8)
def _private(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed)


def write_key(path: Path, signer: Signer) -> None:
    """Keep a signer key in a new file that only its owner can read."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # whole or not at all: half a key opens nothing
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(signer.text + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.link(part, path)
    except FileExistsError:
        raise BadInput(f"{path} is there already: a key is never overwritten. Move it away first.") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}. The signer key needs a folder that can be written.") from None
    finally:
        part.unlink(missing_ok=True)


def read_key(path: Path) -> Signer:
    """Read a signer key, unless others can read it too."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_LONGEST).strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"{path}: {why}. The signer key is needed to write the log.") from None
    if mode & 0o077:
        raise BadInput(f"{path} has mode {mode:04o}: others may read the signer key. Run: chmod 600 {path}")
    return Signer.parse(text)


def read_verifier(source: str | Path) -> Verifier:
    """Read a verifier key from its text or from a file that holds it."""
    text = str(source).strip()
    if isinstance(source, str) and text.count("+") >= 2 and not os.path.exists(text):
        return Verifier.parse(text)
    try:
        text = read_whole(source, _LONGEST).decode().strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"{source}: {why}. Give a verifier key, name+id+base64, or a file that holds one.") from None
    return Verifier.parse(text)


def unbase64(text: str) -> bytes | None:
    """Give what standard base64 in its one canonical spelling says, or None."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None


def _named(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def _name(name: str, shown: str) -> None:
    if not _named(name):
        raise BadInput(f"key {shown!r}: a name is not empty and holds neither spaces nor '+'.")
