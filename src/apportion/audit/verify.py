"""The door of the audit: opens a log, hashes every byte of it, and has the economics done again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apportion.audit.economics import Economics
from apportion.audit.quorum import WitnessPolicy
from apportion.core.errors import BadInput, LogUnavailable, Refused, Unverifiable
from apportion.core.files import alone_in, read_whole, replacing
from apportion.ledger import tree
from apportion.ledger.check import Checked
from apportion.ledger.checkpoint import Head, open_head
from apportion.ledger.log import Log
from apportion.ledger.note import Note, Verifier, read_verifier
from apportion.ledger.proof import fork
from apportion.ledger.reading import Reader
from apportion.ledger.tiles import Tiles

_ANEW = "only if you know why it is not, move it away and begin anew."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted: what was checked, and what was not. Everything else is an exception."""

    level: int
    head: Head
    rounds: int = 0
    aborted: int = 0
    gap: float = math.nan  # the widest proven, over all rounds
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()  # true, and yet worth a reader's eye
    models: tuple[str, ...] = ()  # named in the log and, though level 3 was asked for, not replayed

    def __str__(self) -> str:
        lines = [f"accepted at level {self.level}: {self.head.size} entries of {self.head.origin}"]
        lines += [f"  checked      {line}" for line in self.checked]
        lines += [f"  NOT checked  {line}" for line in self.unchecked]
        lines += [f"  note         {line}" for line in self.findings]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Give the verdict as plain values, for machines."""
        head = {"origin": self.head.origin, "size": self.head.size, "root": self.head.root.hex()}
        gap = self.gap if math.isfinite(self.gap) else None
        return {**asdict(self), "accepted": True, "gap": gap, "head": head}


def verify(
    path: str | Path,
    key: str | Path | Verifier,
    level: int = 2,
    remember: str | Path | None = None,
    policy: str | Path | None = None,
) -> Verdict:
    """Check a log, a ledger.db or a folder of tiles, against its verifier key (or the file that holds it).

    remember: a file with the last head seen of this log, which must be a prefix of what is here; it is written when the
    log is accepted. policy: a file that says which witnesses must have cosigned the head.
    Raises Forked, with the proof, where two signed heads cannot both be true.
    """
    if level not in range(4):
        raise BadInput(f"level {level}: levels are 0, 1, 2 and 3.")
    try:
        verifier = key if isinstance(key, Verifier) else read_verifier(key)
        seen = _remembered(Path(remember)) if remember else None
        asked = WitnessPolicy.read(policy) if policy else None
        with _opened(Path(path), verifier) as log:
            try:
                verdict = _verify(log, verifier, level, seen, asked, begun=remember is not None)
            except Refused as error:
                raise Refused(f"{error}{_beside(log, verifier)}") from None
    except (BadInput, LogUnavailable) as error:
        raise Unverifiable(str(error)) from None
    if remember:
        keep(Path(remember), verdict.head)
    return verdict


def _beside(log: Log | Tiles, verifier: Verifier) -> str:
    """Where a log is refused under a key that is not its own, name the file beside it that holds its own, if one does."""
    file = Path(log.path).with_name("operator.pub")
    try:
        fits = verifier != log.verifier == read_verifier(file)
    except BadInput:
        fits = False
    if not fits:
        return ""
    return f" The log's own key lies beside it: --key {file} (as good as your reason to believe it the operator's)"


@contextmanager
def _opened(path: Path, verifier: Verifier) -> Iterator[Log | Tiles]:
    if path.is_dir():
        if (path / "ledger.db").is_file() and not (path / "checkpoint").exists():
            raise BadInput(f"{path} is the folder of a run. Give its log: {path / 'ledger.db'}")
        yield Tiles.open(path, verifier)
        return
    with Log.open(path) as log, log.snapshot():
        yield log


def _verify(
    log: Log | Tiles, verifier: Verifier, level: int, seen: Head | None, policy: WitnessPolicy | None, *, begun: bool
) -> Verdict:
    """begun: the file to remember heads in is new."""
    hashed = Checked(log, verifier, [seen.size] if seen else [])
    head = hashed.head
    if head is None:
        raise Unverifiable(f"{log.path}: no head is signed yet, so there is nothing to check.")
    if isinstance(log, Log):
        hashed.store(log)
    else:
        log.check()
        hashed.tables((digest, log.blob(digest)) for digest in hashed.named)
    checked, unchecked = [hashed.told()], []
    if seen:
        _of_this_log(seen, hashed.keys)
        _prefix(log, head, seen, hashed.roots[seen.size])
        checked.append(f"append-only: the head of {seen.size} entries seen before is a prefix of this log")
    else:
        why = "the --remember file begins with this one" if begun else "no --remember file was given"
        unchecked.append(f"append-only against heads seen elsewhere: {why}")
    if policy:
        seen_by, told = _witnessed(log, head, policy)
        checked.append(told)
        if seen_by.size < head.size:
            unchecked.append(
                f"witnesses: the {head.size - seen_by.size} entries after that head; no quorum has seen them"
            )
    else:
        unchecked.append("witnesses: no --policy file was given that names any")
    if level < 2:
        unchecked.append(f"the economics: level {level} was asked for")
        findings = (f"{hashed.foreign} entries are not in format apportion/1",) if hashed.foreign else ()
        return Verdict(level, head, checked=tuple(checked), unchecked=tuple(unchecked), findings=findings)
    sums = Economics()
    reader = Reader(log.blob, hashed=True)
    for data in log.entries():
        closed = reader.read(data)
        if reader.genesis and reader.index == 1:
            sums.begin(reader.genesis)
        if reader.moved:
            sums.transfer(reader.index - 1, reader.moved)
        if closed and reader.genesis:
            sums.check(reader.genesis, closed)
    sums.end(reader)
    models = tuple(f"{name} {digest[:12]}" for name, digest in reader.models.items()) if level == 3 else ()
    if level == 3:
        unchecked.append(f"the model: {', '.join(models) or 'no entry names one'}; this build replays none")
    return Verdict(
        min(level, 2),
        head,
        models=models,
        rounds=sums.rounds,
        aborted=sums.aborted,
        gap=sums.gap,
        checked=(*checked, *sums.checked()),
        unchecked=(*unchecked, *sums.unchecked()),
        findings=sums.findings(),
    )


# --- level 1: what was seen before ------------------------------------------------------------------------------------


def _prefix(log: Log | Tiles, head: Head, seen: Head, root: bytes) -> None:
    """See that a head seen before is a prefix of this log, whose root at that size is given."""
    if seen.size > head.size:
        raise Refused(
            f"the log holds {head.size} entries, but a head of {seen.size} was seen before: entries were taken away, or this is "
            "another history."
        )
    if seen.size == 0 or root == seen.root:
        return
    if seen.size == head.size:
        raise fork(seen, head, f"Two heads of size {head.size} with other roots.")
    growth = tree.Tree([tree.leaf(entry) for entry in log.entries()]).consistency(seen.size, head.size)
    raise fork(seen, head, f"The first {seen.size} entries were rewritten.", root, growth)


def _witnessed(log: Log | Tiles, head: Head, policy: WitnessPolicy) -> tuple[Head, str]:
    """Give the newest head that the quorum cosigned, and who did; every head of the log was held against its entries before."""
    if isinstance(log, Tiles):
        return head, policy.check(head, ())  # a checkpoint carries its cosignatures itself
    sizes = {size for size, _ in log.cosigned()}
    for size, note in [told for told in log.heads() if told[0] in sizes][::-1]:
        at, lines = replace(head, size=size, note=note), log.cosignatures(size)
        if policy.reached(at, lines):
            return at, policy.check(at, lines)
    return head, policy.check(head, log.cosignatures(head.size))


def _remembered(file: Path) -> Head | None:
    """Read the head seen before; whose it is can be told once the log's keys are known."""
    try:
        note = read_whole(file)
    except FileNotFoundError:
        return None  # the first time; said in the verdict
    except OSError as error:
        raise Unverifiable(f"{file}: {error.strerror}.") from None
    try:
        parsed = Note.parse(note)
        return Head.parse(parsed.text, str(parsed))
    except Refused as error:
        raise Unverifiable(f"{file}: {error} It should hold a head of this log; {_ANEW}") from None


def _of_this_log(seen: Head, keys: list[Verifier]) -> None:
    for key in keys:
        try:
            open_head(seen.note, key)
            return
        except Refused as error:
            why = error
    raise Unverifiable(f"the head seen before: {why} It should be one of this log; {_ANEW}")


def keep(file: Path, head: Head) -> None:
    """Keep a head, unless a larger one was kept meanwhile; a link is followed."""
    file = file.resolve()
    try:
        with alone_in(file.parent):
            kept = _remembered(file)
            if kept is None or kept.size <= head.size:
                with replacing(file) as part:
                    part.write_text(head.note, encoding="utf-8")
    except OSError as error:
        raise Unverifiable(
            f"{file}: {error.strerror}: the log is accepted, but its head could not be remembered."
        ) from None
