"""The folder of a run: its log and keys, what is made from them, and earlier runs set aside.

ledger.db       the log                        operator.key   signs it; stays with the operator
operator.pub    verifies it                    run/           what the running programs write
rounds.parquet, report.html                    made from the log, whenever asked
old/<time>/     earlier runs, set aside by --fresh; nothing is ever deleted
"""

from __future__ import annotations

import re
import time
from itertools import count
from pathlib import Path

from apportion.core.clock import Clock
from apportion.core.errors import BadInput, LogUnavailable, Refused
from apportion.core.units import MICRO
from apportion.execution.local import retire
from apportion.ledger import reading, records
from apportion.ledger.database import blank
from apportion.ledger.disk import alone
from apportion.ledger.log import Log
from apportion.ledger.note import Signer, read_key, write_key
from apportion.ledger.numbers import real
from apportion.worlds.world import World

ADVISED = {"advise": "yes"}  # the setting of genesis that says so
OURS = ("ledger.db", "operator.key", "operator.pub", "rounds.parquet", "report.html")  # what names of files begin with


class Folder:
    """Names what lies where, and opens the log."""

    def __init__(self, path: Path):
        self.path = path
        self.log, self.key, self.pub = path / "ledger.db", path / "operator.key", path / "operator.pub"
        self.history, self.report = path / "rounds.parquet", path / "report.html"

    def begin(
        self,
        world: World,
        *,
        policy: str,
        alpha: float,
        half_life: float | None,
        engine: str,
        seed: int,
        advise: bool,
        fresh: bool,
        clock: Clock,
    ) -> Log:
        """Start a new log, whose first entry says what the world is."""
        if self.log.exists() and self._begun() and not fresh:
            raise BadInput(
                f"{self.log} holds a run already. Go on with it by --resume, set it aside by --fresh, "
                "or choose another --out."
            )
        if self.log.exists() or (fresh and self.key.exists()):
            self._set_aside()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {self.path}: {error.strerror}. Choose a folder that can be written.") from None
        log = Log.create(self.log, self._signer(world.name))
        (names, entitlement), tree = world.accounts, world.tree
        log.append(
            [
                records.genesis(
                    clock.stamp(),
                    world=world.name,
                    digest=world.digest,
                    resources=world.resources,
                    accounts=names,
                    entitlement=entitlement,
                    budgets=world.budgets,
                    tree=None if tree is None else (tree.parent, tree.weight),
                    balance=world.balance,
                    alpha=alpha,
                    kappa=world.kappa,
                    credits_per_round=round(world.credits_per_round * MICRO),
                    policy=policy,
                    seed=seed,
                    engine=engine,
                    round_seconds=world.round_seconds,
                    settings=(ADVISED if advise else {})
                    | ({} if half_life is None else {"half_life": real(half_life)}),
                )
            ]
        )
        return log

    def resume(
        self, world: World, *, policy: str, engine: str, seed: int, advise: bool, clock: Clock
    ) -> tuple[Log, reading.State, list[str]]:
        """Open the log of this same world to go on with it, and tell what was found; a round that a crash left open is closed."""
        if not self.log.exists():
            raise BadInput(f"{self.log}: there is no run to resume. Leave --resume out to begin one.")
        log = Log.open(self.log, read_key(self.key))
        try:
            state = reading.state(log)
            genesis = state.genesis
            if genesis.digest != world.digest:
                raise BadInput(
                    f"{world.path} is not the file that the run of {genesis.world!r} in {self.path} began with (its SHA-256 "
                    "differs). Resume with that file, or begin anew by --fresh."
                )
            if (genesis.engine, genesis.policy, genesis.seed) != (engine, policy, seed):
                raise BadInput(
                    f"the run in {self.path} began on engine {genesis.engine} under policy {genesis.policy} with seed "
                    f"{genesis.seed}, and goes on so: --engine {genesis.engine} --policy {genesis.policy} --seed "
                    f"{genesis.seed}. Or begin anew by --fresh."
                )
            if advised(genesis) != advise:
                raise BadInput(
                    f"the run in {self.path} began {'with' if advised(genesis) else 'without'} --advise, and goes on so: what "
                    "accounts pay for advice and for machines is not mixed in one log. Or begin anew by --fresh."
                )
            found = [f"a log of {_rounds(state.number)}"]
            if state.open is not None:
                log.append([records.aborted(state.open.number, clock.stamp(), "controller stopped")])
                found.append(f"round {state.open.number} was not finished: it is closed as aborted and charged nothing")
                state = reading.state(log)
        except BaseException:
            log.close()
            raise
        return log, state, found

    def read(self) -> Log:
        """Open the log for reading, also while the world runs."""
        if not self.log.exists():
            raise BadInput(
                f"{self.log}: there is no run here. Start one with `apportion up`, or name its folder by --out."
            )
        return Log.open(self.log)

    def _signer(self, world: str) -> Signer:
        """Make the operator's key, or use the one that is there: earlier runs stay verifiable with it."""
        if not self.key.exists():
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", world).strip("-") or "world"
            write_key(self.key, Signer.generate(f"apportion.local/{name}"))
        signer = read_key(self.key)
        self.pub.write_text(signer.verifier.text + "\n")
        return signer

    def _begun(self) -> bool:
        """Tell whether a log has its first round; a start that failed or was cut short leaves less, and nothing to go on with."""
        if blank(self.log):
            return False
        try:
            with Log.open(self.log) as log:
                head = log.head()
                return head is not None and head.size > 1  # genesis stands alone
        except (LogUnavailable, Refused):
            return True

    def _set_aside(self) -> None:
        """Move what is of a run, and nothing else: the folder may be one in which people keep other things."""
        with alone(self.log):  # a damaged log is set aside like any other, but not one that somebody writes
            retire(self.path)  # programs that a killed controller left running
            second = self.path / "old" / time.strftime("%Y%m%d-%H%M%S")
            old = next(way for k in count() if not (way := second.with_name(second.name + f"-{k}" * (k > 0))).exists())
            old.mkdir(parents=True)
            for item in sorted(self.path.iterdir()):
                ours = item.name.startswith(OURS) and not item.name.endswith(".lock")
                if ours or (item.name == "run" and (item / "lock").exists()):
                    item.rename(old / item.name)


def opened(out: Path) -> Log:
    """Open the log of a run, or one that is named itself, for reading."""
    return Log.open(out) if out.is_file() else Folder(out).read()


def began(log: Log) -> reading.Genesis:
    """Give what a log says before its first round."""
    reader = reading.Reader(log.blob)
    for entry in log.entries(0, 1):
        reader.read(entry)
    if reader.genesis is None:
        raise BadInput(f"{log.path}: nothing was begun here yet.")
    return reader.genesis


def advised(genesis: reading.Genesis) -> bool:
    """Tell whether a run enforced nothing: what its log calls granted and paid is what would have been."""
    return ADVISED.items() <= genesis.settings.items()


def _rounds(count: int) -> str:
    return "no round yet" if count == 0 else "round 0" if count == 1 else f"rounds 0 to {count - 1}"
