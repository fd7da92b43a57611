"""What every part of a world file is made of: names, numbers as they are written, and entries that refuse unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from apportion.worlds.amounts import wrong


def _names(written: Any) -> Any:
    if isinstance(written, list) and len(set(map(str, written))) < len(written):
        twice = next(str(name) for name in written if written.count(name) > 1)
        raise wrong(f"it names {twice!r} twice. Name it once.")
    return written


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
MOST_CREDITS = 1e12  # in a world; a 64-bit count of micro-credits has room for four times as many
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_names)]


class Entry(BaseModel):
    """Frozen; a key that no field claims is an error, not a surprise later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
