"""The same round in virtual time: experience from measured response curves, felt along `needs`.

    u_i = share of its demand that is granted, the same of every resource
    e_i = own(u_i) * product over k in needs(i) of (1 - s + s e_k)      (see programs.py), plus seeded noise

A task uses what it is granted up to what it wants. Needs may be chains or rings: experience is passed on a few
times, and further on its effect is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from apportion.core.allocation import Allocation
from apportion.core.clock import Clock
from apportion.core.errors import BadInput
from apportion.core.round import Outcome
from apportion.execution.programs import KINDS

PASSES = 4


class SimExecutor:
    """Programs that answer as the real ones were measured to; same seed, same bytes."""

    def __init__(
        self, kinds: Mapping[str, str], needs: Mapping[str, Sequence[str]], clock: Clock, seed: int, noise: bool = True
    ):
        """kinds: the kind of each task by name; needs: the tasks that each task calls."""
        if unknown := sorted(set(kinds.values()) - set(KINDS)):
            raise BadInput(f"kind {unknown[0]!r} has no response curve. Known: {', '.join(KINDS)}.")
        self.clock, self.seed, self.noise = clock, seed, noise
        self._kinds, self._needs = dict(kinds), {name: tuple(needed) for name, needed in needs.items()}
        self._layout: _Layout | None = None
        self._allocation: Allocation | None = None
        self._closed = False

    def grant(self, allocation: Allocation) -> None:
        """Put these grants in force, now."""
        if self._closed:
            raise BadInput("this executor is closed: start another one.")
        tasks = allocation.market.tasks
        if self._layout is None or self._layout.tasks != tasks:
            self._layout = _Layout(tasks, self._kinds, self._needs)
        self._allocation, self._since = allocation, self.clock.now()

    def observe(self) -> Outcome:
        """Tell what was delivered and experienced since the last grant."""
        if self._allocation is None or self._layout is None:
            raise BadInput("there is nothing to observe before the first grant.")
        market, granted = self._allocation.market, self._allocation.granted
        wanted = market.demand[market.row]
        delivered = np.minimum(granted, np.ceil(wanted).astype(np.int64))
        experience = self._layout.felt(np.clip(self._allocation.served, 0.0, 1.0))
        if self.noise:
            rng = np.random.default_rng([self.seed, round(self._since * 1000)])  # by time: a resumed run goes on alike
            experience = experience + self._layout.noise * rng.standard_normal(len(experience))
        cpu = (
            market.demand[:, market.resources.index("cpu")] / 1000
            if "cpu" in market.resources
            else np.ones(len(market.demand))
        )
        seconds = max(self.clock.now() - self._since, 1e-9)
        asked = np.rint(self._layout.rate * cpu * seconds)
        asked = np.clip(asked, 1, 2.0**52).astype(np.int64)  # the log holds no more
        in_time = np.rint(np.clip(experience, 0.0, 1.0) * asked).astype(np.int64)
        return Outcome(delivered, asked, in_time, "sim", ("sim",) * len(market.resources))

    def close(self) -> None:
        """Nothing was started; nothing is granted any more."""
        self._closed = True


class _Layout:
    """What does not change while the tasks are the same: their kinds as arrays, their needs as edges."""

    def __init__(self, tasks: tuple[str, ...], kinds: Mapping[str, str], needs: Mapping[str, tuple[str, ...]]):
        if strangers := sorted(set(tasks) - set(kinds)):
            raise BadInput(f"task {strangers[0]!r} has no kind here. Tasks: {', '.join(list(kinds)[:20])}.")
        self.tasks = tasks
        at = {name: i for i, name in enumerate(tasks)}
        of = [KINDS[kinds[name]] for name in tasks]
        self.rows = {
            kind: np.array([i for i, name in enumerate(tasks) if kinds[name] == kind]) for kind in set(kinds.values())
        }
        self.rate = np.array([kind.rate for kind in of])
        self.noise = np.array([kind.noise for kind in of])
        edges = [
            (i, at[needed], of[i].needs[kinds[needed]])
            for i, name in enumerate(tasks)
            for needed in needs.get(name, ())
            if needed in at and kinds[needed] in of[i].needs
        ]
        self.who: Int[np.ndarray, " edge"] = np.array([e[0] for e in edges], np.int64)
        self.whom: Int[np.ndarray, " edge"] = np.array([e[1] for e in edges], np.int64)
        self.strength: Float[np.ndarray, " edge"] = np.array([e[2] for e in edges], float)

    def felt(self, u: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
        """Give experience at these parts of demand, before noise."""
        own = np.empty(len(u))
        for kind, rows in self.rows.items():
            if len(rows):
                own[rows] = KINDS[kind].own(u[rows])
        felt = own
        for _ in range(PASSES if len(self.who) else 0):
            factor = 1 - self.strength + self.strength * felt[self.whom]
            felt = own * np.exp(np.bincount(self.who, np.log(np.maximum(factor, 1e-12)), len(u)))
        return felt
