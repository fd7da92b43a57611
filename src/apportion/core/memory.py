"""How much memory this process has held at most."""

from __future__ import annotations

import re
import resource
import sys


def peak_mb() -> float:
    """Give this program's largest resident memory so far, in MiB.

    Linux counts in ru_maxrss what the process was before it became this program, so a large parent would count too: the
    kernel's high-water mark of this program alone is read where there is one.
    """
    try:
        with open("/proc/self/status") as file:
            if found := re.search(r"^VmHWM:\s*(\d+) kB", file.read(), re.MULTILINE):
                return int(found[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
