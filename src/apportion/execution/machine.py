"""The machine we run on: what it can promise, what it is, and what dead runs left on it."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from apportion.core.errors import EnforcerRefused
from apportion.core.units import resource
from apportion.execution import places
from apportion.execution.cgroups import Files, mounts
from apportion.execution.choosing import choose, table

KEPT_PART, KEPT_LEAST = 0.05, 100  # milli-cores that are not for sale: the controller and the system live on them
BANDWIDTH = 100_000  # kbit/s; no machine tells what its links give away, so a modest figure stands here
STORAGE = 50_000  # kB/s; nor what its disks keep up with
UNLIMITED = 2**60  # version 1 writes 'no limit' as a very large number


def capacity(root: Path = Path("/")) -> dict[str, int]:
    """Give what this machine can promise, in base units per resource, the same from start to start.

    CPU and memory honour affinity and the limits of our own control groups; memory is what the machine has, not what
    happens to be free. Bandwidth and storage cannot be read: where they matter, write them into the world file.
    """
    cores = min(_affinity(), *_group_cpu(root), float("inf")) * 1000
    kept = max(KEPT_PART * cores, KEPT_LEAST)
    return {
        "cpu": max(int(cores - kept), 1),
        "memory": int(min(_total_memory(root), *_group_memory(root), float("inf"))),
        "bandwidth": BANDWIDTH,
        "storage": STORAGE,
    }


def oversold(pools: Mapping[str, float | int], machine: Mapping[str, float | int]) -> list[str]:
    """Tell where pools together promise more than the machine under them has: a line per resource.

    pools, machine: base units by resource, summed over the pools and as `capacity` gives them. Bandwidth and storage
    are left out: no machine tells what it has of them.
    """
    amount = {
        name: [resource(name).show(float(of.get(name, 0))) for of in (pools, machine)] for name in ("cpu", "memory")
    }
    return [
        f"pools sum to {promised} of {name}, this machine has {has} to give: deliveries will fall short"
        for name, (promised, has) in amount.items()
        if pools.get(name, 0) > machine[name]
    ]


def describe() -> dict[str, object]:
    """Tell what `doctor` prints; every enforcer is tried for real."""
    enforcers = []
    with tempfile.TemporaryDirectory(prefix="apportion-") as folder:
        for name, offer in table().items():
            try:
                enforcer, _ = choose(name, f"doctor-{os.getpid()}", Path(folder), {name: offer})
                enforcer.close()
                enforcers.append({"name": name, "works": True, "why": ""})
            except EnforcerRefused as refusal:
                why = str(refusal).partition(" Choose another")[0].removeprefix(f"{name}: ")
                enforcers.append({"name": name, "works": False, "why": why})
    groups = {controller or "version 2": str(path) for controller, path in sorted(mounts().items())}
    return {
        "machine": f"{platform.machine()}, {_model()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
        "capacity": capacity(),
        "cgroups": groups,
        "enforcers": enforcers,
    }


def clean(run: str | None = None, files: Files | None = None) -> list[str]:
    """Take away the control groups of dead runs (or of one run): ours by name, and nobody living in any of them.

    Gives the runs whose groups are gone.
    """
    files, gone = files or Files(), []
    for name, groups in _runs().items():
        if run not in (None, name) or _alive(groups):
            continue
        for group in groups:
            for child in sorted((child for child in group.rglob("*") if child.is_dir()), reverse=True):
                _try_remove(files, child)
            _try_remove(files, group)
        if not any(group.exists() for group in groups):
            gone.append(name)
    return gone


def living() -> list[str]:
    """Name the runs that hold programs on this machine now."""
    return [name for name, groups in _runs().items() if _alive(groups)]


def _runs() -> dict[str, list[Path]]:
    """Give the groups of every run, dead or alive."""
    runs: dict[str, list[Path]] = {}
    for group in _ours():
        runs.setdefault(group.name.removeprefix(places.PREFIX), []).append(group)
    return runs


def _alive(groups: list[Path]) -> bool:
    """Tell whether anybody lives in a run's groups; alive in one hierarchy is alive in all."""
    with contextlib.suppress(FileNotFoundError):  # taken away while we looked
        return any(procs.read_text().strip() for group in groups for procs in group.rglob("cgroup.procs"))
    return True


def _try_remove(files: Files, group: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or not ours to remove: it is looked at again next time
        files.remove(group)


def _ours() -> Iterator[Path]:
    """Find the groups of runs, below any group of any hierarchy: an earlier run may have been started elsewhere."""
    for mount in {_top(path) for path in mounts().values()}:
        for folder, inside, _ in os.walk(mount):
            yield from (Path(folder, name) for name in inside if name.startswith(places.PREFIX))
            inside[:] = [name for name in inside if not name.startswith(places.PREFIX)]


def _top(group: Path) -> Path:
    """Give the mount that a group lies in."""
    while not group.is_mount() and group != group.parent:
        group = group.parent
    return group


def _affinity() -> float:
    return float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)


def _upwards(group: Path) -> Iterator[Path]:
    """Give a group and those around it: each may limit it."""
    while (group / "cgroup.procs").exists():
        yield group
        group = group.parent


def _group_cpu(root: Path) -> Iterator[float]:
    """Give each CPU limit on us, in cores."""
    found = mounts(root / "proc")
    for group in _upwards(found["cpu"]) if "cpu" in found else ():
        quota, period = (_number(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota > 0 and period > 0:
            yield quota / period
    for group in _upwards(found[""]) if "" in found else ():
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _group_memory(root: Path) -> Iterator[float]:
    """Give each memory limit on us, in KiB."""
    found = mounts(root / "proc")
    for controller, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        for group in _upwards(found[controller]) if controller in found else ():
            limit = _number(group / name)
            if 0 < limit < UNLIMITED:
                yield limit / 1024


def _total_memory(root: Path) -> float:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return float(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024


def _model() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or sys.platform


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else -1


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
