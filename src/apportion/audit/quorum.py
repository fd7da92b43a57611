"""Which witnesses must have seen a head: a policy file, in the words that Sigsum and C2SP use.

    log <vkey> [url]                       whose head it is about; kept for other tools
    witness <name> <vkey> [url]
    group <name> all|any|<k> <member>...   holds when so many of its witnesses and groups do
    quorum <name>|none                     the one that must hold

Lines of `#` and empty ones say nothing. Names are declared before they are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apportion.core.errors import BadInput, Refused
from apportion.core.files import read_whole
from apportion.ledger.checkpoint import Head
from apportion.ledger.note import COSIGNATURE, Note, Signature, Verifier, parse_signature


@dataclass(frozen=True, slots=True)
class WitnessPolicy:
    """Witnesses, groups of them, and what is asked for."""

    witnesses: dict[str, Verifier]
    urls: dict[str, str]
    groups: dict[str, tuple[int, tuple[str, ...]]]
    quorum: str  # a name, or none

    @classmethod
    def read(cls, file: str | Path) -> WitnessPolicy:
        """Read a policy file; raise BadInput naming file and line."""
        try:
            text = read_whole(file).decode()
        except (OSError, UnicodeError) as error:
            raise BadInput(
                f"{file}: {getattr(error, 'strerror', None) or 'it is not text'}. docs/ledger.md shows a policy file."
            ) from None
        return cls.parse(text, str(file))

    @classmethod
    def parse(cls, text: str, name: str = "policy") -> WitnessPolicy:
        """Read a policy; raise BadInput naming the line."""
        out = cls({}, {}, {}, "")
        quorum = ""
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#")[0].split()
            try:
                if words:
                    quorum = out._take(words, quorum)
            except (ValueError, IndexError) as error:
                raise BadInput(f"{name}:{number}: {line.strip()!r}: {error or 'a word is missing'}.") from None
            except BadInput as error:
                raise BadInput(f"{name}:{number}: {error}") from None
        if not quorum:
            raise BadInput(f"{name}: it has no line `quorum NAME`. Write `quorum none` to ask for no witness.")
        return cls(out.witnesses, out.urls, out.groups, quorum)

    def _take(self, words: list[str], quorum: str) -> str:
        kind, *rest = words
        known = self.witnesses.keys() | self.groups.keys()
        if kind == "log":
            Verifier.parse(rest[0])
        elif kind == "witness":
            name, key = rest[0], Verifier.parse(rest[1])
            if name in known or name == "none" or key.kind != COSIGNATURE:
                raise ValueError("a witness has a name of its own and a key of kind 0x04")
            self.witnesses[name] = key
            self.urls.update({name: rest[2]} if len(rest) > 2 else {})
        elif kind == "group":
            name, count, *members = rest
            least = {"all": len(members), "any": 1}.get(count) or int(count)
            if name in known or name == "none" or not 1 <= least <= len(members) or len(set(members)) < len(members):
                raise ValueError("a group has a name of its own and 1 to all of its members")
            if unknown := set(members) - known:
                raise ValueError(f"{min(unknown)!r} is not declared above")
            self.groups[name] = (least, tuple(members))
        elif kind == "quorum":
            if quorum or rest[0] not in known | {"none"}:
                raise ValueError("one quorum, of a name declared above, or none")
            return rest[0]
        else:
            raise ValueError("a line begins with log, witness, group or quorum")
        return quorum

    def reached(self, head: Head, lines: Iterable[str]) -> bool:
        """Tell whether the quorum cosigned a head; raise Refused where a witness's signature is false."""
        return self._holds(self.quorum, self._saw(head, lines))

    def check(self, head: Head, lines: Iterable[str]) -> str:
        """See that the quorum cosigned a head; say who did, or raise Refused."""
        saw = self._saw(head, lines)
        if not self._holds(self.quorum, saw):
            seen = ", ".join(sorted(saw)) or "none"
            raise Refused(
                f"witnesses: quorum {self.quorum!r} is not reached for the head of {head.size}; it has {seen}. "
                "The operator asks witnesses: apportion witness add; and copies what they saw: apportion ledger export --cosigned."
            )
        return f"witnesses: quorum {self.quorum!r} cosigned the head of {head.size} ({', '.join(sorted(saw)) or 'none asked'})"

    def _saw(self, head: Head, lines: Iterable[str]) -> set[str]:
        note = Note.parse(head.note)
        signatures = (*note.signatures, *(parse_signature(line) for line in lines))
        return {name for name, key in self.witnesses.items() if _saw(key, note.text, signatures)}

    def _holds(self, name: str, saw: set[str]) -> bool:
        if name == "none":
            return True
        if name in self.witnesses:
            return name in saw
        least, members = self.groups[name]
        return sum(self._holds(member, saw) for member in members) >= least


def _saw(key: Verifier, text: str, signatures: Iterable[Signature]) -> bool:
    own = [s for s in signatures if (s.name, s.id) == (key.name, key.id)]
    if not all(key.holds(text, s) for s in own):
        raise Refused(f"witnesses: the signature of {key.name!r} is false.")
    return bool(own)
