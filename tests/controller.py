"""A controller to be killed: starts burners, grants each little, says so, and plays rounds until it ends.

python tests/controller.py ENFORCER FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from executors import allocation, burner

from apportion.core.clock import WallClock
from apportion.execution.local import LocalExecutor


def main() -> None:
    enforcer, folder = sys.argv[1], Path(sys.argv[2])
    executor = LocalExecutor([burner("one"), burner("two", "--children", "1")], enforcer, folder, WallClock())
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
