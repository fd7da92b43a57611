"""Measuring beside others from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.status import Status

from apportion.core.errors import BadInput
from apportion.serve.studies import read_seeds
from apportion.study.bench import Bench, bench


def benched(
    sizes: list[str],
    objectives: list[str],
    peers: list[str],
    *,
    gaps: str,
    seeds: str,
    contention: float,
    eligible: int,
    slowest: float,
    out: Path,
    form: str,
) -> None:
    """Run, write a row per solve as they come, print the table and who was skipped."""
    try:
        asked = [float(gap) for gap in gaps.split(",") if gap.strip()]
    except ValueError:
        raise BadInput(f"--gaps {gaps!r}: write numbers like 0.001,0.0001.") from None
    for name, given in (("--sizes", sizes), ("--objectives", objectives), ("--gaps", asked)):
        if not given:
            raise BadInput(f"{name} is empty: name at least one.")
    if not out.parent.is_dir():  # said before hours of work, not after
        raise BadInput(f"--out {out}: there is no folder {out.parent}.")
    written = 0
    with Status("", console=Console(file=sys.stderr)) as line:

        def watch(so_far: Bench, what: str) -> None:
            nonlocal written
            line.update(what)
            if len(so_far.rows) > written:
                so_far.write(out)
                written = len(so_far.rows)

        result = bench(sizes, objectives, asked, read_seeds(seeds), peers, slowest, watch, contention, eligible)
    if form == "json":
        print(json.dumps(result.summary()))
        return
    console = Console()
    console.print(result.tables(), highlight=False)
    for name, why in result.skipped.items():
        console.print(f"skipped   {name}: {why}", highlight=False)
    console.print(f"rows      {out}", highlight=False)
