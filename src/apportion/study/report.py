"""Rounds in, one page out: report.html shows what was wanted, granted, delivered, felt and paid, by itself.

The page fetches nothing: charts (uPlot), style and data are inside it, and a Content-Security-Policy with the hashes
of exactly these scripts forbids anything else to run or load, whatever a task is called. Long runs are drawn with
one point for several rounds, and the page says so; its tables always count every round.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apportion.core.files import replacing
from apportion.core.round import Played
from apportion.core.units import resource
from apportion.study.charts import CHARTED, OPEN, Sheet, count, show
from apportion.study.series import Series, gather, spells
from apportion.study.stats import mean

HERE = Path(__file__).parent
NOTES = 40  # lines of notes; the log has the rest
HELD = {"cgroup2": ("cpu", "memory"), "cgroup1": ("cpu", "memory"), "governor": ("cpu",), "none": ()}  # sim: everything


@dataclass(frozen=True, slots=True)
class About:
    """What rounds do not say of themselves."""

    world: str
    policy: str = ""
    engine: str = ""
    description: str = ""
    accounts: tuple[str, ...] = ()
    round_seconds: float = 1.0
    verify: str = "apportion verify out/ledger.db --key out/operator.pub"
    facts: tuple[tuple[str, str], ...] = ()  # label and value: machine, versions, head of the log
    advised: bool = False  # nothing was enforced: what is called granted and paid is what would have been


def render(rounds: Iterable[Played], about: About, path: str | os.PathLike[str]) -> Series:
    """Write the page, whole or not at all; gives what it shows."""
    series = gather(rounds)
    with replacing(Path(path)) as part:
        part.write_text(page(series, about), encoding="utf-8")
    return series


def page(s: Series, about: About) -> str:
    """Give the page as text."""
    accounts = tuple(
        about.accounts[a] if a < len(about.accounts) else f"account {a}" for a in range(s.balance.shape[1])
    )
    sheet = Sheet(s)
    overview, charted = sheet.overview(), _order(s)[:CHARTED]
    tasks = [
        {
            "name": s.task[i],
            "kind": s.kind[i],
            "account": accounts[s.account[i]],
            "charts": sheet.task(i),
            "says": _task_line(s, i),
            "open": k < OPEN,
        }
        for k, i in enumerate(charted)
    ]
    figures = {
        "overview": overview,
        "tasks": tasks,
        "prices": sheet.prices(),
        "loads": sheet.loads(),
        "balances": sheet.balances(accounts),
        "gap": sheet.gap(),
    }
    return filled(
        "report.html",
        sheet.payload(),
        about=about,
        s=s,
        lead=_lead(s, about),
        tiles=_tiles(s),
        figures=figures,
        per=sheet.per,
        left_out=len(s.task) - len(charted),
        worst_first=len(s.task) > OPEN,
        task_rows=[_task_row(s, i, accounts) for i in range(len(s.task))],
        resources=[(r, resource(r).unit) for r in s.resource],
        account_kinds=list(s.moved),
        account_rows=_account_rows(s, accounts),
        sources=_sources(s),
        silent=[s.task[i] for i in range(len(s.task)) if np.isnan(s.experience[:, i]).all()],
        notes=s.notes[:NOTES],
        more_notes=max(0, len(s.notes) - NOTES),
        aborted=s.aborted,
        charged=bool(s.paid.sum() + s.sponsored.sum() > 0),
    )


STATIC = ("uplot.min.js", "uplot.min.css", "report.js", "report.css")


def filled(template: str, payload: dict, **fields: object) -> str:
    """Give a page, complete in itself: a template with its fields, the data of its charts, style and scripts."""
    static = {name: (HERE / "static" / name).read_text(encoding="utf-8") for name in STATIC}
    style, scripts = static["uplot.min.css"] + static["report.css"], [static["uplot.min.js"], static["report.js"]]
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"style": style, "scripts": scripts, "data": embed(payload), "policy": _policy([style], scripts)}
    return env.get_template(template).render(**own, **fields)


def embed(data: object) -> str:
    """Give JSON that may stand inside a script element, whatever strings it holds."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text


def _policy(styles: list[str], scripts: list[str]) -> str:
    """A Content-Security-Policy under which these and nothing else run, and nothing is fetched."""
    digest = lambda text: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"  # noqa: E731
    return (
        f"default-src 'none'; script-src {' '.join(map(digest, scripts))}; style-src {' '.join(map(digest, styles))}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _order(s: Series) -> list[int]:
    """The world's order; where there are too many to open all, those worst off first."""
    if len(s.task) <= OPEN:
        return list(range(len(s.task)))
    means = [mean(s.experience[:, i]) for i in range(len(s.task))]
    return sorted(range(len(s.task)), key=lambda i: (np.isnan(means[i]), means[i]))


def _lead(s: Series, about: About) -> list[str]:
    """What happened, in a few sentences."""
    n = len(s.number)
    if not n:
        return ["No round was played."]
    by = "enforced by " + (" and ".join(s.enforcer) or "nothing")
    if about.advised:
        by = "on advice alone: nothing was enforced"
    on = f" on the {about.engine} engine" if about.engine else ""
    rule = f" under the policy {about.policy}" if about.policy else ""
    out = [f"{count(n, 'round')} of {about.round_seconds:g} s{rule}{on}, {by}."]
    surges = [(name, *x) for i, name in enumerate(s.task) for x in spells(s.surge[:, i], s.number)]
    for name, a, b, factor in sorted(surges, key=lambda x: -x[3])[:3]:
        out.append(f"{name} met up to {factor:.3g} times its ordinary load in {_span(a, b)}.")
    if more := len(surges) - 3 if len(surges) > 3 else 0:
        out.append(f"There {'was' if more == 1 else 'were'} {count(more, 'smaller surge')}.")
    highest = s.price.max(axis=1, initial=0.0, where=~np.isnan(s.price)) if s.price.size else np.zeros((n, 0))
    priced = (highest > 0).sum(axis=0)
    if priced.any():
        r = int(priced.argmax())
        k = int(highest[:, r].argmax())
        out.append(
            f"{s.resource[r]} was scarce most often: it had a price in {priced[r]} of {count(n, 'round')}, at most "
            f"{show(highest[k, r])} credits per {resource(s.resource[r]).one} and round (round {s.number[k]})."
        )
    else:
        out.append("Nothing was priced, so nothing was charged.")
    if s.aborted:
        out.append(f"{count(len(s.aborted), 'round')} did not finish; nothing was charged for it.")
    return out


def _tiles(s: Series) -> list[tuple[str, str, str]]:
    """The figures one looks for first: label, value, note."""
    if not len(s.number):
        return []
    known = ~np.isnan(s.missed)
    misses, told = int(np.nansum(s.missed)), int(known.sum())
    means = np.array([mean(s.experience[:, i]) for i in range(len(s.task))])
    worst = int(np.nanargmin(means)) if (~np.isnan(means)).any() else None
    promised, broken = int((~np.isnan(s.broken)).sum()), int(np.nansum(s.broken))
    floors, note = ("kept", "in every round") if promised else ("none", "no task was promised one")
    if broken:
        floors, note = f"{broken:,} broken", f"of {promised:,} promised, by task and round"
    gap = s.gap[np.isfinite(s.gap)]
    return [
        ("experience", felt(means), "mean of all tasks, unweighted"),
        ("service-level misses", f"{misses:,}", f"of {told:,} task-rounds below target" if told else "nobody reported"),
        ("worst task", felt(means[worst : worst + 1]), s.task[worst])
        if worst is not None
        else ("worst task", "–", "nobody reported"),
        ("floors", floors, note),
        ("gap", _percent(float(gap.max())) if len(gap) else "–", "largest certified distance from the optimum"),
        ("paid", show(float(s.paid.sum() + s.sponsored.sum())), "credits, by tasks and sponsors"),
    ]


def _task_line(s: Series, i: int) -> str:
    x = s.experience[:, i]
    if np.isnan(x).all():
        return "It never reported its experience."
    k = int(np.nanargmin(x))
    misses = int(np.nansum(s.missed[:, i]))
    return (
        f"Experience {felt(x)} on average, lowest {felt(x[k : k + 1])} in round {s.number[k]}; "
        f"{count(misses, 'round')} below its target of {show(s.target[i])}."
    )


def _task_row(s: Series, i: int, accounts: tuple[str, ...]) -> dict:
    known = int((~np.isnan(s.experience[:, i])).sum())
    amounts = [
        " / ".join(show(mean(x[:, i, r])) for x in (s.wanted, s.granted, s.delivered)) for r in range(len(s.resource))
    ]
    return {
        "name": s.task[i],
        "kind": s.kind[i],
        "account": accounts[s.account[i]],
        "experience": felt(s.experience[:, i]),
        "lowest": f"{np.nanmin(s.experience[:, i]):.3f}" if known else "–",
        "target": show(s.target[i]),
        "misses": f"{int(np.nansum(s.missed[:, i])):,} of {known:,}" if known else "–",
        "served": part(s.share[:, i]),
        "amounts": amounts,
        "paid": f"{s.paid[:, i].sum():,.2f}",
    }


def _account_rows(s: Series, accounts: tuple[str, ...]) -> list[list[str]]:
    if not len(s.number):
        return []
    columns = [s.opening, *s.moved.values(), s.balance[-1]]
    rows = [[name, *(f"{c[a]:,.2f}" for c in columns)] for a, name in enumerate(accounts)]
    return [*rows, ["all", *(f"{c.sum() + 0.0:,.2f}" for c in columns)]]


def _sources(s: Series) -> list[tuple[str, str, bool, str]]:
    """Per resource: its name, where its delivery comes from, whether it was measured throughout, and who enforced it."""
    out = []
    for r, name in enumerate(s.resource):
        where = _shares(s.source[r])
        held = Counter({by: n for by, n in s.enforcer.items() if name in HELD.get(by, s.resource)})
        missing = s.enforcer.total() - held.total()
        if missing:
            held["nobody"] += missing
        out.append((name, where, bool(s.source[r]) and "unmeasured" not in s.source[r], _shares(held)))
    return out


def _shares(found: Counter[str]) -> str:
    """What it was, and where it changed for how many rounds."""
    return ", ".join(k if len(found) == 1 else f"{k} ({count(c, 'round')})" for k, c in found.items()) or "–"


def felt(x: np.ndarray) -> str:
    """Write a mean experience, with the same digits wherever people read one; – where nothing is known."""
    return "–" if np.isnan(felt := mean(x)) else f"{felt:.3f}"


def part(x: np.ndarray) -> str:
    """Write a mean share."""
    return "–" if np.isnan(share := mean(x)) else f"{share:.0%}"


def _percent(x: float) -> str:
    return "< 0.01 %" if 0 < x < 1e-4 else f"{x * 100:.2f} %"


def _span(a: int, b: int) -> str:
    return f"round {a}" if a == b else f"rounds {a} to {b}"
