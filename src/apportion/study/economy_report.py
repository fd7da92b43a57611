"""A run of an economy as files: rows per round and per agent (Parquet), and one page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np

from apportion.core.errors import ApportionError
from apportion.core.files import replacing
from apportion.study.charts import POINTS, Chart, count, drawn, payload, ranged, show
from apportion.study.economy import Run
from apportion.study.economy_studies import RATIONED, Gain, Table, by_kind, figures, satisfied, scores
from apportion.study.report import filled
from apportion.study.stats import Interval, interval

ROUNDS, AGENTS, PAGE = "rounds.parquet", "agents.parquet", "report.html"
SAYS = {
    "price_index": ("price index", "of a round's bids", "what all there is would cost, beside what all may bid in a round: fixed quantities"),
    "velocity": ("velocity", "a round", "credits charged / credits there are"),
    "gini": ("Gini", "of balances", "0: all hold alike"),
    "rationed": ("rationed", "of those who want something", f"who could use less than {RATIONED:.1%} of what it wanted"),
    "bankrupt": ("bankrupt", "of all agents", "who holds less than it may bid in an ordinary round"),
    "fairness": ("fairness", "so far", "least / greatest part of what it wanted that an agent could use so far; Jain's index of these parts"),
    "use": ("use", "of the pool", "of the fullest resource"),
    "gap": ("gap", "at most", "certified distance of a round from the best one"),
}  # fmt: skip


def write(run: Run, folder: Path, title: str, facts: Mapping[str, str]) -> None:
    """Write rounds.parquet, agents.parquet and report.html, each whole or not at all. Raises ApportionError."""
    told, at_end = figures(run), satisfied(run)
    prices = {f"price_{name}": run.price[:, r] for r, name in enumerate(run.resources)}
    parquet(folder / ROUNDS, {"round": np.arange(len(run.gap)), **told, **prices})
    short = ((run.wanted > 0) & (run.got < RATIONED)).sum(axis=0)
    last = run.balance[-1] if len(run.balance) else run.opening
    parquet(
        folder / AGENTS,
        {
            "agent": np.arange(len(run.kind)),
            "kind": np.array(run.kind, object),
            "wanted": run.wanted.sum(axis=0),
            "used": (run.got * run.wanted).sum(axis=0),
            "asked": run.asked.sum(axis=0),
            "satisfied": at_end,
            "rationed": short,
            "paid": run.paid.sum(axis=0),
            "balance": last,
        },
    )
    whole(folder / PAGE, page(run, title, facts))


def parquet(path: Path, table: Mapping[str, np.ndarray]) -> None:
    """Write columns, nan as NULL."""
    typed = [
        f'CASE WHEN isnan("{c}") THEN NULL ELSE "{c}" END AS "{c}"' if x.dtype == float else f'"{c}"'
        for c, x in table.items()
    ]
    try:
        with replacing(path) as part, duckdb.connect() as db:
            db.register("rows", dict(table))
            file = str(part).replace("'", "''")
            db.execute(f"COPY (SELECT {', '.join(typed)} FROM rows) TO '{file}' (FORMAT parquet)")
    except (duckdb.Error, OSError) as error:
        raise ApportionError(f"{path} could not be written: {str(error).splitlines()[0]}") from None


def whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ApportionError(f"{path} could not be written: {error.strerror}.") from None


def page(run: Run, title: str, facts: Mapping[str, str]) -> str:
    """Give the page of a run as text."""
    n, told = len(run.gap), figures(run)
    per = max(1, -(-n // POINTS[1]))
    charts: list[Chart] = []

    def add(
        name: str, lines: list[tuple[str, str, np.ndarray]], kind: str = "number", how: str = "mean", top=None
    ) -> Chart:
        heading, unit, _ = SAYS[name]
        says = "; ".join(f"{label} {ranged(x, '')}" for label, _, x in lines)
        made = [drawn(label, role, x, per, how) for label, role, x in lines]
        charts.append(
            Chart(len(charts), heading, unit, f"{heading}, {unit}: {says}.", made, kind=kind, top=top, tall=True)
        )
        return charts[-1]

    kinds = list(dict.fromkeys(run.kind))
    fair = [("least / greatest", "line0", told["fairness"]), ("Jain", "line1", told["jain"])]
    sections = [
        ("fairness", add("fairness", fair, top=1.0)),
        ("rationed", add("rationed", [(k, f"line{i}", told[f"rationed_{k}"]) for i, k in enumerate(kinds)], "percent", top=1.0)),
        ("price_index", add("price_index", [(r, f"line{i}", run.price[:, i] / run.bill.sum()) for i, r in enumerate(run.resources[:8])])),
        ("velocity", add("velocity", [("velocity", "line0", told["velocity"])], "percent")),
        ("gini", add("gini", [("Gini", "line0", told["gini"])], top=1.0)),
        ("bankrupt", add("bankrupt", [("bankrupt", "line0", told["bankrupt"])], "percent", top=1.0)),
        ("use", add("use", [("fullest resource", "line0", told["use"])], "percent", top=1.0)),
        ("gap", add("gap", [("gap", "gap", told["gap"])], "percent", "max")),
    ]  # fmt: skip
    return filled(
        "economy.html",
        payload(charts, np.arange(n), per),
        title=title,
        lead=lead(run),
        tiles=[(SAYS[k][0], show(x), SAYS[k][2]) for k, x in scores(run).items() if k in SAYS],
        sections=[(SAYS[k][0], SAYS[k][2], chart) for k, chart in sections],
        kinds=[{k: shown(x) for k, x in row.items()} for row in by_kind(run)],
        rows=[],
        columns=[],
        per=per,
        facts=list(facts.items()),
    )


def lead(run: Run) -> str:
    """Say in a sentence or two what was played."""
    out = f"{count(len(run.gap), 'round')} of {count(len(run.kind), 'agent')} under {run.mechanism}, seed {run.seed}."
    if run.stopped:
        out += " Stopped before its last round: what is here is whole, and less than was asked for."
    if run.mechanism == "karma":
        return out + f" Karma's own credits: {run.drift:+,} were made in all."
    return out + (" No credit was made or lost." if run.drift == 0 else f" {run.drift:+,} micro-credits appeared.")


def table_page(table: Table, title: str, facts: Mapping[str, str]) -> str:
    """Give the page of a comparison or a sweep: a row for each value, with its difference from the first."""
    columns = [table.what, *(SAYS[k][0] if k in SAYS else k for k in table.scores)]
    rows = [
        [value, *(cell(x[k].mean(), table.difference(name, k) if k else None) for name, x in table.scores.items())]
        for k, value in enumerate(table.values)
    ]
    said = f"Means over seeds {', '.join(map(str, table.seeds))}; in brackets the difference from {table.values[0]}, paired by seed, ± its 95 % interval."
    return _plain(title, said, columns, rows, facts)


def gains_page(gains: list[Gain], title: str, facts: Mapping[str, str]) -> str:
    """Give the page of an attack."""
    columns = ["agent", "way", "gain in useful share", "gain in credits a round"]
    rows = [[g.target, g.way, sure(g.share, "{:+.2%}"), sure(g.credits, "{:+.3g}")] for g in gains]
    return _plain(title, "Gains are paired by seed, ± their 95 % interval.", columns, rows, facts)


def cell(x: float, difference: Interval | None = None) -> str:
    """Write a mean, and by how much it is above the first."""
    return show(x) if difference is None or not np.isfinite(difference.mean) else f"{show(x)} ({ahead(difference)})"


def ahead(d: Interval) -> str:
    """Write a difference ± its 95 % interval."""
    if not np.isfinite(d.mean):
        return "–"
    plain = lambda x: 0.0 if abs(x) < 1e-6 else x  # noqa: E731  # a solver's last digits are no difference
    return f"{plain(d.mean):+.2g}" + (f" ± {plain(d.high - d.mean):.2g}" if d.count > 1 else " (one seed)")


def sure(x: np.ndarray, form: str) -> str:
    """Write a mean over seeds ± its 95 % interval."""
    d = interval(x)
    if not np.isfinite(d.mean):
        return "–"
    return form.format(d.mean) + (
        f" ± {form.replace('+', '').format(d.high - d.mean)}" if d.count > 1 else " (one seed)"
    )


def _plain(title: str, said: str, columns: list[str], rows: list[list[str]], facts: Mapping[str, str]) -> str:
    return filled(
        "economy.html", payload([], np.zeros(0, np.int64), 1), title=title, lead=said, tiles=[], sections=[], kinds=[],
        rows=rows, columns=columns, per=1, facts=list(facts.items()),
    )  # fmt: skip


def shown(x: object) -> str:
    """Write a number or a name."""
    return show(x) if isinstance(x, float) else "–" if x is None else str(x)
