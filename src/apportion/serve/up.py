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
from typing import TextIO, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apportion.core.clock import Clock, WallClock
from apportion.learning.history import write
from apportion.ledger import reading
from apportion.serve.build import Choice, Running, clock_of
from apportion.serve.doctor import HOLDS
from apportion.serve.folder import Folder, advised, began
from apportion.serve.live import view
from apportion.serve.output import Output
from apportion.study.charts import count
from apportion.study.report import About, felt, part, render
from apportion.study.series import Series
from apportion.worlds.world import World, load


def launch_day() -> Path:
    """Where the example world lies in this installation."""
    return Path(str(files("apportion.worlds") / "launch-day.yaml"))


def up(path: Path, out: Path, choice: Choice, form: str = "table") -> None:
    """Play a world's rounds until they are done or somebody stops them; either way leave a log that verifies.

    What cannot be printed stops no round: where a disk is full the world plays on, where a reader left it stops as on
    Ctrl-C. The report is written all the same, and the error comes last.
    """
    begun = time.monotonic()
    printed = Output(sys.stdout)
    console = Console(file=cast(TextIO, Output(sys.stderr) if form == "json" else printed))
    tell = lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False)  # noqa: E731
    world = load(path)
    tell(f"world     {world.name}: {count(len(world.specs), 'task')}, {count(len(world.file.accounts), 'account')}, from {path}")  # fmt: skip
    for line in _unused(world, choice):
        tell(f"note      {line}")
    played, stopped = 0, False
    clock = clock_of(choice.engine)
    with _stoppable(clock), Running(world, choice, out, clock) as running:
        for line in running.found:
            tell(f"found     {line}")
        for line in running.notes:
            tell(f"note      {line}")
        try:
            tell(_begins(world, running, choice))
            for name in running.awake():
                tell(f"note      {name} is not up yet, or does not tell its experience")
            with view(form, running, console, cast(TextIO, printed)) as seen:
                for round in running.rounds():
                    seen.show(round)
                    played += 1
                    if isinstance(printed.lost, BrokenPipeError):
                        break
        except KeyboardInterrupt:
            stopped = True
            tell("stopping  programs, limits")
    tell("writing   history and report")
    series = _finish(running.folder, world)
    if form == "table" and len(series.number):
        console.print(_summary(series, running.advised))
    tell(_where(running.folder, played, time.monotonic() - begun))
    if printed.lost is not None:
        raise printed.lost
    if stopped and choice.rounds is not None:
        raise SystemExit(130)


def _begins(world: World, running: Running, choice: Choice) -> str:
    if running.count == 0:
        return f"note      nothing is left to play: the world has {count(running.first, 'round')}, and all were played"
    if running.count is None:
        until = f"round {running.first} until Ctrl-C"
    else:
        last = running.first + running.count - 1
        until = f"rounds {running.first} to {last}" if running.count > 1 else f"round {last}"
    lines = [f"starting  {', '.join(world.specs)}"]
    if running.enforcer:
        lines.append(f"enforcer  {running.enforcer}: {HOLDS[running.enforcer]}")
    lines.append(f"running   {choice.engine} engine, {until}, log {running.folder.log}")
    if running.advised:
        lines.append(
            "note      advice only: what would be granted and paid is shown, and accounts move in this trial log only"
        )
    return "\n".join(lines)


def _unused(world: World, choice: Choice) -> Iterator[str]:
    """What is read and checked and changes nothing: said, not silently ignored."""
    if world.quantile is not None:
        yield "quantile is checked and not used yet: demand is what the file says"
    if choice.advise and choice.engine == "sim":
        yield "--advise changes nothing on the sim engine: there is no machine to leave alone"


@contextmanager
def _stoppable(clock: Clock) -> Iterator[None]:
    """Stop at the next wait on Ctrl-C or a request to end, so that nothing is cut in half."""
    if not isinstance(clock, WallClock):
        yield
        return
    stop = clock.stop
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, lambda *_: stop()) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _finish(folder: Folder, world: World) -> Series:
    """Make history and report anew from the log, so that they hold every round, also those before a crash."""
    with folder.read() as log:
        genesis = began(log)
        write(
            reading.rounds(log),
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
            advised=advised(genesis),
        )
        return render(reading.rounds(log), about, folder.report)


def _verify(folder: Folder) -> str:
    command = "apportion" if shutil.which("apportion") else os.path.relpath(sys.argv[0])
    return f"{command} verify {folder.log} --key {folder.pub}"


def _summary(s: Series, advised: bool) -> Table:
    """Per task, over all rounds of the log: how well it was served, and what it paid."""
    whole = f"round {s.number[0]}" if len(s.number) == 1 else f"all rounds, {s.number[0]} to {s.number[-1]}"
    stopped = f", of which {len(s.aborted)} aborted" if s.aborted else ""
    table = Table(
        title=f"{whole}{stopped}", caption="means; misses: rounds below its target; – not told", caption_justify="left"
    )
    for heading in ("task", "experience", "misses", "would be served" if advised else "served"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    table.add_column("would have paid" if advised else "paid", justify="right")
    for i, name in enumerate(s.task):
        table.add_row(
            Text(name),
            felt(s.experience[:, i]),
            f"{np.nansum(s.missed[:, i]):.0f}",
            part(s.share[:, i]),
            f"{s.paid[:, i].sum():,.2f}",
        )
    return table


def _where(folder: Folder, rounds: int, seconds: float) -> str:
    return (
        f"done      {count(rounds, 'round')} in {seconds:.0f} s\n"
        f"report    {folder.report}\n"
        f"history   {folder.history}\n"
        f"verify    {_verify(folder)}"
    )
