"""How experience answers CPU: each shipped program at a part of the CPU that it wants, alone and with a starved peer.

    python benchmarks/response.py [--repeats 3] [--seconds 8] [--period-ms 25] [--json FILE]

A program first runs unlimited to say what it wants; then it is held to 100, 75, 50, 35 and 25 % of that, two
seconds to settle and then measured. One curve per kind is fitted to the medians, and for each pair of kinds that
talk to each other the strength s in   experience = own(u) * (1 - s + s * experience of the peer).

Limits are CPU quotas of a private control group where one can be made (Linux, cgroup v1, root), else the program is
stopped and continued by signals. The group gets a high weight, so that neighbours on the machine disturb little; what
they do disturb is what the repeats and medians are for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KINDS = {"game": 200, "social": 200, "commerce": 100, "assets": 40}
PAIRS = (("game", "assets"), ("game", "social"), ("commerce", "assets"))  # who waits for whom
GRANTS = (1.0, 0.75, 0.5, 0.35, 0.25)
PEER_GRANTS = (1.5, 0.6, 0.3)
ROOT = Path("/sys/fs/cgroup/cpu")


class Quota:
    """A control group of one program."""

    name = "cgroup1 quota"

    def __init__(self, pid: int, period_ms: float):
        self.pid, self.period = pid, round(period_ms * 1000)
        self.folder = ROOT / f"apportion-bench-{os.getpid()}" / str(pid)
        self.folder.mkdir(parents=True)
        (self.folder.parent / "cpu.shares").write_text("65536")
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, cores: float | None) -> None:
        period = self.period if cores is None else max(self.period, round(1000 / cores))  # a turn is at least 1 ms
        (self.folder / "cpu.cfs_quota_us").write_text("-1")  # first: a quota must fit every period in between
        (self.folder / "cpu.cfs_period_us").write_text(str(period))
        if cores is not None:
            (self.folder / "cpu.cfs_quota_us").write_text(str(max(1000, round(cores * period))))

    def close(self) -> None:
        for _ in range(100):  # a group can go when its last process is gone, which takes a moment
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()
            if not self.folder.exists():
                return
            time.sleep(0.02)

    @staticmethod
    def works() -> bool:
        trial = ROOT / f"apportion-bench-{os.getpid()}"
        try:
            trial.mkdir()
            works = (trial / "cpu.cfs_quota_us").exists()
            trial.rmdir()
            return works
        except OSError:
            return False


class DutyCycle:
    """Stops a program once it has used up its part of a period, and lets it go on in the next."""

    name = "SIGSTOP and SIGCONT"

    def __init__(self, pid: int, period_ms: float):
        self.pid, self.period, self.cores, self.ended = pid, period_ms / 1000, None, False
        self.clock = (~pid << 3) | 2  # Linux: the CPU clock of another process
        self.thread = threading.Thread(target=self._govern, daemon=True)
        self.thread.start()

    def limit(self, cores: float | None) -> None:
        self.cores = cores

    def _govern(self) -> None:
        with contextlib.suppress(OSError):
            while not self.ended:
                end, start = time.monotonic() + self.period, time.clock_gettime(self.clock)
                while time.monotonic() < end:
                    if self.cores and time.clock_gettime(self.clock) - start > self.cores * self.period:
                        os.kill(self.pid, signal.SIGSTOP)
                        time.sleep(max(end - time.monotonic(), 0))
                        os.kill(self.pid, signal.SIGCONT)
                        break
                    time.sleep(0.001)

    def close(self) -> None:
        self.ended = True
        self.thread.join()


class Program:
    """A running program, its probe lines and its limit."""

    def __init__(self, kind: str, peers: dict[str, int], limiter: Callable[[int], Quota | DutyCycle], data: Path):
        port = 0
        if not peers:  # others may want to reach it
            port = _free_port()
        self.kind, self.port, self.lines = kind, port, []
        command = [sys.executable, "-m", f"apportion.workloads.{kind}", "--size", str(KINDS[kind])]
        command += ["--listen", f"127.0.0.1:{port}", "--data", str(data / f"{kind}-{time.monotonic_ns()}")]
        for peer, at in peers.items():
            command += ["--peer", f"{peer}=127.0.0.1:{at}"]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.limiter = limiter(self.child.pid)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.child.stdout or ():
            self.lines.append(json.loads(line))

    def over(self, seconds: float) -> list[dict]:
        """Give the probe lines of the coming seconds."""
        before = len(self.lines)
        time.sleep(seconds)
        return self.lines[before:]

    def close(self) -> None:
        self.limiter.limit(None)
        self.child.terminate()
        self.child.wait()
        self.limiter.close()


def experience(lines: list[dict]) -> float:
    """Give operations in time over operations asked."""
    asked = sum(line["asked"] for line in lines)
    return sum(line["in_time"] for line in lines) / asked if asked else float("nan")


def wanted(lines: list[dict]) -> float:
    return statistics.median(line["wanted"]["cpu"] for line in lines)


def alone(kind: str, args: argparse.Namespace, limiter: Callable, data: Path) -> dict:
    """Measure one program at each grant, and what it gives from two seconds after each."""
    with contextlib.closing(Program(kind, {}, limiter, data)) as program:
        time.sleep(2)
        free = program.over(3)
        out: dict = {"free": experience(free), "wanted": [], "recovered": [], "noise": [], "at": {}, "said": {}}
        out["rate"] = sum(line["asked"] for line in free) / sum(line["wanted"]["cpu"] for line in free)
        for grant in GRANTS:
            # What the same work costs drifts by a third with what the neighbours do: ask again before each grant.
            now = wanted(program.over(3))
            program.limiter.limit(grant * now)
            time.sleep(args.settle)
            lines = program.over(args.seconds)
            out["at"][grant], out["said"][grant] = experience(lines), wanted(lines) / now
            out["noise"].append(statistics.pstdev(experience([line]) for line in lines))
            out["wanted"].append(now)
            program.limiter.limit(None)
            time.sleep(2)
            out["recovered"].append(experience(program.over(1.2)))
        out["wanted"], out["recovered"] = statistics.median(out["wanted"]), min(out["recovered"])
        out["noise"] = statistics.median(out["noise"])  # of experience, from second to second
    return out


def together(
    pair: tuple[str, str], args: argparse.Namespace, limiter: Callable, data: Path
) -> list[tuple[float, float]]:
    """Starve a peer; give (experience of the peer, experience of who needs it), each at several grants of the peer."""
    with contextlib.ExitStack() as at_end:
        need = at_end.enter_context(contextlib.closing(Program(pair[1], {}, limiter, data)))
        time.sleep(1)
        dependent = at_end.enter_context(contextlib.closing(Program(pair[0], {pair[1]: need.port}, limiter, data)))
        time.sleep(3)
        wants, points = wanted(need.over(4)), []
        for grant in PEER_GRANTS:
            need.limiter.limit(grant * wants)
            time.sleep(args.settle)
            before = len(need.lines)
            lines = dependent.over(args.seconds)
            points.append((experience(need.lines[before:]), experience(lines)))
        return points


CURVES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "power": lambda u, g: u**g,
    "saturating": lambda u, k: -np.expm1(-k * u) / -np.expm1(-k),
    "offset": lambda u, a: np.maximum(u - a, 0) / (1 - a),
}
RANGES = {"power": (0.2, 4.0), "saturating": (-6.0, 8.0), "offset": (-0.3, 0.6)}


def fit(u: np.ndarray, e: np.ndarray) -> dict[str, tuple[float, float]]:
    """Give parameter and root mean square error of each curve, by trying a fine grid."""
    out = {}
    for name, curve in CURVES.items():
        grid = [x for x in np.linspace(*RANGES[name], 2001) if abs(x) > 1e-6]
        errors = [float(np.sqrt(np.mean((curve(u, x) - e) ** 2))) for x in grid]
        best = int(np.argmin(errors))
        out[name] = (round(float(grid[best]), 3), round(errors[best], 4))
    return out


def strength(points: list[tuple[float, float]]) -> float:
    """Fit s in  dependent = own * (1 - s + s * peer)  through the least squares, own being unknown."""
    x, y = np.array(points).T
    slope, level = np.polyfit(x, y, 1)
    return float(np.clip(slope / (slope + level), 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--settle", type=float, default=2)
    parser.add_argument("--period-ms", type=float, default=25, help="period of the quota")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--alone", action="store_true", help="leave the pairs out")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))  # an exit on which everything is cleaned up
    kind_of_limit = Quota if Quota.works() else DutyCycle

    def limiter(pid: int) -> Quota | DutyCycle:
        return kind_of_limit(pid, args.period_ms)

    result: dict = {
        "limit": kind_of_limit.name,
        "period_ms": args.period_ms,
        "repeats": args.repeats,
        "kinds": {},
        "needs": {},
    }
    with tempfile.TemporaryDirectory(prefix="apportion-bench-") as folder:
        data = Path(folder)
        print(
            f"limit: {kind_of_limit.name}, period {args.period_ms:g} ms; medians of {args.repeats}; load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'kind':10}{'wanted':>8}{'free':>7}"
            + "".join(f"{grant:>8.0%}" for grant in GRANTS)
            + f"{'again':>8}  fit"
        )
        for kind in args.kinds:
            runs = [alone(kind, args, limiter, data) for _ in range(args.repeats)]
            row = _medians(runs)
            e = np.array([row["at"][grant] for grant in GRANTS])
            row["fit"] = fit(np.array(GRANTS), e / e[0])
            best = min(row["fit"], key=lambda name: row["fit"][name][1])
            row["best"] = best
            result["kinds"][kind] = row
            print(
                f"{kind:10}{row['wanted']:8.3f}{row['free']:7.2f}"
                + "".join(f"{x:8.3f}" for x in e)
                + f"{row['recovered']:8.3f}  "
                + ", ".join(f"{n} {p:g} (rmse {r:.3f})" for n, (p, r) in row["fit"].items()),
                flush=True,
            )
            print(
                f"{'':10}{'says it wants':>15}" + "".join(f"{row['said'][grant]:8.3f}" for grant in GRANTS), flush=True
            )
        for pair in () if args.alone else PAIRS:
            runs = [together(pair, args, limiter, data) for _ in range(args.repeats)]
            points = [
                tuple(statistics.median(run[k][side] for run in runs) for side in (0, 1))
                for k in range(len(PEER_GRANTS))
            ]
            s = strength(points)
            result["needs"][f"{pair[0]}->{pair[1]}"] = {"points": points, "s": round(s, 3)}
            print(
                f"{pair[0]} needs {pair[1]}: s {s:.2f}; (peer, dependent) "
                + ", ".join(f"({a:.2f}, {b:.2f})" for a, b in points),
                flush=True,
            )
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _medians(runs: list[dict]) -> dict:
    out = {
        name: statistics.median(run[name] for run in runs) for name in ("wanted", "free", "rate", "noise", "recovered")
    }
    for name in ("at", "said"):
        out[name] = {grant: statistics.median(run[name][grant] for run in runs) for grant in GRANTS}
    return out


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
