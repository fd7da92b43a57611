"""What tasks run: the shipped programs with their measured response to CPU, and the user's own commands.

    experience = own(u) * product over needed tasks of (1 - s + s * their experience),   u = granted / demanded

`own` is one of the curves below, s how strongly one kind suffers when another is late. Both were fitted to the real
programs by `python benchmarks/response.py`; the figures in KINDS are its output.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from apportion.core.errors import BadInput

CURVES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "power": lambda u, g: u**g,
    "saturating": lambda u, k: np.expm1(-k * u) / np.expm1(-k),
    "offset": lambda u, a: np.maximum(u - a, 0.0) / (1 - a),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task: the program behind it and how it answers to being short."""

    module: str  # run as `python -m`; '' for the user's own command
    size_name: str  # what its size counts
    curve: str = "power"
    parameter: float = 1.0
    rate: float = 100.0  # operations asked per core-second wanted
    noise: float = 0.01  # standard deviation of its experience from second to second
    needs: Mapping[str, float] = field(default_factory=dict)  # kind it calls -> s

    def own(self, u: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
        """Give the experience at this part of its demand when nobody it needs is short."""
        return np.clip(CURVES[self.curve](np.clip(u, 0.0, 1.0), self.parameter), 0.0, 1.0)


KINDS: dict[str, Kind] = {
    "game": Kind("apportion.workloads.game", "players", "power", 0.91, 35e3, 0.05, {"assets": 0.3, "social": 0.12}),
    "social": Kind("apportion.workloads.social", "members", "power", 0.96, 16e3, 0.03),
    "commerce": Kind("apportion.workloads.commerce", "traders", "power", 1.05, 4e3, 0.04, {"assets": 0.27}),
    "assets": Kind("apportion.workloads.assets", "clients", "power", 1.03, 2.4e3, 0.04),
    "process": Kind("", ""),
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

    It finds its task's name in APPORTION_TASK and the file with its load factor in APPORTION_LOAD.
    """
    if not command:
        raise BadInput(f"task {name!r}: its command is empty. Write for example [python, -u, my_server.py].")
    return Program(name, command, probe=probe or Probe(), needs=needs)
