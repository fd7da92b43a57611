"""How programs tell their experience: JSON lines in a file, or a metrics page asked once a second.

    {"t": ..., "asked": 4000, "in_time": 3991, "used": {"bandwidth": Mbit/s, "storage": MB/s}, ...}

A reader keeps totals that only grow; whoever wants an interval subtracts. What cannot be read is left out and
reported once: a program that says nonsense is one that says nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable
from unicodedata import category

from apportion.core.errors import BadInput
from apportion.core.units import resource
from apportion.execution.programs import Probe

ROTATE_BYTES = 2**20

MOST_PAGE, ANSWER_SECONDS = 4 * 2**20, 2.0  # of a metrics page: bytes, and until they are told
MOST_READ = 8 * ROTATE_BYTES  # of what a program printed since it was last read
MOST_USED = 64  # resources that one program tells of: the log holds no more
MOST_QUOTED = 300  # characters of what a program said, in a note
MOST = 2**40  # operations in one line: no program does a million million a second


@dataclass(slots=True)
class Told:
    """What a program has told so far."""

    lines: int = 0
    asked: float = 0.0
    in_time: float = 0.0
    used: dict[str, tuple[float, int]] = field(
        default_factory=dict
    )  # sum in base units per second, over how many lines

    def copy(self) -> Told:
        return Told(self.lines, self.asked, self.in_time, dict(self.used))

    def mean(self, name: str, since: Told) -> float:
        """Give what it used of a resource on average since then, in base units per second; nan: it did not say."""
        (total, lines), (before, seen) = self.used.get(name, (0.0, 0)), since.used.get(name, (0.0, 0))
        return (total - before) / (lines - seen) if lines > seen else math.nan


def printable(text: str) -> str:
    """Give what a program said as it can be printed and logged: short, on one line, no terminal's or half a character's codes."""
    return "".join("\ufffd" if category(c)[0] == "C" or category(c) in ("Zl", "Zp") else c for c in text[:MOST_QUOTED])


@runtime_checkable
class Reader(Protocol):
    told: Told

    def read(self) -> str:
        """Take in what is new; '' or what could not be understood."""
        ...

    def close(self) -> None: ...


def take(told: Told, line: dict) -> None:
    """Add one probe line; raises ValueError where it is none."""
    asked, in_time = _count(line, "asked"), _count(line, "in_time")
    used = line.get("used") or {}
    if not isinstance(used, dict):
        raise ValueError(f"used is {used!r}, not an amount per resource")
    for name, amount in used.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < 2**53:
            raise ValueError(f"used.{name} is {amount!r}, not an amount")
    if len(told.used.keys() | used.keys()) > MOST_USED:
        raise ValueError(f"used names more than {MOST_USED} resources")
    told.lines += 1
    told.asked += asked
    told.in_time += min(in_time, asked)
    for name, amount in used.items():
        total, lines = told.used.get(name, (0.0, 0))
        told.used[name] = (total + amount * resource(name).scale, lines + 1)


def _count(line: dict, name: str) -> float:
    count = line.get(name)
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < MOST:
        raise ValueError(f"{name} is {count!r}, not a number of operations")
    return float(count)


class LineReader:
    """Follows a file that a program writes to, from where it now ends, and keeps it short.

    The writer appends; a file grown beyond `rotate` is emptied once it has been read, and its end is kept aside. A line
    written in the microseconds between is lost, and so is the beginning of what came by more than MOST_READ at once.
    """

    def __init__(self, path: Path, rotate: int = ROTATE_BYTES):
        self.path, self.rotate, self.told = path, rotate, Told()
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._complained = False

    def read(self) -> str:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._at:
                    self._at, self._rest = 0, b""
                if size > self._at + MOST_READ:  # a flood: what it said last will do
                    self._at, self._rest = size - MOST_READ, b""
                file.seek(self._at)
                got = file.read(MOST_READ)
        except OSError:  # not there yet, or its program put something else there
            return ""
        self._at += len(got)
        *lines, self._rest = (self._rest + got).split(b"\n")
        self._rest = self._rest[-ROTATE_BYTES:]
        if self._at > self.rotate:
            rotate(self.path)
            self._at = 0
        wrong = ""
        for line in lines:
            if line.startswith(b"{"):  # anything else is the program's own affair
                wrong = self._take(line) or wrong
        if wrong and not self._complained:
            self._complained = True
            return wrong
        return ""

    def _take(self, line: bytes) -> str:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # the latter: brackets without end
            return ""  # begins like one and is none
        if "asked" not in found and "in_time" not in found:
            return ""
        try:
            take(self.told, found)
        except (ValueError, RecursionError) as error:
            return f"printed a probe line that cannot be used: {error}"
        return ""

    def close(self) -> None:
        pass


def rotate(path: Path) -> None:
    """Copy the end of a file that somebody appends to aside, if the disk has room, and empty it in place."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - ROTATE_BYTES, 0))
        path.with_name(path.name + ".1").write_bytes(file.read(ROTATE_BYTES))
    os.truncate(path, 0)


# Possessive, so that both take linear time: while a pattern backtracks nobody else in this process can move.
_SERIES = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*+)(?:\s*+\{(.*)\})?\s++(\S++)(?:\s++-?\d++)?\s*+")
_LABEL = re.compile(r'(?<![a-zA-Z0-9_])([a-zA-Z_][a-zA-Z0-9_]*+)\s*+=\s*+"((?:[^"\\]|\\.)*+)"')


def counter(page: str, wanted: str) -> float:
    """Give a Prometheus counter, summed over the series whose labels include the wanted ones; nan: not there."""
    asked = _SERIES.fullmatch(wanted.strip() + " 0")
    if asked is None:
        raise BadInput(f'counter {wanted!r}: write a metric\'s name, for example requests_total{{job="shop"}}.')
    name, labels = asked[1], set(_LABEL.findall(asked[2] or ""))
    found = [
        float(series[3])
        for series in map(_SERIES.fullmatch, page.splitlines())
        if series and series[1] == name and labels <= set(_LABEL.findall(series[2] or ""))
    ]
    return math.fsum(found) if found else math.nan


class PageReader:
    """Asks a metrics page once a second, in a thread of its own: a page that hangs holds up nobody."""

    def __init__(self, probe: Probe, every: float = 1.0):
        if not probe.url.startswith(("http://", "https://")):
            raise BadInput(f"probe url {probe.url!r}: it must begin with http:// or https://.")
        for name in filter(None, (probe.asked, probe.in_time)):
            counter("", name)
        self.probe, self.every, self.told = probe, every, Told()
        self._before: dict[str, float] = {}
        self._moment = -1.0
        self._wrong, self._complained = "", False
        self._lock, self._end = threading.Lock(), threading.Event()
        self._collected = Told()
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # it is a neighbour
        self._thread = threading.Thread(target=self._ask_on, name="metrics page", daemon=True)
        self._thread.start()

    def _ask_on(self) -> None:
        while not self._end.wait(self.every if self._before or self._moment >= 0 else 0.1):
            try:
                page = self._page()
                with self._lock:
                    self._take(page)
            except Exception as error:  # whatever an answer makes Python say: the next one may be better
                self._wrong = f"has a metrics page {self.probe.url} that cannot be used: {error}"

    def _page(self) -> str:
        until, page = time.monotonic() + ANSWER_SECONDS, b""
        with self._open(self.probe.url, timeout=0.5) as answer:
            while more := answer.read1(2**16):  # what there is: a page may come drop by drop, without end
                page += more
                if time.monotonic() > until:
                    raise TimeoutError(f"it was not told in full within {ANSWER_SECONDS:g} s")
                if len(page) > MOST_PAGE:
                    raise ValueError(f"it is longer than {MOST_PAGE} bytes")
        return page.decode(errors="replace")

    def _take(self, page: str) -> None:
        if page.lstrip().startswith("{"):
            line = json.loads(page)
            moment = float(line.get("t", 0))
            if moment > self._moment or moment == 0:
                take(self._collected, line)
                self._moment = moment
            return
        now = {name: counter(page, name) for name in (self.probe.asked, self.probe.in_time)}
        if missing := [name for name, value in now.items() if not math.isfinite(value)]:
            raise ValueError(f"it has no counter {missing[0]!r}")
        if self._before:  # the first look only tells where counting begins
            grown = [now[n] - self._before[n] if now[n] >= self._before[n] else now[n] for n in now]  # or restarted
            take(self._collected, {"asked": grown[0], "in_time": grown[-1]})
        self._before = now

    def read(self) -> str:
        with self._lock:
            self.told = self._collected.copy()
        if self._wrong and not self._complained:
            self._complained = True
            return self._wrong
        return ""

    def close(self) -> None:
        self._end.set()  # its thread ends when the page has answered, or with us: nobody waits for a page
