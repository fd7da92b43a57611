"""What tasks run: the shipped programs with their measured response to CPU, and the user's own commands.

    experience = own(u) * product over needed tasks of (1 - s + s * their experience),   u = granted / demanded

`own` runs straight through the points that were measured on the real programs (relative to all they want; the best
one-parameter curves miss them by .04 to .12), s is how strongly one kind suffers when another is late. All figures in
KINDS: medians of `python benchmarks/response.py --repeats 5 --seconds 6`, cgroup1 quota, 2 cores.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from apportion.core.errors import BadInput

PARTS = (0.0, 0.25, 0.35, 0.5, 0.75, 1.0)  # of what it wants, at which a program was measured


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task: the program behind it and how it answers to being short."""

    module: str  # run as `python -m`; '' for the user's own command
    size_name: str  # what its size counts
    felt: tuple[float, ...] = PARTS  # its experience at PARTS
    rate: float = 1000.0  # operations asked per core-second wanted
    noise: float = 0.0  # standard deviation of its experience from second to second
    needs: Mapping[str, float] = field(default_factory=dict)  # kind it calls -> s

    def own(self, u: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
        """Give the experience at this part of its demand when nobody it needs is short."""
        return np.interp(u, PARTS, self.felt)


KINDS: dict[str, Kind] = {
    "game": Kind(
        "apportion.workloads.game",
        "players",
        (0.0, 0.230, 0.350, 0.531, 0.838, 1.0),
        rate=32.9e3,
        noise=0.037,
        needs={"assets": 0.32, "social": 0.10},
    ),
    "social": Kind(
        "apportion.workloads.social",
        "members",
        (0.0, 0.217, 0.299, 0.485, 0.880, 1.0),
        rate=17.0e3,
        noise=0.024,
    ),
    "commerce": Kind(
        "apportion.workloads.commerce",
        "traders",
        (0.0, 0.174, 0.222, 0.454, 0.857, 1.0),
        rate=4.5e3,
        noise=0.040,
        needs={"assets": 0.25},
    ),
    "assets": Kind(
        "apportion.workloads.assets",
        "clients",
        (0.0, 0.126, 0.271, 0.581, 0.953, 1.0),
        rate=2.6e3,
        noise=0.034,
    ),
    "process": Kind("", ""),  # nobody has measured it: it makes of its grant what it gets
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a program tells its experience: probe lines on its standard output, or a page at `url`.

    The page is one probe line as JSON, or the Prometheus text format; then `asked` and `in_time` name two counters,
    with labels if need be: `http_requests_total{job="shop"}`. Counters are summed over all series that match.
    """

    url: str = ""
    asked: str = ""
    in_time: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A task's program. What only starting decides (ports, folders) is added by `children.py`."""

    name: str
    argv: tuple[str, ...]
    kind: str = "process"
    env: Mapping[str, str] = field(default_factory=dict)
    probe: Probe = Probe()
    needs: tuple[str, ...] = ()  # tasks that it calls
    served: bool = False  # takes --load, --listen, --peer and --data, as the shipped programs do


def shipped(name: str, kind: str, size: int, needs: tuple[str, ...] = ()) -> Program:
    """Give one of the shipped programs. Its seed follows from its name, so that two shards are two worlds."""
    if kind not in KINDS or not KINDS[kind].module:
        known = ", ".join(k for k, v in KINDS.items() if v.module)
        raise BadInput(f"task {name!r}: no program of kind {kind!r} ships with apportion. Choose one of {known}.")
    seed = zlib.crc32(name.encode()) % 10**6
    argv = (sys.executable, "-m", KINDS[kind].module, "--size", str(size), "--seed", str(seed))
    return Program(name, argv, kind, needs=needs, served=True)


def own(name: str, command: tuple[str, ...], probe: Probe | None = None, needs: tuple[str, ...] = ()) -> Program:
    """Give the user's own command, started as it is, without a shell.

    It finds its task's name in APPORTION_TASK and the file with its load factor in APPORTION_LOAD. Whatever it starts
    is stopped with it as long as it passes APPORTION_RUN on.
    """
    if not command:
        raise BadInput(f"task {name!r}: its command is empty. Write for example [python, -u, my_server.py].")
    return Program(name, command, probe=probe or Probe(), needs=needs)
