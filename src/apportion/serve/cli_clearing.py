"""The verbs of clearing: a problem file in, an allocation file out; and how long that takes beside others."""

from __future__ import annotations

import json
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apportion.core.errors import BadInput
from apportion.serve.options import Form, Output, at, named

if TYPE_CHECKING:
    from apportion.core.allocation import Allocation


bench = typer.Typer(help="Measure beside others, in one run.", no_args_is_help=True, rich_markup_mode=None)


class Objective(StrEnum):
    """What clearing maximises."""

    proportional = "proportional"
    welfare = "welfare"
    maxmin = "maxmin"
    leximin = "leximin"
    drf = "drf"
    experience = "experience"


def allocate(
    problem: Annotated[
        Path,
        named(
            "PROBLEM.npz",
            "Made by np.savez: d demand (tasks, resources), C capacity (pools, resources), w weights,"
            " v_indptr v_indices v_data: what each pool is worth to each task, as CSR rows; see docs/clearing.md.",
        ),
    ],
    objective: Annotated[
        Objective | None,
        typer.Option(
            help="What to maximise. proportional (default): nobody starves, twice the weight is twice the say; welfare: the sum;"
            " maxmin: the worst served; leximin: then the next, and so on; drf: dominant shares; experience: the file's curves."
        ),
    ] = None,
    gap: Annotated[
        float | None, typer.Option(help="How far from the optimum will do; 0.001 (default) is 0.1 %.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="How many pass over the tasks of a large market.")] = 1,
    warm: Annotated[
        Path | None,
        at("--warm", help="An earlier --out, for as many pools and resources: where its shares still do none moves, else its prices help."),
    ] = None,
    must_serve: Annotated[
        bool, typer.Option("--must-serve", help="Attention instead of an objective: every task is served in full, v_data are scores.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Of --must-serve, in units of the scores: small chooses, large spreads.")
    ] = None,
    out: Annotated[
        Path | None, at("--out", help="Where the allocation goes: i, j, x, p, and y for max-min; without it nothing is written.")
    ] = None,
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Clear a problem file: shares that fit exactly, prices, and a certified gap.

    Exit 0 done (the gap says how well), 2 bad input, such as floors that cannot fit.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))  # NumPy reads it when it is imported, which is below
    from apportion.clearing import files

    if must_serve:
        if objective or gap is not None or warm or temperature is None:
            raise BadInput("--must-serve goes with --temperature T, and without --objective, --gap and --warm.")
        if not 0 < temperature < math.inf:
            raise BadInput(f"--temperature is {temperature:g}: give a number above 0, in the unit of the scores.")
        allocation, told = files.serve_all(problem, temperature, out=out)
    elif temperature is not None:
        raise BadInput("--temperature goes with --must-serve: the objectives have none.")
    else:
        gap, asked = 1e-3 if gap is None else gap, objective or Objective.proportional
        allocation, told = files.allocate(problem, asked.value, gap, threads=threads, last=warm, out=out)
    if output is Form.json:
        print(json.dumps({name: x if math.isfinite(x) else None for name, x in told.items()}))
    else:
        _show(allocation, told, gap, out)


def _show(allocation: Allocation, told: dict[str, float], gap: float | None, out: Path | None) -> None:
    market, served = allocation.market, allocation.served
    scarce = allocation.price > 0
    above = gap is not None and not told["gap"] <= gap
    lines = {
        "objective": allocation.objective,
        "value": f"{told['value']:.9g}, and no allocation reaches more than {told['bound']:.9g}",
        "gap": f"{told['gap']:.2g}" + (f", ABOVE the {gap:g} that was asked for" if above else ""),
        "served": f"{served.mean():.1%} of demand on average, {served.min():.1%} at least"
        if len(served)
        else "no task",
        "scarce": f"{int(scarce.sum())} of {scarce.size} resources in {len(market.capacity)} pools have a price",
        "solve": f"{told['seconds']:.3g} s in {told['steps']} steps, {told['peak_mb']:.0f} MB at the peak",
        **({"written": str(out)} if out else {}),
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")
    if max(len(market.demand), len(market.capacity)) <= 20:
        print(*repr(allocation).splitlines()[1:], sep="\n")


@bench.callback()
def _bench() -> None:
    """Measure beside others, in one run."""


@bench.command("clearing")
def clearing(
    sizes: Annotated[str, typer.Option(help="S 100 x 10, M 1,000 x 20, L 10,000 x 50, XL 100,000 x 100, 1M x 200.")] = "S,M,L",
    objectives: Annotated[str, typer.Option(help="Of welfare, proportional, maxmin.")] = "welfare,proportional,maxmin",
    gaps: Annotated[str, typer.Option(help="What is asked for; 0.001 is 0.1 %.")] = "0.001",
    seeds: Annotated[str, typer.Option(help="For example 0..2 or 0,4.")] = "0..2",
    peers: Annotated[
        str, typer.Option(help="Of highs-ipm, pdlp, clarabel, scs, proportional-response, greedy; empty: none.")
    ] = "highs-ipm,pdlp,clarabel,scs,proportional-response,greedy",
    contention: Annotated[float, typer.Option(min=0.01, help="What is wanted over what there is.")] = 2.2,
    eligible: Annotated[int, typer.Option(min=1, help="Pools that each task may use.")] = 8,
    slowest: Annotated[float, typer.Option(min=1.0, help="Seconds after which a solve is stopped.")] = 300.0,
    out: Annotated[Path, at("--out", help="Where the row per solve goes.")] = Path("results.parquet"),
    output: Output = Form.table,
) -> None:  # fmt: skip
    """Clear the same instances with ours and with the solvers one would pick: one thread, CPU seconds, certified gaps.

    Instances are made from the seed. A peer that is not installed is named as skipped.
    """
    from apportion.serve.benches import benched

    names = [[x.strip() for x in text.split(",") if x.strip()] for text in (sizes, objectives, peers)]
    benched(
        *names,
        gaps=gaps,
        seeds=seeds,
        contention=contention,
        eligible=eligible,
        slowest=slowest,
        out=out,
        form=output.value,
    )
