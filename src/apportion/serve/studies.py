"""Comparing policies from the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from apportion.core.errors import BadInput
from apportion.core.policies import named
from apportion.serve.build import play
from apportion.study.compare import compare
from apportion.worlds.world import load

MOST_SEEDS = 10_000


def compared(
    worlds: list[Path], policies: str, engine: str, seeds: str, rounds: int, out: Path, *, fresh: bool, form: str
) -> None:
    """Play every policy on every world and seed, print the table and the sentence."""
    if engine != "sim":
        raise BadInput(
            f"--engine {engine}: policies are compared on the sim engine, where each meets the very same load."
        )
    names = [name.strip() for name in policies.split(",") if name.strip()]
    for name in names:
        named(name)
    numbers, loaded = read_seeds(seeds), [load(path) for path in worlds]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    ) as bar:
        line = bar.add_task("")
        results = compare(
            loaded,
            names,
            numbers,
            rounds,
            play,
            lambda done, total, what: bar.update(line, completed=done, total=total, description=what),
            path=out,
            fresh=fresh,
        )
    if form == "json":
        print(json.dumps(results.summary()))
    else:
        console = Console()
        console.print(results.table())
        console.print(results.sentence, soft_wrap=True, highlight=False)
        console.print(f"rows      {out}", highlight=False)


def read_seeds(text: str) -> list[int]:
    """Read `1..5` or `1,4,7`."""
    seeds: Sequence[int] = ()
    if span := re.fullmatch(r"(\d{1,16})\.\.(\d{1,16})", text.strip()):
        seeds = range(int(span[1]), int(span[2]) + 1)
    elif re.fullmatch(r"\d{1,16}(,\d{1,16})*", text.replace(" ", "")):
        seeds = list(dict.fromkeys(int(s) for s in text.split(",")))
    if not seeds or seeds[-1] >= 2**53:
        raise BadInput(f"--seeds {text!r}: write a range like 1..5 or a list like 1,4,7, of numbers below 2^53.")
    if len(seeds) > MOST_SEEDS:
        raise BadInput(
            f"--seeds {text!r}: that is {len(seeds):,} seeds; 5 to 50 are usual, {MOST_SEEDS:,} are the most."
        )
    return list(seeds)
