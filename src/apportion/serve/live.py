"""What one sees while a world runs: a live table on a terminal, a line per round elsewhere, JSON on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apportion.core.round import Round
from apportion.core.units import credits, resource


@runtime_checkable
class View(Protocol):
    """Is shown every round, in order."""

    def show(self, round: Round) -> None: ...


@contextmanager
def view(form: str, total: int | None, console: Console) -> Iterator[View]:
    """Choose how rounds are shown: `json` a line each, a live table on a terminal, else a plain line each."""
    if form == "json":
        yield _Json()
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield _Table(live, total)
    else:
        yield _Lines(console, total)


class _Json:
    def show(self, round: Round) -> None:
        print(json.dumps(as_dict(round)), flush=True)


class _Lines:
    def __init__(self, console: Console, total: int | None):
        self.console, self.total = console, total

    def show(self, round: Round) -> None:
        self.console.print(line(round, self.total), highlight=False, soft_wrap=True)
        for note in round.outcome.notes:
            self.console.print(f"  ! {note}", highlight=False, soft_wrap=True, markup=False)


class _Table:
    def __init__(self, live: Live, total: int | None):
        self.live, self.total = live, total

    def show(self, round: Round) -> None:
        self.live.update(Group(tasks_table(round, self.total), pools_table(round), *_notes(round)), refresh=True)


def line(round: Round, total: int | None) -> str:
    """One round in one line."""
    t, a = round.tasks, round.allocation
    shown = "  ".join(
        f"{name} {served:4.0%} {_score(experience)}"
        for name, served, experience in zip(t.name, a.served, round.outcome.experience, strict=True)
    )
    return f"round {round.number + 1}{f'/{total}' if total else ''}  {shown}  | {_dearest(round)}  gap {a.gap:.1e}"


def tasks_table(round: Round, total: int | None) -> Table:
    """Per task: wanted, granted, delivered (the first resource), experience and payment."""
    t, market, outcome = round.tasks, round.market, round.outcome
    r = round.pools.resources[0]
    number = f"round {round.number + 1}" + (f" of {total}" if total else "")
    table = Table(
        title=f"{number}   ·   enforcer {outcome.enforcer}   ·   gap {round.allocation.gap:.1e}", expand=False
    )
    table.add_column("task")
    for heading in (f"{r} wanted", "granted", "delivered", "served", "experience", "bid", "paid"):
        table.add_column(heading, justify="right")
    granted = market.per_task(round.allocation.granted[:, 0])
    delivered = delivered_per_task(round)[:, 0]
    for i, name in enumerate(t.name):
        experience = outcome.experience[i]
        style = "" if np.isnan(experience) else "green" if experience >= t.target[i] else "bold red"
        surge = f" x{t.surge[i]:.3g}" if t.surge[i] != 1 else ""
        table.add_row(
            Text(f"{name}{surge}"),
            resource(r).show(t.demand[i, 0]),
            resource(r).show(granted[i]),
            "unmeasured" if np.isnan(delivered[i]) else resource(r).show(delivered[i]),
            f"{round.allocation.served[i]:.0%}",
            Text(_score(experience), style=style),
            f"{market.weight[i]:.2f}",
            f"{credits(int(round.bills.paid[i])):.2f}",
        )
    return table


def pools_table(round: Round) -> Table:
    """Per pool and resource: how full it is, and what a unit costs for one round."""
    table = Table(expand=False)
    for heading, justify in (("pool", "left"), ("resource", "left"), ("granted", "right"), ("price", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    load = round.allocation.load
    for j, pool in enumerate(round.pools.name):
        for r, name in enumerate(round.pools.resources):
            unit, capacity = resource(name), round.pools.capacity[j, r]
            price = round.allocation.price[j, r] * unit.scale
            table.add_row(
                pool if r == 0 else "",
                name,
                f"{unit.show(load[j, r])} of {unit.show(capacity)}",
                Text(f"{price:.4g} per {unit.unit}", style="bold" if price > 0 else "dim"),
            )
    return table


def delivered_per_task(round: Round) -> np.ndarray:
    """Measured amounts per task and resource in base units; nan where any part was not measured."""
    delivered, market = round.outcome.delivered, round.market
    out = np.stack([market.per_task(np.maximum(d, 0)) for d in delivered.T], axis=1)
    blind = np.stack([market.per_task(d < 0) for d in delivered.T], axis=1) > 0
    return np.where(blind, np.nan, out)


def as_dict(round: Round) -> dict:
    """One round as JSON: amounts in the units people write, credits, experience (null where unknown)."""
    t, a, market = round.tasks, round.allocation, round.market
    names = round.pools.resources
    scale = np.array([resource(r).scale for r in names])
    granted = np.stack([market.per_task(g) for g in a.granted.T], axis=1) / scale
    delivered = delivered_per_task(round) / scale

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


def _dearest(round: Round) -> str:
    """The price that weighs most, or that nothing is scarce."""
    rent = round.allocation.price * round.pools.capacity
    if not rent.max() > 0:
        return "nothing scarce"
    j, r = np.unravel_index(int(rent.argmax()), rent.shape)
    unit = resource(round.pools.resources[r])
    return f"{unit.name} {round.allocation.price[j, r] * unit.scale:.4g} credits/{unit.unit}"


def _score(experience: float) -> str:
    return "  – " if np.isnan(experience) else f"{experience:.2f}"


def _notes(round: Round) -> list[Text]:
    return [Text(f"! {note}", style="yellow") for note in round.outcome.notes[-3:]]
