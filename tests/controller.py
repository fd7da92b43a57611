"""A controller to be killed: starts burners, grants each little, says so, and plays rounds until it ends.

python tests/controller.py ENFORCER FOLDER [START]

With START it kills itself (-9) the moment the START-th program runs and nobody was told yet; 0: the program that
enforcers are tried on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from executors import allocation, burner

from apportion.core.clock import WallClock
from apportion.execution.local import LocalExecutor

PROGRAMS = (("one",), ("two", "--children", "1"), ("three",))


def die_at(start: int) -> None:
    """Kill this process at that start."""
    popen, seen = subprocess.Popen, 0

    def started(argv: list[str], **options) -> subprocess.Popen:
        nonlocal seen
        process = popen(argv, **options)
        if start == 0 and "-c" in argv:
            print(process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        seen += "APPORTION_TASK" in (options.get("env") or {})
        if start and seen == start:
            os.kill(os.getpid(), signal.SIGKILL)
        return process

    subprocess.Popen = started  # type: ignore[assignment, misc]


def main() -> None:
    enforcer, folder = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3:
        die_at(int(sys.argv[3]))
    programs = [burner(*given) for given in PROGRAMS[: 2 if len(sys.argv) == 3 else 3]]
    executor = LocalExecutor(programs, enforcer, folder, WallClock())
    tests = os.getppid()
    try:
        while os.getppid() == tests:  # they may have been killed themselves
            executor.grant(allocation({"one": 40, "two": 40}))
            print("granted", flush=True)
            time.sleep(0.2)
            executor.observe()
    except KeyboardInterrupt:
        pass
    finally:
        executor.close()


if __name__ == "__main__":
    main()
