"""Playing economies from the command line: a bar, a table, files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Shown

from apportion.core.errors import BadInput
from apportion.serve.credits import allowed, load
from apportion.serve.studies import read_seeds
from apportion.study import economy_report, economy_studies, properties
from apportion.study.economy import run
from apportion.study.economy_agents import Credits

TOLD = ("fairness", "served", "use", "rationed")  # differences that a screen has space for; -o json has all
SHORT = {"fairness": "fair", "price_index": "index"}
MOST = 2e9  # agent-rounds that memory holds as a run is kept whole, 40 bytes each: refused before an hour of playing


def played(file: Path, agents: int, rounds: int, seed: int, mechanism: str | None, out: Path, form: str) -> bool:
    """Play one economy and write what it showed; gives whether it was played to its end."""
    name, credits = load(file)
    credits = credits if mechanism is None else economy_studies.with_mechanism(credits, mechanism)
    _folder(out, agents * rounds)
    with _bar() as tick:
        found = run(
            credits, agents, rounds, seed, tick=lambda done: tick(done, rounds, f"{credits.mechanism}, seed {seed}")
        )
    economy_report.write(found, out, name, _facts(credits, agents=agents, rounds=rounds, seed=seed))
    scores, kinds = economy_studies.scores(found), economy_studies.by_kind(found)
    told = {
        "name": name,
        "mechanism": found.mechanism,
        "agents": agents,
        "rounds": len(found.gap),
        "asked_rounds": rounds,
        "seed": seed,
        "stopped": found.stopped,
        "scores": {k: economy_studies.number(x) for k, x in scores.items()},
        "kinds": kinds,
        "largest_gap": economy_studies.number(np.nanmax(found.gap)) if (~np.isnan(found.gap)).any() else None,
        "drift": found.drift,
        "files": [str(out / file) for file in (economy_report.ROUNDS, economy_report.AGENTS, economy_report.PAGE)],
    }  # fmt: skip
    if form == "json":
        print(json.dumps(told))
        return not found.stopped
    console = Console()
    console.print(economy_report.lead(found), soft_wrap=True, highlight=False)
    _print(console, [{"score": k, "value": economy_report.show(x)} for k, x in scores.items()])
    _print(console, [{k: economy_report.shown(x) for k, x in row.items()} for row in kinds])
    if told["largest_gap"] is not None:
        console.print(f"gap       {told['largest_gap']:.2g} at most", highlight=False)
    console.print(f"written   {', '.join(told['files'])}", soft_wrap=True, highlight=False)
    return not found.stopped


def compared(
    credits_file: Path | None, mechanisms: str, agents: int, rounds: int, seeds: str, out: Path | None, form: str
) -> None:
    """Play the same agents under several mechanisms."""
    name, credits = load(credits_file)
    names = [m.strip() for m in mechanisms.split(",") if m.strip()]
    _varied(
        lambda numbers, tick: economy_studies.compare(credits, names, agents, rounds, numbers, tick),
        f"{name}: mechanisms", _facts(credits, agents=agents, rounds=rounds, seeds=seeds), read_seeds(seeds), out, form,
    )  # fmt: skip


def swept(
    assignment: str,
    credits_file: Path | None,
    steps: int,
    agents: int,
    rounds: int,
    seeds: str,
    out: Path | None,
    form: str,
) -> None:
    """Play the same agents with one number at several values."""
    name, credits = load(credits_file)
    key, values = span(assignment, steps)
    for value in values:
        allowed(economy_studies.with_key(credits, key, value), key)
    _varied(
        lambda numbers, tick: economy_studies.sweep(credits, key, values, agents, rounds, numbers, tick),
        f"{name}: {assignment}", _facts(credits, agents=agents, rounds=rounds, seeds=seeds), read_seeds(seeds), out, form,
    )  # fmt: skip


def span(assignment: str, steps: int) -> tuple[str, list[float]]:
    """Read KEY=a..b; values are evenly apart, or evenly in their logarithm where b is 8 times a or more."""
    found = re.fullmatch(r"\s*([a-z_]+(?:\.\w+)?)\s*=\s*([-+.\de]+?)\s*\.\.\s*([-+.\de]+)\s*", assignment)
    try:
        a, b = (float(found[2]), float(found[3])) if found else (1.0, 0.0)
    except ValueError:
        a, b = 1.0, 0.0
    if not found or not a <= b < 1e300:
        raise BadInput(f"{assignment!r}: write KEY=a..b with a at most b, for example half_life=10..300.")
    values = np.geomspace(a, b, steps) if a > 0 and b >= 8 * a else np.linspace(a, b, steps)
    return found[1], list(dict.fromkeys(float(f"{x:.6g}") for x in values))


def attacked(
    what: str, credits_file: Path | None, k: int, agents: int, rounds: int, seeds: str, out: Path | None, form: str
) -> None:
    """Let one agent of each class deviate."""
    name, credits = load(credits_file)
    numbers = read_seeds(seeds)
    with _bar() as tick:
        gains = economy_studies.attack(credits, what, k, agents, rounds, numbers, tick)
    facts = _facts(credits, agents=agents, rounds=rounds, seeds=seeds, k=k)
    _report(out, lambda: economy_report.gains_page(gains, f"{name}: {what}", facts))
    if form == "json":
        print(
            json.dumps(
                {"attack": what, "k": k, "agents": agents, "rounds": rounds, "gains": [g.summary() for g in gains]}
            )
        )
        return
    rows = [
        {"agent": g.target, "way": g.way, "useful share": economy_report.sure(g.share, "{:+.2%}"),
         "credits a round": economy_report.sure(g.credits, "{:+.3g}")}
        for g in gains
    ]  # fmt: skip
    _print(Console(), rows)


def checked(credits_file: Path | None, mechanisms: str, agents: int, rounds: int, seeds: str, form: str) -> None:
    """Measure every property of every mechanism; the table is Markdown, as the docs hold it."""
    _, credits = load(credits_file)
    names = [m.strip() for m in mechanisms.split(",") if m.strip()]
    with _bar() as tick:
        found = properties.table(credits, names, agents, rounds, read_seeds(seeds), tick)
    if form == "json":
        print(json.dumps({m: {c.name: asdict(c) | {"holds": c.holds} for c in checks} for m, checks in found.items()}))
    else:
        print(properties.markdown(found))


def _varied(
    play: Callable[[Sequence[int], economy_studies.Tick], economy_studies.Table],
    title: str, facts: dict[str, str], seeds: Sequence[int], out: Path | None, form: str,
) -> None:  # fmt: skip
    with _bar() as tick:
        table = play(seeds, tick)
    _report(out, lambda: economy_report.table_page(table, title, facts))
    if form == "json":
        print(json.dumps(table.summary()))
        return
    console, means = Console(), {k: x.mean(axis=1) for k, x in table.scores.items()}
    values = list(enumerate(table.values))
    _print(console, [{table.what: v} | {s: economy_report.show(x[k]) for s, x in means.items()} for k, v in values])
    if len(values) > 1:
        console.print(f"Above {table.values[0]}, paired by seed, ± 95 % interval:", highlight=False)
        ahead = lambda k: {s: economy_report.ahead(table.difference(s, k)) for s in TOLD}  # noqa: E731
        _print(console, [{table.what: v} | ahead(k) for k, v in values[1:]])


def _report(out: Path | None, page: Callable[[], str]) -> None:
    if out is not None:
        _folder(out, 0)
        economy_report.whole(out / economy_report.PAGE, page())


def _folder(out: Path, size: int) -> None:
    """Find out now, not after an hour of playing."""
    if size > MOST:
        raise BadInput(f"{size:,} agents x rounds are more than {MOST:,.0f}: ask for fewer.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {out}: {error.strerror}. Name a folder.") from None


def _facts(credits: Credits, **more: object) -> dict[str, str]:
    told = {k: x for k in Credits.__slots__ if (x := getattr(credits, k)) is not None}
    write = lambda x: ", ".join(f"{a} {b:g}" for a, b in x.items()) if isinstance(x, dict) else str(x)  # noqa: E731
    return {k: write(x) for k, x in (told | more).items()}


def _print(console: Console, rows: Sequence[Mapping[str, object]]) -> None:
    table = Shown(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, name in enumerate(rows[0] if rows else ()):
        table.add_column(SHORT.get(name, name), justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table, highlight=False)


@contextmanager
def _bar() -> Iterator[economy_studies.Tick]:
    """Show what is played and how far it is, on standard error."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        line = bar.add_task("")
        yield lambda done, total, what: bar.update(line, completed=done, total=total, description=what)
