"""Series in, charts out: what the page draws, thinned to what a page can hold, each with its words.

A chart is lines over rounds. Its `role` gives a line its look (report.css and report.js know the roles), its
`says` is what a screen reader says instead of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from apportion.core.units import resource
from apportion.study.series import Series, spells, thin

NUMBERS = 120_000  # what all charts together may hold: under 1 MB of JSON
POINTS = (60, 600)  # points of a line: at least, at most
CHARTED = 60  # tasks that get charts; the table has all
OPEN = 12  # tasks whose charts are open from the start
LINES = 8  # lines in one chart that eyes can tell apart


class Line(NamedTuple):
    """One line of a chart: a number per point, and its mean over all rounds, however few points there are."""

    label: str
    role: str
    y: np.ndarray
    mean: float


@dataclass(slots=True)
class Chart:
    """One picture: a title, its unit, lines of (label, role, numbers), and when something happened."""

    id: int
    title: str
    unit: str
    says: str
    lines: list[Line]
    events: list[tuple[int, int, str]] = field(default_factory=list)  # first and last round; label
    target: float | None = None  # a level to compare with
    top: float | None = None  # of the vertical axis, where it is known beforehand
    kind: str = "number"  # or percent, or experience: three decimals, as in the tables
    tall: bool = False


class Sheet:
    """Draws up the charts of one report, all with the same points in time."""

    def __init__(self, s: Series):
        self.s, self.charts = s, list[Chart]()
        n, tasks, resources = len(s.number), min(len(s.task), CHARTED), len(s.resource)
        lines = tasks * (2 + 3 * resources) + 2 * resources * min(len(s.pool), LINES) + 2 * LINES + 3
        points = int(np.clip(NUMBERS // max(1, lines), *POINTS))
        self.per = max(1, -(-n // points))  # rounds to a point
        self._surges = [spells(s.surge[:, i], s.number) for i in range(len(s.task))]

    def overview(self) -> Chart:
        """Experience of every task, or of the mean and the worst where there are too many."""
        s = self.s
        if len(s.task) <= LINES:
            lines = [self._line(name, f"line{i}", s.experience[:, i]) for i, name in enumerate(s.task)]
        else:
            known = ~np.isnan(s.experience)
            with np.errstate(invalid="ignore"):
                mean = np.where(known, s.experience, 0).sum(axis=1) / known.sum(axis=1)
            low = np.where(known, s.experience, np.inf).min(axis=1)
            low[~known.any(axis=1)] = np.nan
            lines = [self._line("mean", "experience", mean), self._line("lowest", "lowest", low, "min")]
        says = "; ".join(f"{line.label} {ranged(line.y, '')}" for line in lines)
        return self._add(
            "experience",
            "",
            f"Experience over the rounds. {says}.",
            lines,
            self._union(),
            top=1.0,
            kind="experience",
            tall=True,
        )

    def task(self, i: int) -> list[Chart]:
        """One task's experience, and each resource as wanted, granted and delivered."""
        s, name = self.s, self.s.task[i]
        events = [(a, b, f"×{factor:.3g}") for a, b, factor in self._surges[i]] + self._aborted()
        lines = [self._line("experience", "experience", s.experience[:, i])]
        if self.per > 1:
            lines.append(self._line("lowest", "lowest", s.experience[:, i], "min"))
        target = float(s.target[i])
        says = f"Experience of {name}: {ranged(s.experience[:, i], '')}; its target is {show(target)}."
        out = [self._add("experience", "", says, lines, events, target=target, top=1.0, kind="experience")]
        for r, what in enumerate(s.resource):
            unit = resource(what).unit
            both = (("wanted", s.wanted), ("granted", s.granted), ("delivered", s.delivered))
            lines = [self._line(label, label, x[:, i, r]) for label, x in both]
            said = "; ".join(f"{label} {ranged(x[:, i, r], unit)}" for label, x in both)
            out.append(self._add(what, unit, f"{what} of {name}: {said}.", lines, events))
        return out

    def prices(self) -> list[Chart]:
        """One chart per resource, a line per pool."""
        s = self.s
        return [
            self._pools(what, f"credits per {resource(what).one} and round", f"Price of {what}", s.price[:, :, r], None)
            for r, what in enumerate(s.resource)
        ]

    def loads(self) -> list[Chart]:
        """How full the pools are, one chart per resource."""
        return [
            self._pools(what, "of the pool", f"Granted part of the pool, {what}", self.s.load[:, :, r], 1.0)
            for r, what in enumerate(self.s.resource)
        ]

    def balances(self, accounts: tuple[str, ...]) -> Chart:
        """What accounts hold after each round: those that moved most, where there are too many."""
        s, shown = self.s, list(range(len(accounts)))
        if len(shown) > LINES:
            swing = s.balance.max(axis=0, initial=-np.inf) - s.balance.min(axis=0, initial=np.inf)
            shown = sorted(np.argsort(-swing, kind="stable")[:LINES].tolist())
        lines = [self._line(accounts[a], f"line{k}", s.balance[:, a], "last") for k, a in enumerate(shown)]
        says = "; ".join(f"{accounts[a]} {ranged(s.balance[:, a], 'credits')}" for a in shown)
        return self._add("balance", "credits", f"Balances after each round. {says}.", lines, self._union(), tall=True)

    def gap(self) -> Chart:
        """Certified distance from the optimum."""
        gap = np.where(np.isfinite(self.s.gap), self.s.gap, np.nan)
        lines = [self._line("gap", "gap", gap, "max")]
        says = f"Certified gap: {ranged(gap * 100, '%')}."
        return self._add("gap", "at most", says, lines, self._union(), kind="percent", tall=True)

    def payload(self) -> dict:
        """Everything the script draws."""
        return payload(self.charts, self.s.number, self.per)

    def _pools(self, what: str, unit: str, says: str, x: np.ndarray, top: float | None) -> Chart:
        pools = self.s.pool
        if len(pools) <= LINES:
            lines = [self._line(name, f"line{j}", x[:, j]) for j, name in enumerate(pools)]
        else:
            order = np.argsort(-np.nan_to_num(x).sum(axis=0), kind="stable")[:LINES]
            lines = [self._line(pools[j], f"line{k}", x[:, j]) for k, j in enumerate(order)]
        said = "; ".join(f"{line.label} {ranged(line.y, '')}" for line in lines)
        kind = "percent" if top else "number"
        return self._add(what, unit, f"{says}, {unit}: {said}.", lines, self._union(), top=top, kind=kind)

    def _add(
        self,
        title: str,
        unit: str,
        says: str,
        lines: list[Line],
        events: list[tuple[int, int, str]],
        *,
        target: float | None = None,
        top: float | None = None,
        kind: str = "number",
        tall: bool = False,
    ) -> Chart:
        chart = Chart(len(self.charts), title, unit, says, lines, events, target, top, kind, tall)
        self.charts.append(chart)
        return chart

    def _line(self, label: str, role: str, x: np.ndarray, how: str = "mean") -> Line:
        return drawn(label, role, x, self.per, how)

    def _union(self) -> list[tuple[int, int, str]]:
        """When any task surges, once; and the rounds that did not finish."""
        most = np.max(np.nan_to_num(self.s.surge), axis=1, initial=0.0)
        out = []
        for a, b, factor in spells(most, self.s.number):
            who = [self.s.task[i] for i, x in enumerate(self._surges) if any(c <= b and d >= a for c, d, _ in x)]
            name = who[0] if len(who) == 1 else f"{len(who)} tasks, up to"
            out.append((a, b, f"{name} ×{factor:.3g}"))
        return out + self._aborted()

    def _aborted(self) -> list[tuple[int, int, str]]:
        return [(number, number, "") for number, _ in self.s.aborted]


def payload(charts: Sequence[Chart], number: Int[np.ndarray, " round"], per: int) -> dict:
    """Give what the script draws: charts with a point for every `per` rounds. Rounds count from 0, as in the log."""
    return {
        "x": number[::per].tolist(),
        "end": int(number[-1]) + 1 if len(number) else 0,
        "per": per,
        "charts": [
            {
                "title": c.title,
                "tall": c.tall,
                "unit": c.unit,
                "kind": c.kind,
                "top": c.top,
                "target": c.target,
                "events": c.events,
                "lines": [
                    {"label": line.label, "role": line.role, "y": _short(line.y), "mean": _known(line.mean)}
                    for line in c.lines
                ],
            }
            for c in (charts if len(number) else [])
        ],
    }


def drawn(label: str, role: str, x: Float[np.ndarray, " round"], per: int, how: str = "mean") -> Line:
    """Give a line of a chart: thinned, with the mean of what it shows."""
    y = thin(x, per, how)
    known = (x if how == "mean" else y)[~np.isnan(x if how == "mean" else y)]
    return Line(label, role, y, float(known.mean()) if known.size else np.nan)


def show(x: float) -> str:
    """Write a number for people: three digits, more only where the number is large."""
    if not np.isfinite(x):
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def count(n: int, what: str) -> str:
    """Write how many of something there are."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def ranged(x: np.ndarray, unit: str) -> str:
    """Say between what bounds a curve runs."""
    known = x[np.isfinite(x)]
    if not known.size:
        return "not measured"
    unit = f" {unit}" if unit else ""
    if known.min() == known.max():
        return f"{show(known.min())}{unit} throughout"
    return f"{show(known.min())} to {show(known.max())}{unit}, mean {show(known.mean())}"


def _known(x: float) -> float | None:
    return x if np.isfinite(x) else None  # whole: it is written like the tables write it


def _short(y: np.ndarray) -> list[float | int | None]:
    """Four digits are more than a screen shows."""
    return [None if not np.isfinite(v) else int(v) if v == int(v) else float(f"{v:.4g}") for v in y.tolist()]
