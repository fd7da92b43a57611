"""Worlds that a log could not hold: found when the file is read, not in the round that first goes too far.

    demand     2^53 base units in the worst round: all events that can overlap, and the most that chance adds
    bid        2^53 micro-credits of one task, 2^62 of all together
    resources  64: a round's outcome names where each is measured, in one entry of less than 2 KiB

The worst round may never come: which events meet is a matter of chance, and chance is what a world should withstand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from apportion.core.units import MICRO, resource
from apportion.worlds.file import WorldFile
from apportion.worlds.lines import Place, Problem
from apportion.worlds.surge import LOUDEST, peaks

MOST_RESOURCES = 64
WHOLE = 53.0  # base-2 logarithm of the largest amount and the largest bid
TOGETHER = 62.0  # the same of all bids of a round: accounts count them in 64 bits
CHANCE = math.log2(LOUDEST)
_MICRO = math.log2(MICRO)


def limits(file: WorldFile) -> Iterator[Problem]:
    """Give what the log cannot hold: the first of resources, demands, bids; of these the worst."""
    peak = peaks(file.events)
    yield from islice(chain(_resources(file), _demand(file, peak), _bids(file, peak)), 1)


def _resources(file: WorldFile) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for name, pool in file.pools.items():
        for r in pool.capacity:
            first.setdefault(r, ("pools", name, "capacity", r))
    if len(first) > MOST_RESOURCES:
        why = f"the log holds {MOST_RESOURCES} resources, and this world has {len(first)}. Remove some from the pools"
        yield list(first.values())[MOST_RESOURCES], f"{why}, or make one of several that are always used together."


def _demand(file: WorldFile, peak: Mapping[str, float]) -> Iterator[Problem]:
    def worst() -> Iterator[tuple[float, str, str]]:
        for name, task in file.tasks.items():
            for r, amount in task.demand.items():
                if amount and r not in task.steady:
                    yield math.log2(amount) + peak.get(name, 0.0) + CHANCE, name, r
            yield peak.get(name, 0.0), name, ""  # the load itself is written down too

    most, name, r = max(worst())
    if most <= WHOLE:
        return
    up = peak.get(name, 0.0)
    if not r:
        way = "Lower their loads, or let fewer of them overlap."
        yield _loudest(file, name), f"{_meet(name, up)}, and the log holds a load of 2^53. {way}"
        return
    kind, bound = resource(r), up - most + WHOLE
    show = lambda log2: f"{_times(log2 - math.log2(kind.scale))} {kind.unit}"  # noqa: E731
    wants = f"wants up to {show(most)} of {r}, and the log holds 2^53 {kind.base}, {show(WHOLE)}"
    if bound > 0:
        way = f"Bring the loads that can overlap to x{_times(bound)} together, or let fewer of them overlap."
        yield _loudest(file, name), f"{_meet(name, up)}: with what chance adds it {wants}. {way}"
    else:
        why = f"in its worst round, with what events and chance add, the task {wants}"
        place: Place = ("tasks", name, "demand", r)
        yield place, f"{why}. Lower it to {show(math.log2(file.tasks[name].demand[r]) - most + WHOLE)}."


def _bids(file: WorldFile, peak: Mapping[str, float]) -> Iterator[Problem]:
    weight = dict.fromkeys(file.accounts, 0.0)
    for task in file.tasks.values():
        weight[task.account] += task.weight
    entitlement = dict(zip(file.accounts, file.tree.entitlement.tolist(), strict=True))
    bids: dict[str, float] = {}  # base-2 logarithm, in micro-credits
    for name, task in file.tasks.items():
        part = entitlement[task.account] * (task.weight / weight[task.account])
        if part > 0:
            bids[name] = math.log2(part * file.credits_per_round) + _MICRO + peak.get(name, 0.0)
    if not bids:
        return
    name = max(bids, key=bids.__getitem__)
    most = bids[name]
    together = most + math.log2(math.fsum(2.0 ** (bid - most) for bid in bids.values()))
    held = math.log2(file.held)  # nobody bids more than there is
    if min(most, held) <= WHOLE and together <= TOGETHER:
        return
    bid, limit = (most, WHOLE) if min(most, held) > WHOLE else (together, TOGETHER)
    whose = "it bids" if limit == WHOLE else "the tasks together bid"
    told = f"{whose} up to {_times(bid - _MICRO)} credits, and a round holds {_times(limit - _MICRO)}"
    credits = math.log2(file.credits_per_round) - bid + limit
    way = f"Lower their loads, or credits_per_round to {_times(credits)}." if credits > 0 else "Lower their loads."
    yield _loudest(file, name), f"{_meet(name, peak.get(name, 0.0))}: {told}. {way}"


def _meet(name: str, up: float) -> str:
    return f"when the events that can overlap do, the load of '{name}' is multiplied by {_times(up)}"


def _loudest(file: WorldFile, name: str) -> Place:
    """The event that adds most to a task's load."""
    about = [k for k, event in enumerate(file.events) if name in event.tasks]
    return ("events", max(about, key=lambda k: file.events[k].load), "load")


def _times(log2: float) -> str:
    """Write 2^log2 for people, rounded down, however large it is."""
    exponent = math.floor(log2 * math.log10(2) + 1e-12)
    digits = math.floor(10 ** (log2 * math.log10(2) - exponent) * 100 + 1e-9) / 100
    return f"{digits * 10**exponent:.6g}" if -3 < exponent < 6 else f"{digits:g}e{exponent}"
