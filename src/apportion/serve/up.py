"""Running a world in front of somebody: signals, the view, and what is left when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from apportion.core.clock import Clock, WallClock
from apportion.core.round import Round
from apportion.core.units import credits
from apportion.learning.history import write
from apportion.ledger import records
from apportion.serve.build import Choice, Running, clock_of
from apportion.serve.folder import Folder
from apportion.serve.live import view
from apportion.study.report import About, render
from apportion.worlds.world import World, load


def launch_day() -> Path:
    """Where the example world lies in this installation."""
    return Path(str(files("apportion.worlds") / "launch-day.yaml"))


def up(path: Path, out: Path, choice: Choice, rounds: int | None = None, form: str = "table") -> None:
    """Play a world's rounds until they are done or somebody stops them; either way leave a log that verifies."""
    begun = time.monotonic()
    console = Console(stderr=form == "json")
    tell = lambda text: console.print(text, highlight=False, soft_wrap=True)  # noqa: E731
    world = load(path)
    tell(f"world     {world.name}: {len(world.specs)} tasks, {len(world.accounts[0])} accounts, from {path}")
    for line in _unused(world):
        tell(f"note      {line}")
    played: list[Round] = []
    stopped = False
    clock = clock_of(choice.engine)
    with _stoppable(clock), Running(world, choice, out, clock) as running:
        count = rounds if rounds is not None else _left(world, running.first)
        total = None if count is None else running.first + count
        try:
            tell(f"starting  {', '.join(world.specs)}")
            for name in running.awake():
                tell(f"note      {name} is not up yet, or does not tell its experience")
            how = "advising: nothing is enforced" if choice.advise else f"{choice.engine} engine"
            until = "until Ctrl-C" if total is None else f"to {total}"
            tell(f"running   {how}, rounds {running.first + 1} {until}, log {running.folder.log}")
            with view(form, total, console) as seen:
                for round in running.rounds(count):
                    seen.show(round)
                    played.append(round)
        except KeyboardInterrupt:
            stopped = True
            tell("stopping  programs, limits")
    tell("writing   history and report")
    _finish(running.folder, world)
    if form == "table" and played:
        console.print(_summary(played))
    tell(_where(running.folder, len(played), time.monotonic() - begun))
    if stopped and rounds is not None:
        raise SystemExit(130)


def _left(world: World, first: int) -> int | None:
    return None if world.rounds is None else max(world.rounds - first, 0)


def _unused(world: World) -> Iterator[str]:
    """Keys that are read and checked today and not used before a later version: said, not silently ignored."""
    if world.half_life is not None:
        yield "half_life is checked and not used yet: bids remember nothing of earlier rounds"
    if world.quantile is not None:
        yield "quantile is checked and not used yet: demand is what the file says"


@contextmanager
def _stoppable(clock: Clock) -> Iterator[None]:
    """Stop at the next wait on Ctrl-C or a request to end, so that nothing is cut in half."""
    if not isinstance(clock, WallClock):
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, lambda *_: clock.stop()) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _finish(folder: Folder, world: World) -> None:
    """Make history and report anew from the log, so that they hold every round, also those before a crash."""
    with folder.read() as log:
        genesis = records.state(log).genesis
        write(
            records.rounds(log),
            folder.history,
            world=world.name,
            policy=genesis.policy,
            accounts=genesis.accounts,
            round_seconds=genesis.round_seconds,
        )
        about = About(
            world.name,
            genesis.policy,
            genesis.engine,
            world.description,
            genesis.accounts,
            genesis.round_seconds,
            _verify(folder),
        )
        render(records.rounds(log), about, folder.report)


def _verify(folder: Folder) -> str:
    command = "apportion" if shutil.which("apportion") else os.path.relpath(sys.argv[0])
    return f"{command} verify {folder.log} --key {folder.pub}"


def _summary(played: list[Round]) -> Table:
    """Per task: how well it was served, and what it paid."""
    table = Table(title=f"{len(played)} rounds")
    for heading in ("task", "experience", "misses", "served", "paid"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    names = played[-1].tasks.name
    felt = np.array([r.outcome.experience for r in played])
    for i, name in enumerate(names):
        known = felt[:, i][~np.isnan(felt[:, i])]
        table.add_row(
            name,
            f"{known.mean():.3f}" if len(known) else "–",
            str(int((known < played[-1].tasks.target[i]).sum())),
            f"{np.mean([r.allocation.served[i] for r in played]):.0%}",
            f"{credits(sum(int(r.bills.paid[i]) for r in played)):.2f}",
        )
    return table


def _where(folder: Folder, rounds: int, seconds: float) -> str:
    return (
        f"done      {rounds} rounds in {seconds:.0f} s\n"
        f"report    {folder.report}\n"
        f"history   {folder.history}\n"
        f"verify    {_verify(folder)}"
    )
