"""What a comparison found: means, paired differences, a table, and one sentence that claims no more than they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from apportion.study.charts import count
from apportion.study.stats import Interval, interval, mean

METRICS = ("experience", "slo_misses", "worst_task", "jain", "gap", "seconds")
METHOD = (
    "mean over rounds, then over worlds and seeds; differences are paired by world and seed and averaged over "
    "worlds; 95 % intervals are Student's t over seeds, each taken alone"
)

LEGEND = (
    "experience: operations in time / asked, weighted; behind: how far, ± its 95 % interval; misses: tasks below their "
    "target, per round; worst: the lowest experience; jain: evenness, 1 is all alike; gap: certified distance from the "
    "optimum; ms: spent clearing; – not known"
)

Key = tuple[str, int, str]  # world, seed, policy


@dataclass(frozen=True)
class Results:
    """Rows of every run, and what they say together."""

    worlds: tuple[str, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    rows: Mapping[Key, Mapping[str, np.ndarray]]  # per run: round and the METRICS, a number per round
    kept: int = 0  # runs taken from an earlier results file

    @cached_property
    def means(self) -> dict[str, Float[np.ndarray, "policy world seed"]]:
        """Each metric's mean over the rounds of each run; nan where no round knows it."""
        return {
            m: np.array(
                [[[mean(self.rows[w, s, p][m]) for s in self.seeds] for w in self.worlds] for p in self.policies]
            )
            for m in METRICS
        }

    @property
    def ranked(self) -> list[int]:
        """Policies (their rows), best experience first; those that know none are left out."""
        felt = [mean(x) for x in self.means["experience"]]
        return sorted((k for k, x in enumerate(felt) if not np.isnan(x)), key=lambda k: -felt[k])

    @property
    def leader(self) -> str | None:
        """The policy with the highest mean experience, by however little."""
        return self.policies[self.ranked[0]] if self.ranked else None

    @property
    def winner(self) -> str | None:
        """The leader, where its interval against every other policy excludes zero."""
        if len(self.ranked) < 2:
            return None
        lead = all(self.ahead("experience", k).excludes_zero for k in self.ranked[1:])
        return self.leader if lead else None

    def ahead(self, metric: str, other: int, world: int | None = None) -> Interval:
        """By how much the leader's metric is above that of policy `other`: in one world, or over all."""
        x = self.means[metric][:, slice(None) if world is None else slice(world, world + 1)]
        return interval((x[self.ranked[0]] - x[other]).mean(axis=0))

    @property
    def sentence(self) -> str:
        """Who wins, or why nobody can be said to."""
        if not self.ranked:
            return "No winner: no task reported its experience."
        first, *rest = self.ranked
        score = f"a weighted experience of {mean(self.means['experience'][first]):.3f}"
        if not rest:
            return f"No winner: {self.leader}, with {score}, met no other policy."
        ahead = {self.policies[k]: self.ahead("experience", k) for k in rest}
        rival, d = next(iter(ahead.items()))
        lead = f"{score}, {d.mean:.3f} above {rival}, the next best"
        if d.count < 2:
            return f"No winner yet: {self.leader} leads with {lead}, on one seed, and one seed has no interval."
        over = f"{d.count} seeds" + (f" in {len(self.worlds)} worlds" if len(self.worlds) > 1 else "")
        sure = f"95 % interval {d.low:.3f} to {d.high:.3f}, paired, over {over}"
        if not d.drawn:
            sure = f"the same to the last digit over {over}: no chance is in it, and more seeds would say no more"
        unsure = [name for name, x in ahead.items() if not x.excludes_zero]
        if not unsure:
            return f"{self.leader} wins with {lead} ({sure})."
        return f"No winner: {self.leader} leads with {lead} ({sure}), but its lead over {_and(unsure)} may be chance."

    def summary(self) -> dict:
        """Everything, ready for JSON: null where unknown."""
        return {
            "worlds": list(self.worlds),
            "seeds": list(self.seeds),
            "rounds": self.rounds,
            "kept_runs": self.kept,
            "method": METHOD,
            "leader": self.leader,
            "winner": self.winner,
            "sentence": self.sentence,
            "policies": {p: self._told(k, None) for k, p in enumerate(self.policies)},
            "by_world": {
                w: {p: self._told(k, j) for k, p in enumerate(self.policies)} for j, w in enumerate(self.worlds)
            },
        }

    def table(self) -> Table:
        """Means per policy, best first, and how far each is behind the leader."""
        caption = (
            f"{LEGEND}\n{count(self.rounds, 'round')}, seeds {_list(self.seeds)}. {METHOD[0].upper()}{METHOD[1:]}."
        )
        table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("policy", overflow="fold")
        for heading in ("experience", f"behind {self.leader}", "misses", "worst", "jain", "gap", "ms"):
            table.add_column(heading, justify="right", no_wrap=True)
        order = [*self.ranked, *(k for k in range(len(self.policies)) if k not in self.ranked)]
        several = len(self.worlds) > 1
        for j in [*range(len(self.worlds)), None] if several else [None]:
            if several:
                table.add_row(Text("all" if j is None else self.worlds[j], style="bold"))
            for k in order:
                table.add_row(Text(self.policies[k]), *self._cells(k, j), end_section=k == order[-1])
        return table

    def _cells(self, k: int, world: int | None) -> list[str]:
        told = self._told(k, world)
        x = {m: np.nan if told[m] is None else told[m] for m in METRICS}
        return [
            _dash(x["experience"], "{:.3f}"),
            self._behind(k, world),
            _dash(x["slo_misses"], "{:.2f}"),
            _dash(x["worst_task"], "{:.3f}"),
            _dash(x["jain"], "{:.3f}"),
            _dash(x["gap"], "{:.0e}"),
            _dash(x["seconds"] * 1e3, "{:.1f}"),
        ]

    def _behind(self, k: int, world: int | None) -> str:
        if not self.ranked or k == self.ranked[0]:
            return ""
        d = self.ahead("experience", k, world)
        if np.isnan(d.mean):
            return "–"
        return f"{d.mean:.3f} (one seed)" if d.count < 2 else f"{d.mean:.3f} ± {d.high - d.mean:.3f}"

    def _told(self, k: int, world: int | None) -> dict:
        at = slice(None) if world is None else slice(world, world + 1)
        told: dict = {m: _null(mean(self.means[m][k, at])) for m in METRICS}
        if self.ranked and k != self.ranked[0]:
            ahead = {m: self.ahead(m, k, world) for m in METRICS}
            told["leader_ahead_by"] = {
                m: {"mean": _null(d.mean), "low": _null(d.low), "high": _null(d.high), "seeds": d.count}
                for m, d in ahead.items()
            }
        return told


def _null(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _dash(x: float, form: str) -> str:
    return "–" if np.isnan(x) else form.format(x)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _list(seeds: Sequence[int]) -> str:
    """1, 2, 3, 4, 5 as 1..5."""
    run = len(seeds) > 2 and all(b == a + 1 for a, b in pairwise(seeds))
    return f"{seeds[0]}..{seeds[-1]}" if run else ", ".join(map(str, seeds))
