"""What events, and chance, multiply the load of each task by.

    load[i] = surge[i] * noise[i],      surge[i] = product of the loads of the events that are on

Events are what the world file says. Chance comes only with a seed: simulated worlds of different seeds must
differ, as ordinary days do. Noise is log-normal with mean 1, its logarithm a stationary AR(1) process; an event comes up
to a tenth of its length early or late. Both are pure functions of (seed, task or event, number): drawn in
blocks and kept, so that the order in which rounds are asked for changes nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from apportion.worlds.file import Event

SPREAD = 0.08  # standard deviation of the logarithm of the noise
MEMORY = 0.8  # what one round's noise keeps of the last one's
JITTER = 0.1  # of an event's length
BLOCK = 64  # rounds drawn at once; MEMORY ** BLOCK is 6e-7, so that blocks join without a seam

_NOISE, _EVENT = 1, 2  # separate streams of one seed


class Surge:
    """The load of n tasks over time."""

    def __init__(self, events: tuple[Event, ...], rows: tuple[tuple[int, ...], ...], tasks: int):
        """rows: for each event, the tasks it is about."""
        self.tasks = tasks
        self._begin = np.array([e.at for e in events], float)
        self._lasts = np.array([e.lasts for e in events], float)
        self._load = np.array([e.load for e in events], float)
        self._returns = np.array([e.every is not None for e in events], bool)
        self._every = np.array([e.every or 1.0 for e in events], float)
        self._rows = tuple(np.array(r, np.int64) for r in rows)
        self._block = lru_cache(maxsize=4)(self._drawn)
        self._shift = lru_cache(maxsize=4096)(_shift)

    def at(self, seconds: float, seed: int | None = None) -> Float[np.ndarray, " task"]:
        """Give what events multiply each task's load by at this world time."""
        out = np.ones(self.tasks)
        for e in np.flatnonzero(self._on(seconds, seed)):
            out[self._rows[e]] *= self._load[e]
        return out

    def noise(self, number: int, seed: int) -> Float[np.ndarray, " task"]:
        """Give what chance multiplies each task's load by in a round."""
        block, at = divmod(number, BLOCK)
        return self._block(seed, block)[at]

    def _on(self, seconds: float, seed: int | None) -> Bool[np.ndarray, " event"]:
        """Tell which events are on. With chance, a neighbouring turn may be on too: early or late."""
        turn = np.where(self._returns, np.maximum(0, np.floor((seconds - self._begin) / self._every + 1e-9)), 0)
        if seed is None:
            return self._during(seconds, turn, np.zeros(len(turn)))
        on = np.zeros(len(turn), bool)
        for near in (turn - 1, turn, turn + 1):
            real = (near >= 0) & (self._returns | (near == 0))
            late = np.array([self._shift(seed, e, int(near[e])) if real[e] else 0.0 for e in range(len(turn))])
            on |= real & self._during(seconds, near, late * self._lasts)
        return on

    def _during(
        self, seconds: float, turn: Float[np.ndarray, " event"], late: Float[np.ndarray, " event"]
    ) -> Bool[np.ndarray, " event"]:
        begin = self._begin + turn * self._every + late - 1e-9  # 3 * 0.1 is not before 0.3
        return (seconds >= begin) & (seconds < begin + self._lasts)

    def _drawn(self, seed: int, block: int) -> Float[np.ndarray, "round task"]:
        """Draw a block of rounds: the AR(1) process runs up through the block before, whose draws are the same ones."""
        fresh = np.concatenate([_normal(seed, b, self.tasks) for b in (block - 1, block)])
        state = fresh[0]
        out = np.empty((BLOCK, self.tasks))
        for n in range(1, 2 * BLOCK):
            state = MEMORY * state + np.sqrt(1 - MEMORY**2) * fresh[n]
            if n >= BLOCK:
                out[n - BLOCK] = state
        return np.exp(SPREAD * out - SPREAD**2 / 2)


def _normal(seed: int, block: int, tasks: int) -> Float[np.ndarray, "round task"]:
    return np.random.default_rng([seed, _NOISE, block + 1]).standard_normal((BLOCK, tasks))


def _shift(seed: int, event: int, turn: int) -> float:
    return float(np.random.default_rng([seed, _EVENT, event, turn]).uniform(-JITTER, JITTER))


def starts(events: tuple[Event, ...]) -> Float[np.ndarray, " moment"]:
    """Give the world times at which some event first begins."""
    return np.unique(np.array([e.at for e in events], float))
