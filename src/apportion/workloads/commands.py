"""What a command of the marketplace may say: fields read with their bounds, and the two ways in which it is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any

Fields = dict[str, Any]


def signature(key: str, command: Fields) -> str:
    """Sign what makes a command: all of it but `id`, `due` and the tag itself, as JSON with its names in order."""
    said = {name: value for name, value in command.items() if name not in ("id", "due", "tag")}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.encode("utf-8", "surrogatepass"), text.encode(), hashlib.sha256).hexdigest()


class Refusal(ValueError):
    """A command that cannot be taken; nothing has changed."""


class Uncovered(Refusal):
    """A command that its trader has not enough at hand for."""


def whole(command: Fields, name: str, least: int, most: int, otherwise: int | None = None) -> int:
    """Give a whole number out of a command."""
    value = command.get(name, otherwise)
    if type(value) is not int or not least <= value <= most:
        raise Refusal(f"{name} is {value!r:.50}: a whole number from {least} to {most}.")
    return value


def word(command: Fields, name: str, longest: int = 200) -> str:
    """Give a name out of a command."""
    value = command.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise Refusal(f"{name} is {value!r:.50}: a word of 1 to {longest} characters.")
    return value


def side(command: Fields) -> bool:
    """Tell whether a command buys."""
    if command.get("side") not in ("buy", "sell"):
        raise Refusal(f"side is {command.get('side')!r:.50}: buy or sell.")
    return command["side"] == "buy"


def some(names: Iterable[object]) -> str:
    """Name a few of many."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "") if listed else "none"
