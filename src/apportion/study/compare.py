"""Policies side by side on the same worlds and seeds: a row per round, a table with intervals, one honest sentence.

What a round is scored by:

    experience   mean over tasks, weighted by entitlement of the account x the task's part of its account's weights
                 x surge: six times the players feel six times as much. It is what a task bids by default.
                 (A weight is importance *inside* an account: unscaled, an account gained by splitting its tasks.)
    slo_misses   number of tasks whose experience is below their target
    worst_task   the lowest experience of any task
    jain         Jain's index of the tasks' experience: 1 is all alike. Of experience and not of shares, because
                 that is what is felt, and it means the same whatever a task claims to want.
    gap          as the Allocation states it
    seconds      spent clearing

A task that did not report its experience counts in none of the first four; where none did they are NULL.

What a run is worth to whoever stops it: finished runs are on the disk, at most `SAVE_EVERY` seconds late, also
after Ctrl-C, and are not played again unless their world file changed since.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import duckdb
import numpy as np
from jaxtyping import Float

from apportion.core.errors import ApportionError, BadInput
from apportion.core.files import replacing
from apportion.core.round import Round
from apportion.study import stats
from apportion.study.results import METRICS, Key, Results

FORMAT = "apportion/compare/1"
COLUMNS = {"world": "VARCHAR", "seed": "BIGINT", "policy": "VARCHAR", "round": "BIGINT"} | {
    m: "BIGINT" if m == "slo_misses" else "DOUBLE" for m in METRICS
}
SAVE_EVERY = 5.0  # seconds
MOST_ROWS = 20_000_000  # rows are held in memory: about 1 GB


@runtime_checkable
class Stage(Protocol):
    """What a comparison must know of a world."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Changes whenever the world does."""
        ...

    @property
    def accounts(self) -> tuple[tuple[str, ...], Float[np.ndarray, " account"]]:
        """Names and entitlements."""
        ...


Play = Callable[[Any, str, int, int], Iterator[Round]]  # world, policy, seed, rounds
Progress = Callable[[int, int, str], None]  # rounds done, rounds in all, what is being played


def compare(
    worlds: Sequence[Stage],
    policies: Sequence[str],
    seeds: Sequence[int],
    rounds: int,
    play: Play,
    progress: Progress = lambda done, total, what: None,
    *,
    path: str | os.PathLike[str] | None = None,
    fresh: bool = False,
) -> Results:
    """Play every policy on every world with every seed, and keep a row per round in `path`.

    Runs that `path` already holds, of as many rounds and of the same world files, are kept; `fresh` plays all again.
    Raises BadInput before anything is played where `path` cannot be written or holds something else.
    """
    _check(worlds, policies, seeds, rounds)
    path = Path(path) if path is not None else None
    digests = {w.name: w.digest for w in worlds}
    if path is not None:
        _writable(path)
    rows, known = ({}, {}) if fresh or path is None else _read(path)
    rows = {k: r for k, r in rows.items() if digests.get(k[0], known.get(k[0])) == known.get(k[0])}
    known |= digests
    runs = [(w, seed, policy) for w in worlds for seed in seeds for policy in policies]  # pairs are complete early
    kept = {(w.name, s, p) for w, s, p in runs if len(rows.get((w.name, s, p), {}).get("round", ())) == rounds}
    total, done, saved, changed = len(runs) * rounds, len(kept) * rounds, time.monotonic(), False
    try:
        for world, seed, policy in runs:
            key, what = (world.name, seed, policy), f"{policy} on {world.name}, seed {seed}"
            progress(done, total, what)
            if key in kept:
                continue
            rows[key] = _play(play, world, policy, seed, rounds, lambda n, b=done, w=what: progress(b + n, total, w))
            done, changed = done + rounds, True
            if path is not None and time.monotonic() - saved > SAVE_EVERY:
                _write(rows, known, path)
                saved, changed = time.monotonic(), False
    finally:
        if path is not None and (changed or not path.exists()):
            _write(rows, known, path)
    progress(done, total, "done")
    wanted = {(w.name, s, p): rows[w.name, s, p] for w, s, p in runs}
    return Results(tuple(digests), tuple(policies), tuple(seeds), rounds, wanted, len(kept))


def score(round: Round, entitlement: Float[np.ndarray, " account"]) -> dict[str, float]:
    """Give one round's metrics; nan where nothing is known."""
    t, felt = round.tasks, round.outcome.experience
    known = felt[~np.isnan(felt)]
    total = np.bincount(t.account, t.weight, len(entitlement))[t.account]
    inside = np.divide(t.weight, total, out=np.zeros(len(felt)), where=total > 0)
    weight = entitlement[t.account] * inside * t.surge
    return {
        "experience": stats.mean(felt, weight),
        "slo_misses": float((known < t.target[~np.isnan(felt)]).sum()) if len(known) else np.nan,
        "worst_task": float(known.min()) if len(known) else np.nan,
        "jain": stats.jain(felt),
        "gap": float(round.allocation.gap),
        "seconds": float(round.allocation.seconds),
    }


def _check(worlds: Sequence[Stage], policies: Sequence[str], seeds: Sequence[int], rounds: int) -> None:
    for what, given in (("world", [w.name for w in worlds]), ("policy", policies), ("seed", seeds)):
        if not given:
            raise BadInput(f"there is no {what} to compare: name at least one.")
        if twice := [g for g, n in Counter(given).items() if n > 1]:
            raise BadInput(f"{what} {twice[0]!r} is named twice: results are told apart by it. Name each once.")
    if rounds < 1:
        raise BadInput(f"{rounds} rounds are nothing to compare: play at least 1.")
    rows = len(worlds) * len(policies) * len(seeds) * rounds
    if rows > MOST_ROWS:
        raise BadInput(
            f"{len(worlds)} worlds x {len(policies)} policies x {len(seeds)} seeds x {rounds} rounds are {rows:,} rows; "
            f"{MOST_ROWS:,} are the most. Ask for fewer seeds or rounds."
        )


def _play(
    play: Play, world: Stage, policy: str, seed: int, rounds: int, tick: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """One run, as columns."""
    entitlement, numbers, scores = np.asarray(world.accounts[1], float), [], []
    for round in play(world, policy, seed, rounds):
        numbers.append(round.number)
        scores.append(score(round, entitlement))
        tick(len(numbers))
    if len(numbers) != rounds:
        raise ApportionError(
            f"{policy} on {world.name}, seed {seed}, ended after {len(numbers)} of {rounds} rounds: "
            f"runs of different length are not compared. Ask for at most {len(numbers)} rounds."
        )
    return {"round": np.array(numbers)} | {m: np.array([s[m] for s in scores]) for m in METRICS}


def _writable(path: Path) -> None:
    """Find out now, not after an hour of playing."""
    part = path.with_name(path.name + ".part")
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}. Name another file.") from None


def _read(path: Path) -> tuple[dict[Key, dict[str, np.ndarray]], dict[str, str]]:
    """The runs that a results file holds, and the digest of each of their worlds."""
    if not path.exists():
        return {}, {}
    file = str(path).replace("'", "''")
    try:
        with duckdb.connect() as db:
            about = db.execute(f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{file}')").fetchall()
            known = json.loads(dict(about)["apportion"])
            if known["format"] != FORMAT:
                raise KeyError(FORMAT)
            listed = ", ".join(COLUMNS)
            table = db.execute(f"SELECT {listed} FROM '{file}' ORDER BY world, seed, policy, round").fetchnumpy()
    except (duckdb.Error, KeyError, TypeError, ValueError):
        raise BadInput(
            f"{path} is there and is not a file of comparison results. Name another file, or remove it first."
        ) from None
    columns = {c: np.ma.filled(table[c].astype(float), np.nan) for c in METRICS} | {"round": np.asarray(table["round"])}
    keys = list(zip(table["world"].tolist(), table["seed"].tolist(), table["policy"].tolist(), strict=True))
    first = [k for k, key in enumerate(keys) if k == 0 or keys[k - 1] != key]
    runs = {}
    for a, b in zip(first, [*first[1:], len(keys)], strict=True):
        runs[keys[a]] = {c: x[a:b] for c, x in columns.items()}
    return runs, known["worlds"]


def _write(rows: Mapping[Key, Mapping[str, np.ndarray]], digests: Mapping[str, str], path: Path) -> None:
    lengths = [len(r["round"]) for r in rows.values()]
    table: dict[str, np.ndarray] = {
        c: np.repeat(np.array([k[n] for k in rows], object), lengths) for n, c in enumerate(("world", "seed", "policy"))
    }
    table["seed"] = table["seed"].astype(np.int64)
    for c in ("round", *METRICS):
        table[c] = np.concatenate([r[c] for r in rows.values()]) if rows else np.empty(0)
    typed = [
        f"CASE WHEN isnan({c}) THEN NULL ELSE {c}::{t} END AS {c}" if c in METRICS else f"{c}::{t} AS {c}"
        for c, t in COLUMNS.items()
    ]
    about = json.dumps({"format": FORMAT, "worlds": {w: digests[w] for w in sorted({k[0] for k in rows})}})
    try:
        with replacing(path) as part, duckdb.connect() as db:
            file, about = (text.replace("'", "''") for text in (str(part), about))
            db.register("results", table)
            db.execute(
                f"COPY (SELECT {', '.join(typed)} FROM results ORDER BY world, seed, policy, round) "
                f"TO '{file}' (FORMAT parquet, KV_METADATA {{apportion: '{about}'}})"
            )
    except (duckdb.Error, OSError) as error:
        raise ApportionError(f"{path} could not be written: {str(error).splitlines()[0]}") from None
