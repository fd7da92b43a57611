"""A small program to share a machine with: it asks for so many cores of work and says how much of it was in time.

    python tests/burner.py --want 0.5 [--every 0.2] [--children 1] [--crash-after S] [--grow MiB] [--deaf]

An operation is 2 ms of CPU; it is in time when it is done within 50 ms of falling due, and shed when it cannot be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time

OPERATION, DEADLINE = 0.002, 0.05
LIFE = 120.0  # seconds after which one that its test forgot ends by itself


def work() -> None:
    until = time.thread_time() + OPERATION
    while time.thread_time() < until:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--want", type=float, default=1.0, help="cores")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between probe lines")
    parser.add_argument("--children", type=int, default=0, help="processes of its own that burn a core each")
    parser.add_argument("--crash-after", type=float, default=0.0, help="seconds")
    parser.add_argument("--grow", type=int, default=0, help="MiB to hold")
    parser.add_argument("--after", type=float, default=0.0, help="seconds before it grows and works")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--silent", action="store_true", help="print nothing")
    given = parser.parse_args()
    if given.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(given.children):
        if os.fork() == 0:
            parent = os.getppid()
            while os.getppid() == parent:
                work()
            os._exit(0)
    time.sleep(given.after)
    held = bytearray(given.grow * 2**20)
    held[::4096] = b"\1" * len(held[::4096])
    begun = due = line = time.monotonic()
    asked = in_time = 0
    while True:
        now = time.monotonic()
        if now - begun > LIFE:
            sys.exit("burner: nobody came for me")
        if given.crash_after and now - begun > given.crash_after:
            print("burner: as asked", file=sys.stderr)
            sys.exit(3)
        if now - line >= given.every:
            line = now
            if not given.silent:
                said = {"t": time.time(), "asked": asked, "in_time": in_time, "used": {"bandwidth": 2.5}}
                print(json.dumps(said), flush=True)
            asked = in_time = 0
        if given.want <= 0 or due > now:
            time.sleep(min(due - now, given.every) if given.want > 0 else given.every)
            continue
        asked += 1
        if now - due < DEADLINE / 2:  # else shed: it would hold up the work behind it
            work()
            in_time += time.monotonic() - due < DEADLINE
        due += OPERATION / given.want


if __name__ == "__main__":
    main()
