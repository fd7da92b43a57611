"""What one sees while a world runs: a live table on a terminal, a line per round elsewhere, JSON on request."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO, runtime_checkable

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apportion.core.round import Round
from apportion.core.units import credits, resource, scales
from apportion.serve.build import Running
from apportion.study.charts import show

SAID = (
    "served: part of what it wants that is granted; experience: operations in time / asked, – where the program did not "
    "say; bid and paid: credits for the round"
)


@runtime_checkable
class View(Protocol):
    """Is shown every round, in order."""

    def show(self, round: Round) -> None: ...


@contextmanager
def view(form: str, running: Running, console: Console, out: TextIO) -> Iterator[View]:
    """Choose how rounds are shown: `json` a line each to `out`, a live table on a terminal, else a plain line each."""
    if form == "json":
        yield _Json(running, out)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield _Table(running, live)
    else:
        yield _Lines(running, console)


class _Json:
    def __init__(self, running: Running, out: TextIO):
        self.running, self.out = running, out

    def show(self, round: Round) -> None:
        told = as_dict(round) | {"advised": self.running.advised, "released": self.running.released}
        print(json.dumps(told), file=self.out, flush=True)


class _Lines:
    def __init__(self, running: Running, console: Console):
        self.running, self.console = running, console
        granted = "would be granted" if running.advised else "granted"
        if running.engine is not None:
            self._print(
                f"a line    round | per task: part of its demand {granted}, experience (– not told) | price | gap"
            )

    def show(self, round: Round) -> None:
        self._print(line(round, _last(self.running)))
        for note in _news(round, self.running):
            self._print(f"  ! {note}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class _Table:
    def __init__(self, running: Running, live: Live):
        self.running, self.live = running, live
        self.notes: deque[str] = deque(maxlen=3)  # the last ones stay in sight

    def show(self, round: Round) -> None:
        self.notes += [f"! round {round.number}: {note}" for note in _news(round, self.running)]
        notes = [Text(note, style="yellow") for note in self.notes]
        tasks = tasks_table(round, self.running.advised)
        self.live.update(Group(head(round, self.running), tasks, pools_table(round), *notes), refresh=True)


def head(round: Round, running: Running) -> Text:
    """Which round this is, who holds the programs, and what is happening in the world."""
    last = _last(running)
    holds = "advice only, nothing is enforced" if running.advised else f"enforcer {round.outcome.enforcer}"
    if running.released:
        holds = "released: nothing is enforced"
    number = f"round {round.number}" + (f" of 0 to {last}" if last is not None else "")
    text = Text(f"{number} · {holds} · gap {round.allocation.gap:.1e}")
    for event, seconds in running.happening(round.number):
        who = ", ".join(event.tasks) if len(event.tasks) <= 3 else f"{len(event.tasks)} tasks"
        text.append(f"\n{event.name}: {who} x{event.load:.3g}, {seconds:.0f} s left", style="bold")
    return text


def line(round: Round, last: int | None) -> str:
    """One round in one line."""
    t, a = round.tasks, round.allocation
    shown = "  ".join(
        f"{name} {served:4.0%} {_score(experience):>4}"
        for name, served, experience in zip(t.name, a.served, round.outcome.experience, strict=True)
    )
    number = f"{round.number}" if last is None else f"{round.number:>{len(str(last))}}/{last}"
    return f"round {number}  {shown}  | {_dearest(round)}  gap {a.gap:.1e}"


def tasks_table(round: Round, advised: bool = False) -> Table:
    """Per task: wanted, granted, delivered (the first resource), experience and payment. Fits 80 columns."""
    t, market, outcome = round.tasks, round.market, round.outcome
    kind = resource(round.pools.resources[0])
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption=SAID, caption_justify="left"
    )
    table.add_column(f"task\n({kind.name} in {kind.unit})", overflow="fold")
    granted, paid = ("would be\ngranted", "would\npay") if advised else ("granted", "paid")
    for heading in ("wanted", granted, "delivered", "served", "experience", "bid", paid):
        table.add_column(heading, justify="right", no_wrap=True)
    held = market.per_task(round.allocation.granted[:, 0])
    delivered = outcome.by_task(market)[:, 0]
    for i, name in enumerate(t.name):
        experience = outcome.experience[i]
        style = "" if np.isnan(experience) else "green" if experience >= t.target[i] else "bold red"
        surge = f" x{t.surge[i]:.3g}" if t.surge[i] != 1 else ""
        table.add_row(
            Text(f"{name}{surge}"),
            show(t.demand[i, 0] / kind.scale),
            show(held[i] / kind.scale),
            show(delivered[i] / kind.scale),
            f"{round.allocation.served[i]:.0%}",
            Text(_score(experience), style=style),
            f"{market.weight[i]:,.2f}",
            f"{credits(int(round.bills.paid[i])):,.2f}",
        )
    return table


def pools_table(round: Round) -> Table:
    """Per pool and resource: how full it is, and what a unit costs for one round."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("pool", overflow="fold")
    for heading, justify in (("resource", "left"), ("granted", "right"), ("price per round", "right")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    load = round.allocation.load
    for j, pool in enumerate(round.pools.name):
        for r, name in enumerate(round.pools.resources):
            unit, capacity = resource(name), round.pools.capacity[j, r]
            price = round.allocation.price[j, r] * unit.scale
            table.add_row(
                Text(pool if r == 0 else ""),
                Text(name),
                f"{show(load[j, r] / unit.scale)} of {unit.show(capacity)}",
                Text(f"{price:.4g} per {unit.one}", style="bold" if price > 0 else "dim"),
            )
    return table


def as_dict(round: Round) -> dict:
    """One round as JSON: amounts in the units people write, credits, experience (null where unknown)."""
    t, a, market = round.tasks, round.allocation, round.market
    names = round.pools.resources
    scale = scales(names)
    granted = market.per_task(a.granted) / scale
    delivered = round.outcome.by_task(market) / scale

    def amounts(row: np.ndarray) -> dict:
        return {r: None if np.isnan(x) else round_to(x) for r, x in zip(names, row, strict=True)}

    return {
        "round": round.number,
        "enforcer": round.outcome.enforcer,
        "objective": a.objective,
        "gap": float(a.gap),
        "tasks": {
            name: {
                "wanted": amounts(t.demand[i] / scale),
                "granted": amounts(granted[i]),
                "delivered": amounts(delivered[i]),
                "served": round_to(a.served[i]),
                "experience": None if np.isnan(round.outcome.experience[i]) else round_to(round.outcome.experience[i]),
                "bid": float(market.weight[i]),
                "paid": credits(int(round.bills.paid[i])),
            }
            for i, name in enumerate(t.name)
        },
        "prices": {pool: amounts(a.price[j] * scale) for j, pool in enumerate(round.pools.name)},
        "stage_ms": {stage: round_to(ms) for stage, ms in round.stage_ms.items()},
        "notes": list(round.outcome.notes),
    }


def round_to(x: float, digits: int = 6) -> float:
    """Shorten a number for reading."""
    return float(f"{x:.{digits}g}")


def _news(round: Round, running: Running) -> list[str]:
    """Notes of a round that were not told before it."""
    return [note for note in round.outcome.notes if note not in running.found]


def _last(running: Running) -> int | None:
    """The number of the last round that will be played."""
    return None if running.count is None else running.first + running.count - 1


def _dearest(round: Round) -> str:
    """The price that weighs most, or that nothing is scarce."""
    rent = round.allocation.price * round.pools.capacity
    if not rent.max() > 0:
        return "nothing scarce"
    j, r = np.unravel_index(int(rent.argmax()), rent.shape)
    unit = resource(round.pools.resources[r])
    return f"{unit.name} {round.allocation.price[j, r] * unit.scale:.4g} credits per {unit.one}"


def _score(experience: float) -> str:
    return "–" if np.isnan(experience) else f"{experience:.2f}"
