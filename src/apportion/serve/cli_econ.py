"""The verbs of the economy: run one, vary it, attack it, compare mechanisms, check their properties."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from apportion.serve.options import Form, Output, at, named

econ = typer.Typer(
    help="Simulate an economy of agents: prices, fairness, what lies gain.", no_args_is_help=True, rich_markup_mode=None
)

Agents = Annotated[int, typer.Option(min=1, max=100_000, help="How many agents take part.")]
Rounds = Annotated[int, typer.Option(min=1, max=10_000_000, help="How many rounds each run has.")]
Seeds = Annotated[str, typer.Option(help="For example 0..4 or 1,4,7.")]
File = Annotated[Path | None, at("--credits", help="A credits file; default: that of examples/economy/credits.yaml.")]
Page = Annotated[Path | None, at("--out", help="A folder for report.html; default: none is written.")]
MECHANISMS = "market,drf,maxmin,karma,static"


class Attack(StrEnum):
    """How an agent may deviate."""

    misreport = "misreport"
    sybil = "sybil"
    hoard = "hoard"


@econ.callback()
def _econ() -> None:
    """Simulate an economy of agents: prices, fairness, what lies gain."""


@econ.command("run")
def run(
    credits: Annotated[Path, named("CREDITS.yaml", "The credits file; see docs/economy.md.")],
    rounds: Rounds = 5000,
    agents: Agents = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="What chance is drawn from.")] = 0,
    mechanism: Annotated[str | None, typer.Option(help=f"Of {MECHANISMS}; default: the file's.")] = None,
    out: Annotated[Path, at("--out", help="A folder for rounds.parquet, agents.parquet and report.html.")] = Path("econ"),
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Play an economy: every round asked, bid, cleared with a certificate, billed and remembered.

    Exit 0 done, 2 bad input, 130 stopped by Ctrl-C: the rounds that were played are written.
    """
    from apportion.serve.econ import played

    if not played(credits, agents, rounds, seed, mechanism, out, output.value):
        raise typer.Exit(130)


@econ.command("sweep")
def sweep(
    assignment: Annotated[str, typer.Argument(metavar="KEY=a..b", help="A number of the credits file, for example half_life=10..300.")],
    credits: File = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="How many values, evenly apart; in their logarithm where b >= 8 a.")] = 5,
    rounds: Rounds = 400,
    agents: Agents = 50,
    seeds: Seeds = "0..4",
    out: Page = None,
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Play the same agents with one number at several values, paired by seed."""
    from apportion.serve.econ import swept

    swept(assignment, credits, steps, agents, rounds, seeds, out, output.value)


@econ.command("attack")
def attack(
    what: Annotated[Attack, typer.Argument(help="What one agent of each honest class does.")],
    k: Annotated[int, typer.Option("--k", min=1, max=100_000, help="misreport: lies drawn; sybil: identities; hoard: rounds, or times what it wants.")] = 10,
    credits: File = None,
    rounds: Rounds = 400,
    agents: Agents = 50,
    seeds: Seeds = "0..4",
    out: Page = None,
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Let one agent deviate and tell what it gains, in useful share and in credits, with intervals paired by seed."""
    from apportion.serve.econ import attacked

    attacked(what.value, credits, k, agents, rounds, seeds, out, output.value)


@econ.command("compare")
def compare(
    mechanisms: Annotated[str, typer.Option(help="Names, separated by commas; differences are from the first.")] = MECHANISMS,
    credits: File = None,
    rounds: Rounds = 400,
    agents: Agents = 50,
    seeds: Seeds = "0..4",
    out: Page = None,
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Play the same agents under several mechanisms, paired by seed."""
    from apportion.serve.econ import compared

    compared(credits, mechanisms, agents, rounds, seeds, out, output.value)


@econ.command("properties")
def properties(
    mechanisms: Annotated[str, typer.Option(help="Names, separated by commas.")] = MECHANISMS,
    credits: File = None,
    rounds: Rounds = 60,
    agents: Agents = 20,
    seeds: Seeds = "0..4",
    output: Output = Form.table,
) -> None:
    """Measure every property of every mechanism beside its threshold: the table of docs/economy.md."""
    from apportion.serve.econ import checked

    checked(credits, mechanisms, agents, rounds, seeds, output.value)
