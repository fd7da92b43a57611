"""YAML text in; plain values out, and the line on which each of them stands.

A world file is written and mended by hand, so every value remembers its line and how it was spelt. The text is
read in one pass over the parser's events: size, depth and number of values (aliases expanded) are bounded
before anything is built, and no tag can name a Python object.

Plain scalars mean what they mean in JSON: null, true and false, numbers; all else is text. (YAML 1.1 would read an
account called `no` as False and `1:30` as 90.) Keys are always text, and no mapping may hold one twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from apportion.core.errors import BadWorld

MOST_BYTES = 8 * 2**20
MOST_VALUES = 400_000  # a task is about 20 values
MOST_DEPTH = 16
MOST_SHOWN = 60  # characters of a value in a message

Place = tuple[str | int, ...]  # the keys that lead to a value
Problem = tuple[Place, str]  # what is wrong there, and the way out

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what YAML does not allow
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its parser is used


@dataclass(frozen=True)
class Source:
    """A file's values and where they stand."""

    path: str
    value: Any
    line: dict[Place, int]  # of a mapping's entry: the line of its key
    spelt: dict[Place, str] = field(default_factory=dict)  # scalars as they were written

    def at(self, place: Place) -> str:
        """Give file and line of a value, or of what should have held it."""
        return f"{self.path}:{self.number(place)}"

    def number(self, place: Place) -> int:
        """Give that line's number."""
        while place not in self.line and place:
            place = place[:-1]
        return self.line.get(place, 1)

    def shown(self, place: Place) -> str:
        """Give a value as it was written, for a message; nothing if it is not there, or too long to be of help."""
        if place in self.spelt:
            text = self.spelt[place]
            return f"'{text}'" if len(text) <= MOST_SHOWN else f"'{text[: MOST_SHOWN - 3]}...'"
        if place not in self.line:
            return ""
        value = self.value
        for key in place:
            value = value[key]
        short = self._flow(value, place, MOST_SHOWN)
        return f"'{short}'" if len(short) <= MOST_SHOWN else ""

    def _flow(self, value: Any, place: Place, most: int) -> str:
        """Write lists and mappings on one line, as far as there is space for them."""
        if isinstance(value, list):
            inner = [self._flow(v, (*place, k), most // 2) for k, v in enumerate(value[:most])]
            return f"[{', '.join(inner)}]"
        if isinstance(value, dict):
            inner = [f"{k}: {self._flow(v, (*place, k), most // 2)}" for k, v in list(value.items())[:most]]
            return f"{{{', '.join(inner)}}}"
        return self.spelt.get(place, "")


def read(path: str | Path) -> tuple[Source, bytes]:
    """Read one YAML document; raises BadWorld, naming the line, if it is none."""
    raw = _bytes(Path(path))
    if len(raw) > MOST_BYTES:
        raise BadWorld(
            f"{path}: is larger than {MOST_BYTES // 2**20} MiB, which no world file needs. Is it the right file?"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise BadWorld(
            f"{path}:{line}: byte 0x{raw[e.start]:02x} is not UTF-8 text. Save the file in the encoding UTF-8."
        ) from None
    if odd := _NO_TEXT.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise BadWorld(
            f"{path}:{line}: the character U+{ord(odd[0]):04X} is not text. Remove it, or save the file anew."
        )
    return _Reader(str(path), text).source(), raw


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        beside = _world_files(path.parent)
        near = get_close_matches(path.name, beside, 1, 0.5)
        hint = f"Did you mean '{path.parent / near[0]}'?" if near else "Name an existing world file."
        raise BadWorld(f"{path}: there is no such file. {hint}") from None
    except IsADirectoryError:
        inside = _world_files(path)
        hint = f"Name a file in it, for example '{path / inside[0]}'." if inside else "Name a world file."
        raise BadWorld(f"{path}: is a directory, not a world file. {hint}") from None
    except OSError as e:
        raise BadWorld(f"{path}: cannot be read ({e.strerror}).") from None


def _world_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))


class _Reader:
    """One pass over a document's events."""

    def __init__(self, path: str, text: str):
        self.path = path
        self.events = self._parse(text)
        self.order: list[Place] = []  # places as they were met: an anchor is a stretch of them
        self.line: dict[Place, int] = {}
        self.spelt: dict[Place, str] = {}
        self.anchors: dict[str, tuple[Any, Place, int, int] | None] = {}  # None: still open

    def source(self) -> Source:
        event = next(self.events)
        while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
            event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise BadWorld(f"{self.path}: is empty. `apportion schema` tells what a world holds; see examples/.")
        value = self._node(event, ())
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise self._wrong(event, "a second document begins here. A world is one document: remove the '---'.")
        return Source(self.path, value, self.line, self.spelt)

    def _parse(self, text: str) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as e:
            raise self._no_yaml(e, text.splitlines(keepends=True)) from None
        except yaml.YAMLError as e:
            raise BadWorld(f"{self.path}: this is not YAML: {' '.join(str(e).split())}.") from None

    def _no_yaml(self, error: yaml.MarkedYAMLError, lines: list[str]) -> BadWorld:
        why, way = error.problem or error.context, "Check indentation, colons, quotes and brackets near it."
        mark = error.problem_mark or error.context_mark
        if error.context_mark and error.context == "while scanning a simple key":  # its problem is noticed later
            mark, way = error.context_mark, "Write 'key: value', with a space after the colon."
        line = mark.line if mark else 0
        here = "".join(lines[line : line + 1])
        if "\t" in here[: len(here) - len(here.lstrip())]:
            why, way = "a tab stands before its text", "YAML takes spaces."
        return BadWorld(f"{self.path}:{line + 1}: this is not YAML: {why}. {way}")

    def _node(self, event: Any, place: Place) -> Any:
        """Build the value that begins with this event."""
        self._note(place, event)
        if isinstance(event, yaml.AliasEvent):
            return self._repeat(event, place)
        if getattr(event, "tag", None) not in (None, "!"):
            raise self._wrong(event, f"the tag '{event.tag}' is not used in world files. Write the plain value.")
        if event.anchor:
            self.anchors[event.anchor] = None
        begin = len(self.order)
        if isinstance(event, yaml.ScalarEvent):
            self.spelt[place] = event.value
            value = plain(event.value) if event.implicit[0] else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(place)
        else:
            value = self._mapping(place)
        if event.anchor:
            self.anchors[event.anchor] = (value, place, begin, len(self.order))
        return value

    def _sequence(self, place: Place) -> list:
        out: list = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            out.append(self._node(event, (*place, len(out))))
        return out

    def _mapping(self, place: Place) -> dict:
        out: dict = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self._wrong(key, "a key must be plain text.")
            here = (*place, key.value)
            if key.value in out:
                first = self.line[here]
                raise self._wrong(key, f"{dotted(here)} stands here again; it stood on line {first}. Keep one of them.")
            out[key.value] = self._node(next(self.events), here)
            self.line[here] = key.start_mark.line + 1
        return out

    def _repeat(self, event: Any, place: Place) -> Any:
        """Give what an anchor holds; its parts are errors of their own line, wherever they are used."""
        if event.anchor not in self.anchors:
            raise self._wrong(event, f"'*{event.anchor}' repeats nothing: no '&{event.anchor}' stands above it.")
        held = self.anchors[event.anchor]
        if held is None:
            raise self._wrong(event, f"'*{event.anchor}' stands inside '&{event.anchor}': a value cannot hold itself.")
        value, home, begin, end = held
        inside = self.order[begin:end]
        deepest = max((len(inner) for inner in inside), default=len(home)) - len(home)
        self._bound(event, len(self.order) + len(inside), len(place) + deepest)
        for inner in inside:
            there = (*place, *inner[len(home) :])
            self.order.append(there)
            self.line[there] = self.line[inner]
            if inner in self.spelt:
                self.spelt[there] = self.spelt[inner]
        if home in self.spelt:
            self.spelt[place] = self.spelt[home]
        return value

    def _note(self, place: Place, event: Any) -> None:
        self._bound(event, len(self.order), len(place))
        self.order.append(place)
        self.line[place] = event.start_mark.line + 1

    def _bound(self, event: Any, values: int, depth: int) -> None:
        if values >= MOST_VALUES:
            raise self._wrong(event, f"there are more than {MOST_VALUES} values (aliases expanded). Split the world.")
        if depth > MOST_DEPTH:
            raise self._wrong(event, f"values are nested more than {MOST_DEPTH} deep here. No world needs that.")

    def _wrong(self, event: Any, why: str) -> BadWorld:
        return BadWorld(f"{self.path}:{event.start_mark.line + 1}: {one_line(why)}")


def dotted(place: Place) -> str:
    """Write a place as people name it: tasks.arena.demand.cpu, events[0].at."""
    out = ""
    for key in place:
        out += f"[{key}]" if isinstance(key, int) else f".{key}" if out else key
    return out


def one_line(text: str) -> str:
    """Write line ends, and what would steer a terminal, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(text: str) -> Any:
    """Read a scalar that stands without quotes."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text
