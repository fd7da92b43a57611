"""What events, and chance, multiply the load of each task by.

    load[i] = surge[i] * noise[i],      surge[i] = product of the loads of the events that are on

Events are what the world file says. Chance comes only with a seed: simulated worlds of different seeds must
differ, as ordinary days do. Noise is log-normal with mean 1, its logarithm a stationary AR(1) process; an event comes up
to a tenth of its length early or late. Both are pure functions of (seed, task or event, number): drawn in
blocks and kept, so that the order in which rounds are asked for changes nothing. Both are bounded too, so that the
worst round of a world is known before its first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from apportion.worlds.file import Event

SPREAD = 0.08  # standard deviation of the logarithm of the noise
MEMORY = 0.8  # what one round's noise keeps of the last one's
FARTHEST = 8.0  # standard deviations at which the logarithm of the noise is cut: once in 10^15 draws
LOUDEST = math.exp(SPREAD * FARTHEST - SPREAD**2 / 2)  # the most that chance multiplies a demand by: 1.89
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
        for e in np.flatnonzero(self.left(seconds, seed)):
            out[self._rows[e]] *= self._load[e]
        return out

    def noise(self, number: int, seed: int) -> Float[np.ndarray, " task"]:
        """Give what chance multiplies each task's load by in a round."""
        block, at = divmod(number, BLOCK)
        return self._block(seed, block)[at]

    def left(self, seconds: float, seed: int | None = None) -> Float[np.ndarray, " event"]:
        """Give how many seconds longer each event is on; 0: it is not. With chance, a neighbouring turn may be on too: early or late."""
        turn = np.where(self._returns, np.maximum(0, np.floor((seconds - self._begin) / self._every + 1e-9)), 0)
        if seed is None:
            return self._during(seconds, turn, np.zeros(len(turn)))
        left = np.zeros(len(turn))
        for near in (turn - 1, turn, turn + 1):
            since = seconds - self._begin - near * self._every
            maybe = (near >= 0) & (self._returns | (near == 0)) & (np.abs(since) <= 2 * self._lasts)
            late = np.zeros(len(turn))
            for e in np.flatnonzero(maybe):  # most events are far away: nothing is drawn for them
                late[e] = self._shift(seed, int(e), int(near[e]))
            left = np.maximum(left, np.where(maybe, self._during(seconds, near, late * self._lasts), 0.0))
        return left

    def _during(
        self, seconds: float, turn: Float[np.ndarray, " event"], late: Float[np.ndarray, " event"]
    ) -> Float[np.ndarray, " event"]:
        begin = self._begin + turn * self._every + late - 1e-9  # 3 * 0.1 is not before 0.3
        end = begin + self._lasts
        return np.where((seconds >= begin) & (seconds < end), end - seconds, 0.0)

    def _drawn(self, seed: int, block: int) -> Float[np.ndarray, "round task"]:
        """Draw a block of rounds: the AR(1) process runs up through the block before, whose draws are the same ones."""
        fresh = np.concatenate([_normal(seed, b, self.tasks) for b in (block - 1, block)])
        state = fresh[0]
        out = np.empty((BLOCK, self.tasks))
        for n in range(1, 2 * BLOCK):
            state = MEMORY * state + np.sqrt(1 - MEMORY**2) * fresh[n]
            if n >= BLOCK:
                out[n - BLOCK] = state
        return np.exp(SPREAD * np.clip(out, -FARTHEST, FARTHEST) - SPREAD**2 / 2)


def _normal(seed: int, block: int, tasks: int) -> Float[np.ndarray, "round task"]:
    return np.random.default_rng([seed, _NOISE, block + 1]).standard_normal((BLOCK, tasks))


def _shift(seed: int, event: int, turn: int) -> float:
    return float(np.random.default_rng([seed, _EVENT, event, turn]).uniform(-JITTER, JITTER))


def moments(events: tuple[Event, ...]) -> Float[np.ndarray, " moment"]:
    """Give the world times at which some event first begins or ends."""
    return np.unique(np.array([[e.at, e.at + e.lasts] for e in events], float))


def peaks(events: Iterable[Event]) -> dict[str, float]:
    """Give the base-2 logarithm of the most that events can multiply each task's load by; tasks of none are left out.

    Events that cannot be on together, however early or late chance has them come, are not multiplied: those that come once and
    those of one period are swept over time. Events of different periods meet sooner or later.
    """
    changes: dict[tuple[str, float | None], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        up = math.log2(event.load)
        for begin, end in _windows(event) if up > 0 else ():
            for task in event.tasks:
                changes[task, event.every] += [(begin, up), (end, -up)]
    out: dict[str, float] = defaultdict(float)
    for (task, _), steps in changes.items():
        level = highest = 0.0
        for _, step in sorted(steps):  # at one time what ends ends first
            level += step
            highest = max(highest, level)
        out[task] += highest
    return out


def _windows(event: Event) -> list[tuple[float, float]]:
    """When an event may be on: from a tenth early to a tenth late; within its period, if it has one."""
    early = JITTER * event.lasts
    begin, length = event.at - early, event.lasts + 2 * early
    if event.every is None:
        return [(begin, begin + length)]
    if length >= event.every:
        return [(0.0, event.every)]
    begin %= event.every
    beyond = begin + length - event.every
    return [(begin, begin + length)] if beyond <= 0 else [(begin, event.every), (0.0, beyond)]
