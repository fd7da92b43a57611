"""The command line. Each verb imports what it needs when it is called: `verify` must not wait for a solver."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from apportion import __version__
from apportion.core.errors import ApportionError, BadInput, Forked, Refused
from apportion.serve import cli_clearing, cli_econ, cli_trust
from apportion.serve.options import Form, Out, Output, at, path
from apportion.serve.output import mute

app = typer.Typer(
    name="apportion",
    help="Share a live virtual world's machines among the tasks that want them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class EngineName(StrEnum):
    """Where a world runs."""

    local = "local"  # real programs on this machine
    sim = "sim"  # virtual time


Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="How many rounds to play; default: the world's.")]


def main() -> None:
    """Run the command line: an error of ours is one line on standard error, with its exit code."""
    verb = next(iter(sys.argv[1:]), "-")
    unsaid = 3 if verb == "verify" else 1  # of verify 1 and 2 are verdicts: refused, forked
    try:
        code = app(standalone_mode=False)  # typer gives the code of Exit and of Ctrl-C back instead of raising it
        sys.stdout.flush()  # now, where a failure can be told: not every Typer does it
    except ApportionError as error:
        _fail(f"apportion: {'refused: ' if isinstance(error, Refused) else ''}{error}", error.exit_code)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:
        mute(sys.stdout)
        if isinstance(error, BrokenPipeError):  # whoever read our output went away
            raise SystemExit(unsaid) from None
        _fail(f"apportion: {error.filename or 'writing or printing'}: {error.strerror}.", unsaid)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        told = error.format_message().rstrip(".?")  # type: ignore[attr-defined]
        known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
        verb = f"{verb} " if verb in known | {group.name for group in app.registered_groups} else ""
        _fail(
            f"apportion: {told}{'?' if 'Did you mean' in told else '.'} See: apportion {verb}--help",
            3 if unsaid == 3 else 2,
        )
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
    raise SystemExit(code) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"apportion {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Out = Path("out"), engine: EngineName = EngineName.local, rounds: Rounds = None, output: Output = Form.table
) -> None:
    """Run a launch day on this machine: real programs, about a minute."""
    from apportion.serve.build import Choice
    from apportion.serve.up import launch_day
    from apportion.serve.up import up as run

    run(launch_day(), out, Choice(engine=engine.value, rounds=rounds, fresh=True), output.value)


@app.command()
def up(
    world: Annotated[Path, typer.Argument(parser=path, metavar="WORLD", help="The world file.")],
    engine: EngineName = EngineName.local,
    rounds: Rounds = None,
    out: Out = Path("out"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, after a stop or a crash.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an earlier run in --out aside and begin anew.")] = False,
    advise: Annotated[
        bool, typer.Option("--advise", help="Price and measure, enforce nothing: the safe way in.")
    ] = False,
    policy: Annotated[str | None, typer.Option(help="Instead of the world's policy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**53 - 1, help="Instead of the world's seed.")] = None,
    witnesses: Annotated[
        Path | None,
        at(
            "--witnesses",
            help="With --resume: ask these (a policy file) first, and sign on only where they stand behind it.",
        ),
    ] = None,
    output: Output = Form.table,
) -> None:
    """Run a world: every round priced, cleared, enforced, measured, charged and logged.

    Exit 0 done (also Ctrl-C where no --rounds were asked for), 1 what is printed could not be, 2 bad input, 130 stopped
    before its --rounds were played.
    """
    from apportion.serve.build import Choice
    from apportion.serve.up import up as run

    if witnesses is not None:
        from apportion.serve.witness import stand_behind

        if not resume:
            raise BadInput("--witnesses goes with --resume: a run that begins has no head that anyone could have seen.")
        stand_behind(out, witnesses)
    choice = Choice(engine.value, policy, seed, rounds, advise=advise, resume=resume, fresh=fresh)
    run(world, out, choice, output.value)


@app.command()
def explain(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    out: Out = Path("out"),
    number: Annotated[
        int | None,
        typer.Option(
            "--round", min=0, help="Which round, from 0; default: the last in which it had to bid for something scarce."
        ),
    ] = None,
    output: Output = Form.table,
) -> None:
    """Say in one sentence why a task got what it got, from the log alone."""
    from apportion.serve.explain import explain as why
    from apportion.serve.folder import Folder

    with Folder(out).read() as log:
        found = why(log, task, number)
    if output is Form.json:
        told = {
            "round": found.round,
            "task": task,
            "text": found.text,
            "chosen": found.chosen,
            "aborted": found.aborted,
        }
        print(json.dumps(told))
    else:
        print("\n".join(filter(None, (found.text, found.chosen))))


@app.command()
def compare(
    worlds: Annotated[list[Path], typer.Argument(parser=path, metavar="WORLD...", help="World files.")],
    policies: Annotated[str, typer.Option(help="Names, separated by commas.")] = "static,equal,softmax,market",
    engine: Annotated[
        EngineName, typer.Option(help="Only sim: the same world must be played again and again.")
    ] = EngineName.sim,
    seeds: Annotated[str, typer.Option(help="For example 1..5 or 1,4,7.")] = "1..5",
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds each run has.")] = 200,
    out: Annotated[Path, at("--out", help="Where the row per round goes.")] = Path("results.parquet"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Play again what --out holds already.")] = False,
    output: Output = Form.table,
) -> None:
    """Play the same worlds under several policies and say which one serves them best."""
    from apportion.serve.studies import compared

    compared(worlds, policies, engine.value, seeds, rounds, out, fresh=fresh, form=output.value)


@app.command()
def verify(
    log: Annotated[Path, typer.Argument(parser=path, metavar="LOG", help="The log: a ledger.db or a folder of tiles.")],
    key: Annotated[str, typer.Option("--key", help="The operator's verifier key, or a file that holds it.")],
    level: Annotated[
        int, typer.Option(min=0, max=3, help="0 hashes and signatures, 1 append-only, 2 economics, 3 the model.")
    ] = 2,
    remember: Annotated[
        Path | None, at("--remember", help="A file with the last head you saw; checked, then written anew.")
    ] = None,
    policy: Annotated[Path | None, at("--policy", help="A file that says which witnesses must have signed.")] = None,
    output: Output = Form.table,
) -> None:
    """Re-do a log's arithmetic: hashes, signatures, feasibility, charges, balances, gaps. Trusts nothing.

    Exit 0 accepted, 1 refused, 2 a fork is proven, 3 could not check.
    """
    from apportion.audit import verify as check

    try:
        verdict = check(log, key, level, remember, policy)
    except ApportionError as error:
        if output is Form.json:
            print(json.dumps({"accepted": False, "why": str(error), "exit_code": error.exit_code}))
        if isinstance(error, Forked) and error.proof:
            print(f"apportion: {cli_trust.kept(error.proof)}", file=sys.stderr)
        raise
    print(json.dumps(verdict.as_dict()) if output is Form.json else str(verdict))
    if verdict.models:
        raise typer.Exit(3)  # a model was to be replayed, and nothing here can


@app.command()
def schema(out: Annotated[Path | None, at("--out", help="A file; default: print it.")] = None) -> None:
    """Give the JSON Schema of world files, for editors."""
    from apportion.worlds.world import World

    text = json.dumps(World.schema(), indent=2, ensure_ascii=False)
    if out is None:
        print(text)
    else:
        try:
            out.write_text(text + "\n")
        except OSError as error:
            raise BadInput(f"--out {out}: {error.strerror}. Choose a file that can be written.") from None
        print(f"wrote {out}: name it in your editor's YAML settings")


@app.command()
def release(out: Out = Path("out"), output: Output = Form.table) -> None:
    """Lift every limit now. Programs run on unthrottled; a running world goes on measuring, and enforces nothing."""
    from apportion.execution.guardian import release as lift

    refused = lift(out)
    print(json.dumps({"refused": refused}) if output is Form.json else "\n".join(refused) or "every limit is lifted")
    if refused:
        raise typer.Exit(1)


@app.command()
def doctor(
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove control groups that dead runs of ours left behind.")
    ] = False,
    output: Output = Form.table,
) -> None:
    """Print what this machine offers: cores, memory, enforcers and why others are not, versions."""
    from apportion.serve.doctor import doctor as report

    report(clean, output.value)


app.command("allocate")(cli_clearing.allocate)
app.command("vectors")(cli_trust.vectors)
app.add_typer(cli_clearing.bench, name="bench")
app.add_typer(cli_econ.econ, name="econ")
app.add_typer(cli_trust.proof, name="proof")
app.add_typer(cli_trust.ledger, name="ledger")
app.add_typer(cli_trust.witness, name="witness")
