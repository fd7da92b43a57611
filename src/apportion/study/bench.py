"""How long clearing takes beside what one would pick: the same instances, in one run, on one thread, in CPU seconds.

Each solve is a process of its own: arrays in memory to shares in memory, imports and compilation before the clock, the median
of a few where it is quick. Then everyone's shares are repaired alike and certified at their own prices by one certificate.

    gap       what the solver's own prices prove of its repaired shares; greedy has no prices
    behind    how far the repaired shares are from the least bound that anyone proved on this instance
    ratio     the peer's time over ours, for the gap that both were asked for
    peak_mb   the most memory the process held; start_mb: before the solve, with interpreter, packages and instance
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import duckdb
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from apportion.clearing.objectives import pose
from apportion.core.errors import ApportionError, BadInput
from apportion.core.files import replacing
from apportion.core.market import Market
from apportion.study import solve
from apportion.study.instances import SIZES, instance
from apportion.study.peers import ALL, PEERS
from apportion.study.solve import OURS, save

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


LONGER = "more than "
LEGEND = (
    "CPU s on one thread, mean over seeds (geometric); ratio: over ours for the same gap; gap: certified at the solver's own "
    "prices; behind: from the least bound anyone proved; both of the worst seed; MB: peak of the process; – has none; * not "
    "every seed was solved"
)


@dataclass(frozen=True)
class Row:
    """One solve. None where there is none: greedy has no prices, who took too long has no answer."""

    size: str
    tasks: int
    pools: int
    seed: int
    objective: str
    asked: float  # gap
    solver: str
    cpu_seconds: float | None = None
    ratio: float | None = None
    value: float | None = None
    bound: float | None = None
    gap: float | None = None
    behind: float | None = None
    peak_mb: float | None = None
    start_mb: float | None = None
    runs: int = 0
    contention: float = 2.2
    eligible: int = 8
    failed: str = ""  # why there is no answer


@dataclass
class Bench:
    """What came of it."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # peers that were asked for and not run, and why

    def summary(self) -> dict:
        """Give everything, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows], "skipped": self.skipped}

    def tables(self) -> Group:
        """Give a table per size, objective and gap asked for, with a line per solver over all seeds; then what failed."""
        races: dict[tuple, dict[str, list[Row]]] = {}
        for row in self.rows:
            family = (
                ""
                if (row.contention, row.eligible) == (2.2, 8)
                else f", {row.contention:g} wanted, {row.eligible} pools a task"
            )
            race = races.setdefault((row.size, row.tasks, row.pools, row.objective, row.asked, family), {})
            race.setdefault(row.solver, []).append(row)
        parts = []
        for (size, tasks, pools, objective, asked, family), race in races.items():
            title = Text(f"{size} {tasks:,} x {pools}, {objective}, {asked:g}{family}", style="bold")
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("solver", no_wrap=True, min_width=21)
            for name, width in (("CPU s", 9), ("ratio", 6), ("gap", 8), ("behind", 8), ("MB", 6)):
                table.add_column(name, justify="right", no_wrap=True, min_width=width)
            for solver, rows in race.items():
                table.add_row(Text(solver), *_cells(rows))
            parts.append(table)
        failed = [
            f"{row.size} seed {row.seed} {row.objective} {row.solver}: {row.failed}" for row in self.rows if row.failed
        ]
        return Group(*parts, Text(LEGEND), *(Text(f"failed    {why}") for why in failed))

    def write(self, path: Path) -> None:
        """Write the rows as Parquet; raise ApportionError where that fails."""
        columns = {name: [getattr(row, name) for row in self.rows] for name in Row.__dataclass_fields__}
        kinds: dict[str, str] = dict.fromkeys(("tasks", "pools", "seed", "runs", "eligible"), "BIGINT")
        kinds |= dict.fromkeys(("size", "objective", "solver", "failed"), "VARCHAR")
        typed = ", ".join(f"{name} {kinds.get(name, 'DOUBLE')}" for name in columns)
        try:
            with replacing(path) as part, duckdb.connect() as db:
                db.execute(f"CREATE TABLE results ({typed})")
                if self.rows:
                    marks = ", ".join("?" * len(columns))
                    db.executemany(f"INSERT INTO results VALUES ({marks})", list(zip(*columns.values(), strict=True)))
                file = str(part).replace("'", "''")
                db.execute(f"COPY results TO '{file}' (FORMAT parquet)")
        except (duckdb.Error, OSError) as error:
            raise ApportionError(f"{path} could not be written: {str(error).splitlines()[0]}") from None


def bench(
    sizes: Sequence[str],
    objectives: Sequence[str],
    gaps: Sequence[float],
    seeds: Sequence[int],
    peers: Sequence[str],
    slowest: float = 300.0,
    watch: Callable[[Bench, str], None] = lambda bench, what: None,
    contention: float = 2.2,
    eligible: int = 8,
) -> Bench:
    """Run ours and the peers on every instance; who takes more than `slowest` seconds is stopped and asked no larger size.

    watch: told before each solve, and once at the end. contention, eligible: `instance` tells.
    Raises BadInput where a name is not known.
    """
    for names, known, what in ((sizes, SIZES, "size"), (objectives, ALL, "objective"), (peers, PEERS, "peer")):
        for name in names:
            if name not in known:
                raise BadInput(f"{what} {name!r} is not known. Known: {', '.join(known)}.")
    for gap in gaps:
        if not gap > 0:
            raise BadInput(f"gap {gap}: it must be above 0; 0.001 asks for 0.1 %.")
    out = Bench(skipped={p: f"{PEERS[p].package} is not installed" for p in peers if PEERS[p].missing})
    racing = [OURS, *(peer for peer in peers if peer not in out.skipped)]
    tired: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(sizes, key=lambda name: SIZES[name]):
            for seed in seeds:
                market = instance(*SIZES[size], seed, contention, eligible)
                file = Path(folder) / "problem.npz"
                save(file, market)
                for objective in objectives:
                    rows = [
                        Row(size, *SIZES[size], seed, objective, gap, name, contention=contention, eligible=eligible)
                        for gap in gaps
                        for name in racing
                        if name == OURS or objective in PEERS[name].objectives
                    ]
                    found = []
                    for row in rows:
                        watch(out, f"{size} seed {seed} {objective} {row.asked:g} {row.solver}")
                        found.append(_asked(row, file, slowest, tired))
                    out.rows += _compared(market, objective, found)
    watch(out, "done")
    return out


def _asked(row: Row, file: Path, slowest: float, tired: set[tuple[str, str]]) -> Row:
    """Have one solve done by a process of its own."""
    if (row.solver, row.objective) in tired:
        return replace(row, failed="not asked: too slow before")
    command = [sys.executable, "-m", solve.__name__, str(file), row.objective, row.solver, repr(row.asked)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=slowest,
            check=False,
            env=os.environ | dict.fromkeys(THREADS, "1"),
        )
    except subprocess.TimeoutExpired:
        tired.add((row.solver, row.objective))
        return replace(row, failed=f"{LONGER}{slowest:g} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return replace(row, failed=last[:200])
    return replace(row, **json.loads(done.stdout))


def _compared(market: Market, objective: str, rows: Sequence[Row]) -> Iterator[Row]:
    """Add what takes everyone's answer to know: how far from the least bound, how much slower than ours."""
    _, goal = pose(market, objective)
    least = min((row.bound for row in rows if row.bound is not None), default=np.inf)
    ours = {row.asked: row.cpu_seconds for row in rows if row.solver == OURS}
    for row in rows:
        behind = None if row.value is None else goal.gap(row.value, least)
        base = ours.get(row.asked)
        slower = row.cpu_seconds / base if row.cpu_seconds and base else None
        yield replace(row, behind=behind, ratio=slower)


def _cells(rows: Sequence[Row]) -> list[str]:
    done = [row for row in rows if not row.failed]
    if not done:
        late = [row.failed.removeprefix(LONGER).removesuffix(" s") for row in rows if row.failed.startswith(LONGER)]
        return [f"> {late[0]}" if len(late) == len(rows) else "failed"]
    return [
        _mean([row.cpu_seconds for row in done], "{:.3g}") + ("" if len(done) == len(rows) else "*"),
        _mean([row.ratio for row in done], "{:.3g}") if done[0].solver != OURS else "",
        _worst([row.gap for row in done], "{:.1e}"),
        _worst([row.behind for row in done], "{:.1e}"),
        _worst([row.peak_mb for row in done], "{:.0f}"),
    ]


def _mean(known: Sequence[float | None], form: str) -> str:
    numbers = [x for x in known if x]
    return form.format(float(np.exp(np.mean(np.log(numbers))))) if numbers else "–"


def _worst(known: Sequence[float | None], form: str) -> str:
    numbers = [x for x in known if x is not None]
    return form.format(max(numbers)) if numbers else "–"
