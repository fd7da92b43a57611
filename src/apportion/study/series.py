"""Rounds in, series out: what a report draws, one array per quantity, first axis the round.

Amounts are in the units people use, prices in credits per such unit and round, money in credits. nan means: not
known. Tasks and pools may come and go; each keeps its row, and is nan while it is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from apportion.core.round import POSTING_KINDS, Played, Postings
from apportion.core.units import MICRO, SHARE, scales


@dataclass(frozen=True, slots=True)
class Series:
    """Everything that rounds showed, over time and in sum."""

    number: Int[np.ndarray, " round"]
    task: tuple[str, ...]
    kind: tuple[str, ...]
    account: Int[np.ndarray, " task"]
    target: Float[np.ndarray, " task"]
    resource: tuple[str, ...]
    pool: tuple[str, ...]
    wanted: Float[np.ndarray, "round task resource"]
    granted: Float[np.ndarray, "round task resource"]
    delivered: Float[np.ndarray, "round task resource"]
    share: Float[np.ndarray, "round task"]
    experience: Float[np.ndarray, "round task"]
    surge: Float[np.ndarray, "round task"]
    broken: Float[np.ndarray, "round task"]  # 1 where less than the promised floor was granted; nan: none promised
    paid: Float[np.ndarray, "round task"]
    sponsored: Float[np.ndarray, "round task"]
    waived: Float[np.ndarray, "round task"]
    price: Float[np.ndarray, "round pool resource"]
    load: Float[np.ndarray, "round pool resource"]  # granted / capacity
    gap: Float[np.ndarray, " round"]
    balance: Float[np.ndarray, "round account"]  # after the round
    opening: Float[np.ndarray, " account"]
    moved: dict[str, Float[np.ndarray, " account"]]  # by kind of posting, in sum
    enforcer: Counter[str]  # rounds under each
    source: tuple[Counter[str], ...]  # per resource, rounds from each
    notes: tuple[tuple[int, str], ...]  # round, text
    aborted: tuple[tuple[int, str], ...]  # round, why

    @property
    def missed(self) -> Float[np.ndarray, "round task"]:
        """1 where experience was below its target, nan where it is not known."""
        return np.where(np.isnan(self.experience), np.nan, self.experience < self.target)


def gather(rounds: Iterable[Played]) -> Series:
    """Give the series of rounds, in their order; one that is still open is left out."""
    told = [_told(r) for r in rounds if r.balance is not None]
    resources = told[0]["resource"] if told else ()
    tasks, at = _roster([t["task"] for t in told])
    pools, near = _roster([t["pool"] for t in told])
    newest = {name: (t, i) for t in told for i, name in enumerate(t["task"])}
    of = lambda what: [newest[name][0][what][newest[name][1]] for name in tasks]  # noqa: E731
    by_task = lambda what: _aligned([t[what] for t in told], at, len(tasks))  # noqa: E731
    wide = {w: by_task(w).reshape(len(told), len(tasks), len(resources)) for w in ("wanted", "granted", "delivered")}
    by_pool = {
        w: _aligned([t[w] for t in told], near, len(pools)).reshape(len(told), len(pools), len(resources))
        for w in ("price", "load")
    }
    accounts = len(told[0]["balance"]) if told else 0
    column = lambda name: np.concatenate([np.zeros(0, np.int64), *(getattr(t["postings"], name) for t in told)])  # noqa: E731
    account, kind, amount = column("account"), column("kind"), column("amount")
    each = {name: kind == k for k, name in enumerate(POSTING_KINDS)}
    return Series(
        number=np.array([t["number"] for t in told], np.int64),
        task=tasks,
        kind=tuple(of("kind")),
        account=np.array(of("account"), np.int64),
        target=np.array(of("target"), float),
        resource=resources,
        pool=pools,
        **wide,
        **{w: by_task(w) for w in ("share", "experience", "surge", "broken", "paid", "sponsored", "waived")},
        **by_pool,
        gap=np.array([t["gap"] for t in told], float),
        balance=np.array([t["balance"] for t in told], float).reshape(len(told), accounts),
        opening=told[0]["opening"] if told else np.zeros(0),
        moved={k: np.bincount(account[on], amount[on], accounts) / MICRO for k, on in each.items() if on.any()},
        enforcer=Counter(t["enforcer"] for t in told if t["enforcer"]),
        source=tuple(Counter(t["source"][r] for t in told if t["source"]) for r in range(len(resources))),
        notes=tuple((t["number"], note) for t in told for note in t["notes"]),
        aborted=tuple((t["number"], t["aborted"]) for t in told if t["aborted"]),
    )


def thin(x: np.ndarray, per: int, how: str) -> np.ndarray:
    """Give one number for every `per` along the first axis: their mean, min, max or last, leaving nan out."""
    if per == 1 or not len(x):
        return x
    lack = -len(x) % per
    x = np.concatenate([x, np.full((lack, *x.shape[1:]), np.nan)])
    x = x.reshape(len(x) // per, per, *x.shape[1:])
    known = ~np.isnan(x)
    if how == "mean":
        with np.errstate(invalid="ignore"):
            return np.where(known, x, 0).sum(axis=1) / known.sum(axis=1)
    if how == "last":
        at = per - 1 - np.argmax(known[:, ::-1], axis=1)
        return np.take_along_axis(x, at[:, None], axis=1)[:, 0]
    worst = np.inf if how == "min" else -np.inf
    out = np.where(known, x, worst).min(axis=1) if how == "min" else np.where(known, x, worst).max(axis=1)
    return np.where(known.any(axis=1), out, np.nan)


def spells(x: Float[np.ndarray, " round"], number: Int[np.ndarray, " round"]) -> list[tuple[int, int, float]]:
    """Give the stretches where x stays above 1: first round, last round, and the most it was."""
    on = np.concatenate([[0], np.nan_to_num(x) > 1, [0]]).astype(int)
    begin, end = np.flatnonzero(np.diff(on) == 1), np.flatnonzero(np.diff(on) == -1)
    return [(int(number[a]), int(number[b - 1]), float(x[a:b].max())) for a, b in zip(begin, end, strict=True)]


def _told(round: Played) -> dict:
    """One round's share of every series."""
    t, market, a, o, bills = round.tasks, round.market, round.allocation, round.outcome, round.bills
    resources, n = round.pools.resources, len(round.tasks.name)
    scale = scales(resources)
    none, nothing = np.full(n, np.nan), np.full(market.demand.shape, np.nan)
    nowhere = np.full(market.capacity.shape, np.nan)
    opening = np.array(round.balance)
    opening -= bills.postings.net(len(opening)) if bills else 0
    with np.errstate(invalid="ignore", divide="ignore"):
        load = np.where(market.capacity > 0, a.load / market.capacity, np.nan) if a else nowhere
    stopped = getattr(round, "aborted", None) or ("" if bills else "not said why")
    return {
        "number": round.number,
        "resource": resources,
        "task": t.name,
        "kind": t.kind,
        "account": t.account,
        "target": t.target,
        "pool": round.pools.name,
        "wanted": t.demand / scale,
        "granted": market.per_task(a.granted) / scale if a else nothing,
        "delivered": o.by_task(market) / scale if o else nothing,
        "share": a.served if a else none,
        "experience": o.experience if o else none,
        "surge": t.surge,
        # shares are rounded down: less than one part short is not a broken promise
        "broken": np.where(t.floor > 0, a.served < t.floor - 1.5 / SHARE, np.nan) if a else none,
        "paid": bills.paid / MICRO if bills else np.zeros(n),
        "sponsored": bills.sponsored / MICRO if bills else np.zeros(n),
        "waived": bills.waived / MICRO if bills else np.zeros(n),
        "price": a.price * scale if a else nowhere,
        "load": load,
        "gap": a.gap if a else np.nan,
        "balance": np.array(round.balance) / MICRO,
        "opening": opening / MICRO,
        "postings": bills.postings if bills else Postings.of(),
        "enforcer": o.enforcer if o else "",
        "source": o.source if o else (),
        "notes": o.notes if o else (),
        "aborted": stopped,
    }


def _roster(names: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Give every name once, and for each round the rows of its names."""
    row: dict[str, int] = {}
    rows, seen = [], None
    for given in names:
        if given != seen:
            at, seen = np.array([row.setdefault(n, len(row)) for n in given], np.int64), given
        rows.append(at)
    return tuple(row), rows


def _aligned(xs: Sequence[np.ndarray], rows: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Stack rounds, each row in its place."""
    out = np.full((len(xs), n, *(xs[0].shape[1:] if xs else ())), np.nan)
    for k, (x, at) in enumerate(zip(xs, rows, strict=True)):
        out[k, at] = x
    return out
