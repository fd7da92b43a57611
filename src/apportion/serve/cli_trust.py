"""The verbs of trust: receipts, what is in a log, test vectors, witnesses."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apportion.core.errors import BadInput, Forked, Refused
from apportion.serve.options import Form, Out, Output, at, named

if TYPE_CHECKING:
    from apportion.ledger.checkpoint import Head
    from apportion.ledger.log import Log

    Context = typer.Context
else:
    Context = typer.Context.__base__  # what Typer hands over is of this class; the tests check types as they run

proof = typer.Typer(help="Make the receipt of one task in one round, or check one.", rich_markup_mode=None)
ledger = typer.Typer(help="Look into a log, or copy it for others.", no_args_is_help=True, rich_markup_mode=None)
witness = typer.Typer(help="Cosign heads of logs, or have them cosigned.", no_args_is_help=True, rich_markup_mode=None)
Key = Annotated[str, typer.Option("--key", help="The log's verifier key, or a file that holds it.")]


def _log(out: Path) -> Log:
    from apportion.serve.folder import opened

    return opened(out)


def _head(head: Head) -> dict[str, object]:
    return {"origin": head.origin, "size": head.size, "root": head.root.hex(), "note": head.note}


def kept(proof: str) -> str:
    """Keep a proof of a fork in the present folder, beside those that lie there; say where, or why not."""
    for k in range(1000):
        file = Path(f"fork-proof{f'-{k}' * (k > 0)}.json")
        try:
            if not file.exists() or file.read_text() != proof:
                with open(file, "x") as out:
                    out.write(proof)
            return f"the proof of the fork is in {file}"
        except (FileExistsError, UnicodeError):
            continue
        except OSError as error:
            return f"{file}: {error.strerror}: the proof of the fork is not kept. Run this again in a folder that can be written."
    return "the proof of the fork is not kept: a thousand lie here."


# --- receipts ---------------------------------------------------------------------------------------------------------


@proof.callback(invoke_without_command=True)
def _receipt(
    context: Context,
    number: Annotated[int | None, typer.Option("--round", min=0, help="Which round, from 0.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="The task's name.")] = None,
    out: Out = Path("out"),
) -> None:
    """Print the receipt of one task in one round: its rows in the log's tables, and the proof that they are there.

    Whoever holds the log's verifier key can check it without the log: apportion proof check FILE --key KEY.
    """
    if context.invoked_subcommand:
        return
    if number is None or task is None:
        raise typer.BadParameter("a receipt is of one task in one round: --round N --task NAME.")
    from apportion.ledger.proof import receipt

    with _log(out) as log:
        print(json.dumps(receipt(log, number, task), indent=2, ensure_ascii=False))


@proof.command("check")
def check(
    file: Annotated[Path, named("FILE", "A receipt, or a proof of a fork.")], key: Key, output: Output = Form.table
) -> None:
    """Check a receipt, or a proof of a fork, with nothing but the log's verifier key.

    Exit 0 the receipt holds, 1 it does not, 2 bad input, or it is a fork's proof and holds: no receipt of that log is worth
    anything.
    """
    from apportion.core.files import read_whole
    from apportion.ledger.note import read_verifier
    from apportion.ledger.proof import FORK, check_fork, check_receipt

    verifier = read_verifier(key)
    try:
        text = read_whole(file)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}. Give a file that `apportion proof` wrote.") from None
    try:
        if forked := f'"{FORK}"'.encode() in text:
            small, large = check_fork(text, verifier)
        else:
            head, rows = check_receipt(text, verifier)
    except Refused as error:
        if output is Form.json:
            print(json.dumps({"accepted": False, "why": str(error), "exit_code": error.exit_code}))
        raise
    if forked:
        if output is Form.json:
            print(json.dumps({"accepted": False, "forked": True, "heads": [_head(small), _head(large)]}))
        raise Forked(
            f"a fork is proven: {verifier.name} signed heads of {small.size} and {large.size} that contradict."
        )
    if output is Form.json:
        told = [{"type": kind, "table": table, "row": row} for kind, table, row in rows]
        print(json.dumps({"accepted": True, "head": _head(head), "rows": told}, ensure_ascii=False))
        return
    print(f"the receipt holds: {len(rows)} rows, in the log {head.origin} as it was at {head.size} entries")
    for kind, table, row in rows:
        shown = ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in row.items())
        print(f"  {kind}.{table}: {shown}")


# --- the log ----------------------------------------------------------------------------------------------------------


@ledger.command()
def head(out: Out = Path("out"), output: Output = Form.table) -> None:
    """Print the last signed head, with the cosignatures on it: a note that others can keep."""
    with _log(out) as log, log.snapshot():
        found = log.head()
        if found is None:
            raise BadInput(f"{log.path}: no head is signed yet. Play a round first.")
        lines = log.cosignatures(found.size)
    if output is Form.json:
        print(json.dumps({**_head(found), "cosignatures": lines}, ensure_ascii=False))
    else:
        print(found.note, *lines, sep="", end="")


@ledger.command()
def export(
    folder: Annotated[Path, named("FOLDER", "Where the tiles go.")],
    out: Out = Path("out"),
    cosigned: Annotated[
        bool, typer.Option("--cosigned", help="As of the newest head that a witness cosigned, not of the last.")
    ] = False,
    output: Output = Form.table,
) -> None:
    """Copy the log as static files that anyone can serve and verify (c2sp.org/tlog-tiles); run again, it adds what is new."""
    from apportion.ledger.tiles import export as write

    with _log(out) as log:
        try:
            head = write(log, folder, cosigned=cosigned)
        except OSError as error:
            raise BadInput(
                f"{error.filename or folder}: {error.strerror}. Choose a folder that can be written."
            ) from None
        key = log.verifier.text
    if output is Form.json:
        print(json.dumps({"folder": str(folder), "key": key, **_head(head)}))
    else:
        print(f"{folder} holds {head.size} entries. Whoever has it can check it: apportion verify {folder} --key {key}")


@ledger.command()
def blob(
    digest: Annotated[str, typer.Argument(metavar="SHA256", help="As an entry names it.")], out: Out = Path("out")
) -> None:
    """Print one table of the log, byte by byte, by its SHA-256; its bytes are checked."""
    with _log(out) as log:
        data = log.blob(digest.lower())
    sys.stdout.buffer.write(data)


@ledger.command()
def sql(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="For example: SELECT task, paid FROM charges")],
    out: Out = Path("out"),
    output: Output = Form.table,
) -> None:
    """Ask the log in SQL (SQLite's). Tables: entries, and each that docs/format.md names; nothing can be changed."""
    from apportion.ledger.sql import query

    with _log(out) as log:
        columns, rows = query(log, question)
    if output is Form.json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if x is None else str(x)) for x in row))
    Console().print(table)


# --- others' vectors --------------------------------------------------------------------------------------------------


def vectors(
    file: Annotated[Path, named("FILE.json", "Test vectors; the kind is told by the file's name.")],
    output: Output = Form.table,
) -> None:
    """Check one file of test vectors of the formats that the log uses; exit 1 if any comes out wrong."""
    from apportion.ledger.vectors import check_file

    ok, wrong = check_file(file)
    if output is Form.json:
        print(json.dumps({"ok": ok, "wrong": wrong}, ensure_ascii=False))
    else:
        print(f"{ok} ok, {len(wrong)} wrong", *wrong, sep="\n")
    if wrong:
        raise typer.Exit(1)


# --- witnesses --------------------------------------------------------------------------------------------------------


@witness.command()
def serve(
    log: Annotated[list[str], typer.Option("--log", help="A log's verifier key or a file that holds it; repeatable.")],
    key: Annotated[Path, at("--key", help="The witness's signer key; made, if --name is given, where there is none.")] = Path("witness.key"),
    name: Annotated[str | None, typer.Option(help="The witness's name, such as witness.example.org.")] = None,
    store: Annotated[Path, at("--store", help="What the witness remembers; lost, it must not sign again.")] = Path("witness.db"),
    host: Annotated[str, typer.Option(help="Other than loopback, anyone may ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8787,
) -> None:  # fmt: skip
    """Be a witness (c2sp.org/tlog-witness): cosign a log's heads as long as each is a prefix of the next.

    Requests need no token: a witness takes only what the log signed.
    """
    from apportion.ledger.note import read_verifier
    from apportion.serve.witness import key_of, serve

    serve(key_of(key, name, store), [read_verifier(text) for text in log], store, host, port)


@witness.command()
def add(
    out: Out = Path("out"),
    policy: Annotated[
        Path | None, at("--policy", help="Witnesses with their URLs, and the quorum that must be reached.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="One witness, without a policy: where it listens.")] = None,
    key: Annotated[str | None, typer.Option(help="One witness, without a policy: its verifier key, or a file.")] = None,
    output: Output = Form.table,
) -> None:
    """Have the log's last head cosigned (add-checkpoint), and keep the cosignatures in the log, also while its
    world runs.

    Exit 0 cosigned as asked, 1 not, 2 bad input.
    """
    from apportion.serve.witness import cosigned

    told = cosigned(out, policy, url, key)
    if output is Form.json:
        print(json.dumps(asdict(told)))
    else:
        print(*(f"{where}: {what}" for where, what in told.witnesses.items()), told.quorum, sep="\n")
    if not told.reached:
        raise typer.Exit(1)
