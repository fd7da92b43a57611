"""Which enforcer: those there are, in order of strength, each tried for real before it is believed.

cgroup2    the kernel holds CPU and memory, per group, all descendants included
cgroup1    the same on the older interface
governor   a process of ours stops and continues programs by their measured CPU time; needs no rights
none       nothing is held, everything is measured
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from apportion.core.errors import BadInput, EnforcerRefused
from apportion.execution.cgroup1 import Cgroup1
from apportion.execution.cgroup2 import Cgroup2
from apportion.execution.enforcers import PERIOD_US, Enforcer, NoEnforcer
from apportion.execution.governor import Governor

TRIAL_MOST = 200  # milli-cores that a busy program granted 50 may get on trial; on a full machine it gets few anyway


def table() -> dict[str, Callable[[str, Path], Enforcer]]:
    """Name every enforcer, strongest first; each is built from the run's id and folder. A new one is a line here."""
    return {
        "cgroup2": lambda run, folder: Cgroup2(run),
        "cgroup1": lambda run, folder: Cgroup1(run),
        "governor": lambda run, folder: Governor(folder),
        "none": lambda run, folder: NoEnforcer(),
    }


def choose(
    wanted: str, run: str, folder: Path, offers: Mapping[str, Callable[[str, Path], Enforcer]] | None = None
) -> tuple[Enforcer, list[str]]:
    """Give the wanted enforcer, or for 'auto' the first that works here, and why stronger ones do not."""
    offers = offers or table()
    if wanted != "auto" and wanted not in offers:
        raise BadInput(f"enforcer: {wanted!r} is unknown. Choose one of auto, {', '.join(offers)}.")
    refused: list[str] = []
    for name in offers if wanted == "auto" else (wanted,):
        try:
            return trial(offers[name](run, folder)), refused
        except EnforcerRefused as refusal:
            refused.append(str(refusal))
    if wanted != "auto":
        raise EnforcerRefused(f"{refused[0]} Choose another enforcer; 'auto' takes the strongest that works here.")
    raise EnforcerRefused(f"no enforcer works here: {' '.join(refused)}")


def trial(enforcer: Enforcer) -> Enforcer:
    """Give the enforcer back after it has really held a busy process; raises EnforcerRefused where it did not."""
    try:
        with _busy() as pid:
            enforcer.attach("@trial", pid)
            enforcer.limit("@trial", 50, 2**20, 50)
            got, tries = 1000.0, 10
            while enforcer.name != "none" and got > TRIAL_MOST and tries:  # a governor may take its time to start
                got, tries = _speed(enforcer, 4 * PERIOD_US / 1e6), tries - 1
            enforcer.limit("@trial", -1, -1, 50)
        enforcer.detach("@trial")
        if enforcer.name != "none" and got > TRIAL_MOST:
            raise EnforcerRefused(f"{enforcer.name}: a program granted 50 milli-cores got {got:.0f}.")
    except EnforcerRefused:
        enforcer.close()
        raise
    return enforcer


def _speed(enforcer: Enforcer, seconds: float) -> float:
    """Give the milli-cores that the trial uses now."""
    before, begun = enforcer.usage("@trial").cpu, time.monotonic()
    time.sleep(seconds)
    return (enforcer.usage("@trial").cpu - before) / 1e6 / (time.monotonic() - begun)


@contextmanager
def _busy() -> Iterator[int]:
    """Run a process that wants all it can get, to try things on; it ends with us, however we end."""
    busy = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", busy], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
