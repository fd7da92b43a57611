"""What runs of an economy say: figures of one, differences between many, paired by seed.

    figures     of one run, a number per round
    scores      of one run, in a few numbers
    compare     mechanisms, on the same seeds            sweep     one key of the credits file, over a range
    attack      one agent deviates, everything else stays as it was: what it gains, on the same seeds

The gain of an attack is told twice: in useful share (useful service / useful service of the honest run, less 1) and in credits a
round, (useful service gained) * (what it cost in the honest run) + (balance gained) / rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from apportion.core.errors import BadInput
from apportion.study.economy import MECHANISMS, Run, run
from apportion.study.economy_agents import KINDS, Conduct, Credits, Population
from apportion.study.reference import gini
from apportion.study.stats import Interval, interval, jain

RATIONED = 0.999  # of what it wanted: less than this is rationed
ATTACKS = ("misreport", "sybil", "hoard")
Tick = Callable[[int, int, str], None]  # rounds done, rounds in all, what is played


def satisfied(run: Run) -> Float[np.ndarray, " agent"]:
    """Give what each agent could use of what it wanted, over all rounds; nan where it never wanted anything."""
    wanted = run.wanted.sum(axis=0)
    return np.divide((run.got * run.wanted).sum(axis=0), wanted, out=np.full(len(wanted), np.nan), where=wanted > 0)


def figures(run: Run) -> dict[str, Float[np.ndarray, " round"]]:
    """Give a number per round: the curves of the report."""
    wants, short = run.wanted > 0, (run.wanted > 0) & (run.got < RATIONED)
    before = np.concatenate([run.opening[None], run.balance[:-1]]) if len(run.balance) else run.balance
    so_far = np.cumsum(run.got * run.wanted, axis=0) / np.maximum(np.cumsum(run.wanted, axis=0), 1e-300)
    known = np.cumsum(run.wanted, axis=0) > 0
    most = np.where(known, so_far, 0.0).max(axis=1, initial=0.0)
    least = np.where(known, so_far, np.inf).min(axis=1, initial=np.inf)
    kinds = list(dict.fromkeys(run.kind))
    of = {kind: np.array([k == kind for k in run.kind]) for kind in kinds}
    part = lambda x, y: np.divide(x, y, out=np.full(len(x), np.nan), where=y > 0)  # noqa: E731
    return {
        "price_index": run.price.sum(axis=1) / run.bill.sum(),
        "velocity": run.paid.sum(axis=1) / max(float(run.opening.sum()), 1e-300),
        "gini": np.array([gini(x) for x in run.balance]),
        "rationed": part(short.sum(axis=1), wants.sum(axis=1)),
        "bankrupt": (before < run.bill * (1 - 1e-6)).mean(axis=1),
        "jain": np.array([jain(np.where(k, x, np.nan)) for k, x in zip(known, so_far, strict=True)]),
        "fairness": part(np.where(np.isfinite(least), least, 0.0), most),
        "use": run.load.max(axis=1, initial=0.0),
        "gap": run.gap,
    } | {f"rationed_{kind}": part(short[:, on].sum(axis=1), wants[:, on].sum(axis=1)) for kind, on in of.items()}


SCORES = ("fairness", "served", "use", "price_index", "velocity", "gini", "rationed", "bankrupt")


def scores(run: Run) -> dict[str, float]:
    """Give a run in a few numbers: fairness is least / greatest satisfied of all agents at the end, the others are means.

    served: useful service / wanted, over all agents and rounds.
    """
    if not len(run.got):
        return dict.fromkeys(SCORES, np.nan)
    told, at_end = figures(run), satisfied(run)
    known = at_end[~np.isnan(at_end)]
    out = {name: float(np.nanmean(told[name])) for name in SCORES if name in told}
    out["fairness"] = float(known.min() / known.max()) if len(known) and known.max() > 0 else np.nan
    out["served"] = float((run.got * run.wanted).sum() / max(run.wanted.sum(), 1e-300))
    return {name: out[name] for name in SCORES}


@dataclass(frozen=True, slots=True)
class Table:
    """Scores of several runs: first axis what was varied, second the seed."""

    what: str
    values: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, Float[np.ndarray, "value seed"]]

    def difference(self, score: str, k: int, other: int = 0) -> Interval:
        """By how much value k is above another, paired by seed."""
        return interval(self.scores[score][k] - self.scores[score][other])

    def summary(self) -> dict:
        """Everything, ready for JSON: null where unknown."""
        told = {}
        for k, value in enumerate(self.values):
            told[value] = {
                name: {"mean": number(x[k].mean()), "worst": number(x[k].min()), "above_first": spoken(self.difference(name, k))}
                for name, x in self.scores.items()
            }  # fmt: skip
        return {"varied": self.what, "first": self.values[0], "seeds": list(self.seeds), "by_value": told}


def compare(
    credits: Credits, mechanisms: Sequence[str], agents: int, rounds: int, seeds: Sequence[int], tick: Tick
) -> Table:
    """Play the same agents under several mechanisms."""
    if len(set(mechanisms)) < len(mechanisms) or not mechanisms:
        raise BadInput("name at least one mechanism, and each once.")
    made = {m: with_mechanism(credits, m) for m in mechanisms}
    return _table("mechanism", made, agents, rounds, seeds, tick)


def sweep(
    credits: Credits, key: str, values: Sequence[float], agents: int, rounds: int, seeds: Sequence[int], tick: Tick
) -> Table:
    """Play the same agents with one number of the credits file at several values."""
    made = {f"{value:.6g}": with_key(credits, key, value) for value in values}
    return _table(key, made, agents, rounds, seeds, tick)


def with_mechanism(credits: Credits, name: str) -> Credits:
    """Give the economy under another mechanism. Raises BadInput where there is none of that name."""
    if name not in MECHANISMS:
        raise BadInput(f"there is no mechanism {name!r}. Mechanisms: {', '.join(MECHANISMS)}.")
    return replace(credits, mechanism=name)


def with_key(credits: Credits, key: str, value: float) -> Credits:
    """Give the economy with one number changed; `agents.sybil` is a key inside a key. Raises BadInput where it is none."""
    name, _, inner = key.partition(".")
    held = getattr(credits, name, None) if name in Credits.__slots__ else None
    if isinstance(held, Mapping) and inner in held:
        kept = int(value) if name == "capacity" else value
        return replace(credits, **{name: {**held, inner: kept}})
    if isinstance(held, Mapping) and name == "agents" and inner in KINDS:
        return replace(credits, agents={**held, inner: value})
    if (isinstance(held, (int, float)) or name == "half_life") and not inner:
        return replace(credits, **{name: round(value) if isinstance(held, int) else value})
    raise BadInput(f"{key!r} is no number of a credits file. Try one of: {', '.join(numeric(credits))}.")


def numeric(credits: Credits) -> list[str]:
    """Name the keys that a sweep can vary."""
    plain = [k for k in Credits.__slots__ if isinstance(getattr(credits, k), (int, float)) or k == "half_life"]
    return plain + [f"{k}.{x}" for k in ("agents", "capacity") for x in getattr(credits, k)]


def _table(what: str, made: Mapping[str, Credits], agents: int, rounds: int, seeds: Sequence[int], tick: Tick) -> Table:
    total, found = len(made) * len(seeds) * rounds, []
    for k, (name, credits) in enumerate(made.items()):
        for s, seed in enumerate(seeds):
            done = (k * len(seeds) + s) * rounds
            found.append(scores(whole(run(
                credits, agents, rounds, seed, tick=lambda n, d=done, x=name, s=seed: tick(d + n, total, f"{x}, seed {s}")
            ))))  # fmt: skip
    shape = (len(made), len(seeds))
    return Table(what, tuple(made), tuple(seeds), {m: np.array([f[m] for f in found]).reshape(shape) for m in SCORES})


def whole(played: Run) -> Run:
    """Give the run, or pass a Ctrl-C on: a part of a run is not compared with a whole one."""
    if played.stopped:
        raise KeyboardInterrupt
    return played


@dataclass(frozen=True, slots=True)
class Gain:
    """What one way of deviating brings one class of agents, seed by seed."""

    attack: str
    way: str
    target: str  # class of agents
    share: Float[np.ndarray, " seed"]  # useful service / that of the honest run, less 1
    credits: Float[np.ndarray, " seed"]  # a round

    def summary(self) -> dict:
        """Ready for JSON."""
        gains = {"share": spoken(interval(self.share)), "credits": spoken(interval(self.credits))}
        return {"attack": self.attack, "way": self.way, "target": self.target} | gains


def classes(population: Population) -> dict[str, int]:
    """Give one honest agent of each class: truthful, or bursty of each duty."""
    out: dict[str, int] = {}
    for a, (kind, duty) in enumerate(zip(population.kind, population.duty.tolist(), strict=True)):
        if kind in ("truthful", "bursty"):
            out.setdefault(kind if kind == "truthful" else f"duty {duty:g}", a)
    return out


def attack(
    credits: Credits, what: str, k: int, agents: int, rounds: int, seeds: Sequence[int], tick: Tick
) -> list[Gain]:
    """Let one agent of each honest class deviate, and tell what it gains, way by way.

    misreport   the best of k lies, drawn at random: all on a quarter of the rounds of the first seed, the best tenth on all of
                them, the best one on the other seeds, which are what is told (the best of many looks better than it is)
    sybil       k accounts that share entitlement and demand: each for its part, or in turns; or k kinds of task in one account, in turns
    hoard       asks for nothing in k rounds of k + 1; or for k times what it wants; or goes on asking when it wants nothing
    """
    if what not in ATTACKS:
        raise BadInput(f"there is no attack {what!r}. Attacks: {', '.join(ATTACKS)}.")
    if k < 1:
        raise BadInput(f"--k {k}: at least 1.")
    targets = classes(Population(credits, agents, seeds[0]))
    if not targets:
        raise BadInput("nobody is honest here: give 'truthful' or 'bursty' a weight in agents.")
    played = _Played(credits, agents, rounds, seeds, tick)
    if what == "misreport":
        if len(seeds) < 3:
            raise BadInput("--seeds: the best lie is found on the first seed and judged on the others: at least 3.")
        tenth = max(1, k // 10)
        played.total = len(targets) * (k * (rounds // 4) + (tenth + len(seeds) - 1) * rounds) + (len(seeds)) * rounds
        return [_best_lie(played, name, a, k, tenth) for name, a in targets.items()]
    ways = _ways(what, k, credits)
    played.total = (len(targets) * len(ways) + 1) * len(seeds) * rounds
    return [
        played.gain(what, way, name, a, seeds, change) for name, a in targets.items() for way, change in ways.items()
    ]


def _ways(what: str, k: int, credits: Credits) -> dict[str, dict]:
    if what == "hoard":
        wide = np.full(len(credits.capacity), float(k))
        return {f"asks in 1 round of {k + 1}": {"rest": k}, f"asks for {k} times": {"factor": wide}, "never lets go": {"idle": 1.0}}  # fmt: skip
    if k < 2:
        raise BadInput(f"--k {k}: one identity is no disguise; at least 2.")
    ways: dict[str, dict] = {
        f"{k} accounts": {"identities": k},
        f"{k} accounts in turns": {"identities": k, "turns": True},
    }
    if credits.mechanism != "karma":
        ways[f"{k} kinds in turns"] = {"identities": k, "turns": True, "kinds": True}
    return ways


def lies(credits: Credits, count: int, seed: int) -> Iterator[dict]:
    """Draw ways to misreport: a factor from 1/5 to 5 for all resources, or one for each, or both; a third of them also asking when
    nothing is wanted, a third bidding less."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(count):
        alike, each = rng.uniform(-1, 1), rng.uniform(-1, 1, len(credits.capacity))
        which = rng.integers(3)
        factor = 5.0 ** np.clip((which != 1) * alike + (which != 0) * each, -1, 1)
        idle, bid = rng.random() * (rng.random() < 1 / 3), 1.0 - rng.random() * (rng.random() < 1 / 3)
        yield {"factor": factor, "idle": idle, "bid": bid}


class _Played:
    """Runs of one attack; the honest ones are played once."""

    def __init__(self, credits: Credits, agents: int, rounds: int, seeds: Sequence[int], tick: Tick):
        self.credits, self.agents, self.rounds, self.seeds, self._tick = credits, agents, rounds, tuple(seeds), tick
        self._honest: dict[tuple[int, int], Run] = {}
        self._done, self.total = 0, 0

    def play(self, seed: int, rounds: int, what: str, conduct: Callable[[Conduct], Conduct] = lambda c: c) -> Run:
        made = conduct(Population(self.credits, self.agents, seed).conduct())
        tick = lambda n: self._tick(min(self._done + n, self.total), self.total, f"{what}, seed {seed}")  # noqa: E731
        found = whole(run(self.credits, self.agents, rounds, seed, conduct=made, tick=tick))
        self._done += rounds
        return found

    def gain(
        self, what: str, way: str, name: str, a: int, seeds: Sequence[int], change: Mapping, rounds: int | None = None
    ) -> Gain:
        """Tell what agent `a` gains by doing something else."""
        rounds, told = rounds or self.rounds, []
        for seed in seeds:
            if (seed, rounds) not in self._honest:
                self._honest[seed, rounds] = self.play(seed, rounds, "honest")
            honest = self._honest[seed, rounds]
            other = self.play(seed, rounds, f"{name}: {way}", lambda c: c.but(a, **change))
            told.append(_gained(honest, other, Population(self.credits, self.agents, seed), a))
        share, credits = np.array(told).T
        return Gain(what, way, name, share, credits)


def _gained(honest: Run, other: Run, population: Population, a: int) -> tuple[float, float]:
    useful = [float((r.got[:, a] * r.wanted[:, a]).sum()) for r in (honest, other)]
    part = population.ordinary[a] / population.total
    unit = float((honest.price.mean(axis=0) * part).sum() / part.max())  # credits for all of the pool, of what it uses
    kept = float(other.balance[-1, a] - honest.balance[-1, a]) if honest.mechanism == "market" else 0.0
    rounds = len(honest.got)
    share = useful[1] / useful[0] - 1.0 if useful[0] > 0 else np.nan
    return share, ((useful[1] - useful[0]) * unit + kept) / rounds


def _best_lie(played: _Played, name: str, a: int, k: int, tenth: int) -> Gain:
    first, others = played.seeds[:1], played.seeds[1:]
    told = list(lies(played.credits, k, played.seeds[0]))
    quick = [played.gain("misreport", "lie", name, a, first, lie, max(1, played.rounds // 4)).share[0] for lie in told]
    kept = np.argsort(-np.nan_to_num(quick, nan=-np.inf), kind="stable")[:tenth]
    full = [played.gain("misreport", "lie", name, a, first, told[i]).share[0] for i in kept] if tenth > 1 else [0.0]
    best = told[kept[int(np.argmax(full))]]
    factor = " x ".join(f"{x:.2g}" for x in best["factor"])
    way = f"best of {k} lies: asks {factor}, idle {best['idle']:.2g}, bids {best['bid']:.2g}"
    return played.gain("misreport", way, name, a, others, best)


def number(x: float) -> float | None:
    """Give a number for JSON."""
    return float(x) if np.isfinite(x) else None


def spoken(d: Interval) -> dict:
    """Give an interval for JSON."""
    return {"mean": number(d.mean), "low": number(d.low), "high": number(d.high), "seeds": d.count}


def by_kind(run: Run) -> list[dict]:
    """Give each kind of agent in a few numbers."""
    at_end, short = satisfied(run), (run.wanted > 0) & (run.got < RATIONED)
    out = []
    for kind in dict.fromkeys(run.kind):
        on: Int[np.ndarray, " agent"] = np.flatnonzero(np.array([k == kind for k in run.kind]))
        out.append(
            {
                "kind": kind,
                "agents": len(on),
                "satisfied": number(float(np.nanmean(at_end[on]))) if (~np.isnan(at_end[on])).any() else None,
                "rationed": number(short[:, on].sum() / max((run.wanted[:, on] > 0).sum(), 1)),
                "paid": number(run.paid[:, on].mean()) if len(run.paid) else None,
                "balance": number(run.balance[-1, on].mean()) if len(run.balance) else None,
            }
        )
    return out
