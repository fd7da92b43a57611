"""Rounds in, a table out: a row per round and task. The log is the only source of history.

What learning is fed must not know the future, so every column says *when* it is known:

    before      demand, bid and balance of this round, and what earlier rounds showed: a decision may use it
    decision    share, grant, price, gap: known once the round is cleared
    outcome     delivery, experience, charges: known when the round is over

Columns from earlier rounds come from `Past`, which is asked before it is shown the round. A controller
that keeps one beside its loop sees the very numbers a model was trained on.

Amounts are in the units people use (cores, GiB, Mbit/s, MB/s), prices in credits per such unit and round,
money in credits. What is not known is nan (or None), and NULL in Parquet. Rounds count from 0, as in the log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np

from apportion.core.errors import BadInput
from apportion.core.files import replacing
from apportion.core.market import Tasks
from apportion.core.round import Played
from apportion.core.units import MICRO, resource, scales

FORMAT = "apportion/rounds/1"
BATCH = 200_000  # rows held at a time while writing
REMEMBERED = ("wanted", "delivered", "price", "load")  # per resource, each gives a column last_...


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    name: str
    type: str  # as DuckDB calls it
    unit: str  # '' where it has none
    known: str  # before, decision, outcome
    says: str


def schema(resources: Sequence[str]) -> tuple[Column, ...]:
    """Give the columns of a world with these resources, in order."""

    def each(name: str, type: str, unit: str, known: str, says: str) -> list[Column]:
        return [
            Column(f"{name}_{r}", type, unit.format(u=resource(r).unit, one=resource(r).one), known, says.format(r=r))
            for r in resources
        ]

    text, real, whole, credits_ = "VARCHAR", "DOUBLE", "BIGINT", "credits"
    return (
        Column("round", whole, "", "before", "number of the round, from 0"),
        Column("t_seconds", real, "s", "before", "since the first round of the table"),
        Column("world", text, "", "before", "name of the world"),
        Column("policy", text, "", "before", "name of the policy"),
        Column("task", text, "", "before", "name of the task"),
        Column("kind", text, "", "before", "kind of the task"),
        Column("account", text, "", "before", "account that pays"),
        Column("priority", whole, "", "before", "whose floor is kept longest when floors cannot all be kept"),
        Column("weight", real, "", "before", "importance inside its account"),
        Column("target", real, "", "before", "experience below it is a service-level miss"),
        Column("surge", real, "", "before", "what events multiply the load by; 1 on an ordinary day"),
        Column("floor", real, "share", "before", "promised share of what is wanted"),
        Column("floor_admitted", real, "share", "before", "what of the floor fitted; less than `floor`: broken"),
        Column("cap", real, "share", "before", "largest share of use"),
        Column("bid", real, credits_, "before", "what it offers for this round"),
        Column("balance", real, credits_, "before", "what its account holds before the round"),
        *each("wanted", real, "{u}", "before", "{r} wanted now"),
        *each("base", real, "{u}", "before", "{r} wanted on an ordinary day"),
        Column("rounds_seen", whole, "rounds", "before", "earlier rounds with this task"),
        Column("rounds_since_surge", whole, "rounds", "before", "0 during a surge; NULL before the first"),
        Column("last_experience", real, "", "before", "experience when it last reported one"),
        Column("last_share", real, "share", "before", "share in its latest earlier round"),
        *each("last_wanted", real, "{u}", "before", "{r} wanted in its latest earlier round"),
        *each("last_delivered", real, "{u}", "before", "{r} when last measured"),
        *each("last_price", real, "credits per {one} and round", "before", "price_{r} in its latest earlier round"),
        *each("last_load", real, "share", "before", "load_{r} in its latest earlier round"),
        Column("share", real, "share", "decision", "share of what it wants that it is granted"),
        Column("free_share", real, "share", "decision", "the part of `share` that guarantees give for nothing"),
        *each("granted", real, "{u}", "decision", "{r} granted"),
        *each("price", real, "credits per {one} and round", "decision", "price of {r} in its pools, by share"),
        *each("load", real, "share", "decision", "how full its pools are of {r}: granted / capacity, by share"),
        Column("gap", real, "", "decision", "certified distance of the round from the optimum; 0 is optimal"),
        *each("delivered", real, "{u}", "outcome", "{r} measured; NULL: not measured"),
        *each("source", text, "", "outcome", "where delivered_{r} comes from"),
        Column("asked", whole, "operations", "outcome", "asked of the task; NULL: it did not say"),
        Column("in_time", whole, "operations", "outcome", "of these, finished within the deadline"),
        Column("experience", real, "", "outcome", "in_time / asked, in [0, 1]; NULL: it did not say"),
        Column("paid", real, credits_, "outcome", "charged to its account"),
        Column("sponsored", real, credits_, "outcome", "what its floor added, paid by the sponsor"),
        Column("waived", real, credits_, "outcome", "what its floor added and nobody could pay"),
        Column("enforcer", text, "", "outcome", "what made the grant true"),
        Column("aborted", "BOOLEAN", "", "outcome", "never finished: nothing was charged"),
    )


def columns(
    rounds: Iterable[Played],
    *,
    world: str = "",
    policy: str = "",
    accounts: Sequence[str] = (),
    round_seconds: float = 1.0,
) -> dict[str, np.ndarray]:
    """Give the whole table: one array per column, in the order of `schema`.

    policy, round_seconds: for rounds that do not say it themselves. A round still open is left out.
    """
    tables = list(_tables(rounds, world, policy, accounts, round_seconds))
    if not tables:
        return {c.name: np.empty(0, object if c.type == "VARCHAR" else float) for c in schema(())}
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def write(
    rounds: Iterable[Played],
    path: str | os.PathLike[str],
    *,
    world: str = "",
    policy: str = "",
    accounts: Sequence[str] = (),
    round_seconds: float = 1.0,
) -> int:
    """Write the table to a Parquet file, whole or not at all, and give its number of rows.

    The file's key-value metadata has one key, `apportion`: JSON with the world, the policy and each column's
    unit and meaning.
    """
    total, batch, held, fields = 0, [], 0, schema(())
    with duckdb.connect() as db:
        _create(db, fields)
        for table in _tables(rounds, world, policy, accounts, round_seconds):
            if total == 0:
                fields = schema(_resources(table))
                _create(db, fields)
            batch.append(table)
            total, held = total + len(table["round"]), held + len(table["round"])
            if held >= BATCH:
                _insert(db, batch, fields)
                batch, held = [], 0
        _insert(db, batch, fields)
        about = {"format": FORMAT, "world": world, "policy": policy, "columns": [asdict(c) for c in fields]}
        _copy(db, Path(path), json.dumps(about))
    return total


class Past:
    """What earlier rounds showed of each task. Ask `before` a round is decided; `learn` once it is over."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        self._names: tuple[str, ...] | None = None
        self._rows = np.empty(0, np.int64)
        self._kept: dict[str, np.ndarray] = {}

    def before(self, number: int, tasks: Tasks, resources: Sequence[str]) -> dict[str, np.ndarray]:
        """Give the columns that rest on earlier rounds, for the tasks of round `number`."""
        rows = self._find(tasks.name)
        since = number - self._get("surged", rows)
        out = {
            "rounds_seen": np.nan_to_num(self._get("seen", rows)),
            "rounds_since_surge": np.where(tasks.surge > 1, 0.0, since),
        }
        kept = ("experience", "share", *(f"{what}_{r}" for what in REMEMBERED for r in resources))
        return out | {f"last_{what}": self._get(what, rows) for what in kept}

    def learn(self, round: Played) -> None:
        """Keep what this round showed. An aborted round showed what was decided, and no more."""
        self._keep(round, _asked_for(round, ()) | _decided(round) | _came_of(round))

    def _keep(self, round: Played, told: dict[str, np.ndarray]) -> None:
        rows = self._find(round.tasks.name)
        self._put("seen", rows, np.nan_to_num(self._get("seen", rows)) + 1)
        self._put("surged", rows, np.where(round.tasks.surge > 1, round.number, np.nan))
        resources = round.pools.resources
        for what in ("experience", "share", *(f"{what}_{r}" for what in REMEMBERED for r in resources)):
            self._put(what, rows, told[what])

    def _find(self, names: tuple[str, ...]) -> np.ndarray:
        if names != self._names:
            self._rows = np.array([self._row.setdefault(n, len(self._row)) for n in names], np.int64)
            self._names = names
        return self._rows

    def _get(self, what: str, rows: np.ndarray) -> np.ndarray:
        kept = self._kept.get(what, np.empty(0))
        if len(kept) < len(self._row):
            kept = self._kept[what] = np.append(kept, np.full(len(self._row) - len(kept), np.nan))
        return kept[rows]

    def _put(self, what: str, rows: np.ndarray, x: np.ndarray) -> None:
        """Keep x, where it is known; what was known before stays."""
        kept = self._get(what, rows)
        self._kept[what][rows] = np.where(np.isnan(x), kept, x)


def _tables(
    rounds: Iterable[Played], world: str, policy: str, accounts: Sequence[str], round_seconds: float
) -> Iterator[dict[str, np.ndarray]]:
    """One small table per round."""
    past, resources, begin, fields = Past(), None, None, schema(())
    for round in rounds:
        if round.balance is None:  # the last of a log that is still being written
            continue
        if resources is None:
            resources = round.pools.resources
            fields = schema(resources)
        if round.pools.resources != resources:
            raise BadInput(
                f"round {round.number} has the resources {', '.join(round.pools.resources)}, earlier rounds had "
                f"{', '.join(resources)}: a table has one set of resources. Write the two parts to two files."
            )
        at = float(getattr(round, "at", round.number * round_seconds))
        begin = at if begin is None else begin
        n = len(round.tasks.name)
        told = _asked_for(round, accounts) | _decided(round) | _came_of(round)
        told |= {
            "round": np.full(n, round.number),
            "t_seconds": np.full(n, at - begin),
            "world": _same(world, n),
            "policy": _same(getattr(round, "policy", policy) or policy, n),
            **past.before(round.number, round.tasks, resources),
        }
        past._keep(round, told)
        yield {c.name: told[c.name] for c in fields}


def _asked_for(round: Played, accounts: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns known before the decision: demand, bids, balances."""
    t, market, resources = round.tasks, round.market, round.pools.resources
    before = np.array(round.balance)
    before -= round.bills.postings.net(len(before)) if round.bills else 0
    names = np.array([accounts[a] if a < len(accounts) else f"account {a}" for a in range(len(before))], object)
    return {
        "task": np.array(t.name, object),
        "kind": np.array(t.kind, object),
        "account": names[t.account],
        "priority": t.priority,
        "weight": t.weight,
        "target": t.target,
        "surge": t.surge,
        "floor": t.floor,
        "floor_admitted": market.floor,
        "cap": t.cap,
        "bid": market.weight,
        "balance": before[t.account] / MICRO,
        **_each("wanted", t.demand / scales(resources), resources),
        **_each("base", t.base / scales(resources), resources),
    }


def _decided(round: Played) -> dict[str, np.ndarray]:
    """Columns known once the round is cleared."""
    market, a, resources, capacity = round.market, round.allocation, round.pools.resources, round.pools.capacity
    if a is None:
        names = (
            "share",
            "free_share",
            "gap",
            *(f"{what}_{r}" for what in ("granted", "price", "load") for r in resources),
        )
        return dict.fromkeys(names, np.full(len(market.demand), np.nan))
    row, n, count = market.row, len(market.demand), np.diff(market.indptr)
    share, scale = market.per_task(a.share), scales(resources)
    with np.errstate(invalid="ignore", divide="ignore"):
        load = np.where(capacity > 0, a.load / capacity, np.nan)
        # a task in several pools faces their mean, by share; one not served, the mean of all it may use
        part = np.where(share[row] > 0, a.share / share[row], 1 / count[row])[:, None]
    faced = lambda x: np.where(count[:, None] > 0, market.per_task(part * x[market.indices]), np.nan)  # noqa: E731
    return {
        "share": share,
        "free_share": market.per_task(market.free),
        "gap": np.full(n, float(a.gap)),
        **_each("granted", market.per_task(a.granted) / scale, resources),
        **_each("price", faced(a.price) * scale, resources),
        **_each("load", faced(load), resources),
    }


def _came_of(round: Played) -> dict[str, np.ndarray]:
    """Columns known when the round is over."""
    n, resources, o, bills = len(round.tasks.name), round.pools.resources, round.outcome, round.bills
    nothing = np.full(n, np.nan)
    source, blind = o.source if o else (None,) * len(resources), np.full(round.market.demand.shape, np.nan)
    return {
        **_each("delivered", o.by_task(round.market) / scales(resources) if o else blind, resources),
        **{f"source_{r}": _same(s, n) for r, s in zip(resources, source, strict=True)},
        "asked": np.where(o.asked < 0, np.nan, o.asked) if o else nothing,
        "in_time": np.where(o.in_time < 0, np.nan, o.in_time) if o else nothing,
        "experience": o.experience if o else nothing,
        "paid": bills.paid / MICRO if bills else np.zeros(n),
        "sponsored": bills.sponsored / MICRO if bills else np.zeros(n),
        "waived": bills.waived / MICRO if bills else np.zeros(n),
        "enforcer": _same(o.enforcer if o else None, n),
        "aborted": np.full(n, bills is None),
    }


def _each(what: str, x: np.ndarray, resources: Sequence[str]) -> dict[str, np.ndarray]:
    return {f"{what}_{name}": x[:, r] for r, name in enumerate(resources)}


def _same(text: str | None, n: int) -> np.ndarray:
    return np.array([text] * n, object)


def _resources(table: dict[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(name.removeprefix("wanted_") for name in table if name.startswith("wanted_"))


def _create(db: duckdb.DuckDBPyConnection, fields: Sequence[Column]) -> None:
    listed = ", ".join(f"{_quoted(c.name)} {c.type}" for c in fields)
    db.execute(f"CREATE OR REPLACE TABLE history ({listed})")


def _insert(db: duckdb.DuckDBPyConnection, batch: list[dict[str, np.ndarray]], fields: Sequence[Column]) -> None:
    if not batch:
        return
    db.register("batch", {name: np.concatenate([t[name] for t in batch]) for name in batch[0]})
    db.execute(f"INSERT INTO history SELECT {', '.join(_typed(c) for c in fields)} FROM batch")
    db.unregister("batch")


def _typed(c: Column) -> str:
    name = _quoted(c.name)
    if c.type in ("DOUBLE", "BIGINT"):  # nan is how NumPy says NULL
        return f"CASE WHEN isnan({name}::DOUBLE) THEN NULL ELSE {name}::{c.type} END"
    return f"{name}::{c.type}"


def _copy(db: duckdb.DuckDBPyConnection, path: Path, about: str) -> None:
    """To a file beside it first: a reader never meets half a table, and a crash leaves the old one."""
    with replacing(path) as part:
        literal = [s.replace("'", "''") for s in (str(part), about)]
        db.execute(f"COPY history TO '{literal[0]}' (FORMAT parquet, KV_METADATA {{apportion: '{literal[1]}'}})")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
