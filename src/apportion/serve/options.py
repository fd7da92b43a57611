"""What the verbs of the command line have in common: the form of what is printed, and paths."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Form(StrEnum):
    """How what is printed looks."""

    table = "table"
    json = "json"


def path(text: str | Path) -> Path:
    """Read a path from the command line."""
    if not str(text).strip():  # pathlib would take it for the present folder
        raise typer.BadParameter(f"{str(text)!r} names no file or folder.")
    return Path(text)


def at(*names: str, help: str) -> Any:
    """Give an option that takes a path."""
    return typer.Option(*names, parser=path, metavar="PATH", help=help)


def named(what: str, help: str) -> Any:
    """Give an argument that is a path."""
    return typer.Argument(parser=path, metavar=what, help=help)


Output = Annotated[Form, typer.Option("--output", "-o", help="The form of what is printed.")]
Out = Annotated[Path, at("--out", help="The folder of the run: its log, keys, history and report.")]
