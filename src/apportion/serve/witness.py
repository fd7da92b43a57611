"""A witness over HTTP, and asking witnesses (c2sp.org/tlog-witness).

POST /add-checkpoint     old size, consistency proof, signed checkpoint -> 200 and a cosignature, or why not
GET /                    who this is: name and verifier key
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from apportion.audit.quorum import WitnessPolicy
from apportion.core.errors import BadInput, Refused
from apportion.ledger.note import COSIGNATURE, Signer, Verifier, parse_signature, read_key, read_verifier, write_key
from apportion.ledger.witness import Witness
from apportion.ledger.witness_client import collect
from apportion.serve.folder import opened

MOST = 1 << 16  # bytes of a request: 63 hashes and a note of a hundred signatures are a fifth of it


def application(witness: Witness, key: Verifier) -> FastAPI:
    """Give the witness as an application."""
    app = FastAPI(title="apportion witness", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def who() -> dict[str, str]:
        return {"name": key.name, "key": key.text}

    @app.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST:
                return Response(f"a request has at most {MOST} bytes\n", 413, media_type="text/plain")
        status, told = await run_in_threadpool(witness.add_checkpoint, body)  # it waits for the disk
        return Response(told, status, media_type="text/x.tlog.size" if status == 409 else "text/plain")

    return app


def serve(key: Signer, logs: list[Verifier], store: Path, host: str, port: int) -> None:
    """Listen until stopped; the address and the key are printed first."""
    witness = Witness(key, logs, lambda: int(time.time()), store)
    try:
        try:
            sock = socket.create_server((host, port))
        except OSError as error:
            raise BadInput(f"{host}:{port}: {error.strerror or error}. Choose another --port or --host.") from None
        with sock:
            where = f"http://{host}:{sock.getsockname()[1]}"
            print(f"{key.name} listens at {where} for {', '.join(log.name for log in logs)}")
            print(f"its verifier key: {key.verifier.text}", flush=True)
            config = uvicorn.Config(application(witness, key.verifier), log_level="warning", access_log=False)
            uvicorn.Server(config).run(sockets=[sock])
    finally:
        witness.close()


def key_of(file: Path, name: str | None, store: Path) -> Signer:
    """Read a witness's key; make it, and an empty store, where there is none and a name is given."""
    if not file.exists():
        if name is None:
            raise BadInput(f"{file}: there is no key here. Give --name to make one, or --key to use another.")
        new = Signer.generate(name, COSIGNATURE)
        try:
            store.touch()  # first: a key without a store has perhaps signed what it forgot
        except OSError as error:
            raise BadInput(f"--store {store}: {error.strerror}. Choose a folder that can be written.") from None
        write_key(file, new)
    key = read_key(file)
    if name not in (None, key.name):
        raise BadInput(f"{file} is the key of {key.name!r}, not of {name!r}. Give another --key to make a new one.")
    if key.kind == COSIGNATURE and not store.exists():
        raise BadInput(
            f"{store} is missing: it holds the heads that {key.name!r} cosigned, and without it a rewritten log would be cosigned. "
            f"Put it back. Only if this key never cosigned anything, make an empty one: touch {store}"
        )
    return key


@dataclass(frozen=True, slots=True)
class Cosigned:
    """What came of asking."""

    size: int  # of the head
    witnesses: dict[str, str]  # by URL: cosigned, or why not
    reached: bool
    quorum: str  # in words


def stand_behind(out: Path, policy: Path) -> None:
    """Refuse to go on with a run unless its witnesses, asked now, cosign its last head: one that saw more does not."""
    told = cosigned(out, policy, None, None, now=True)
    if not told.reached:
        said = "; ".join(f"{where}: {what}" for where, what in told.witnesses.items())
        raise Refused(
            f"the witnesses of {policy} do not stand behind the last head of {out} ({said}). Nothing was signed. If an older copy "
            "was put back, bring back the newest one; if a witness was not reached, try again."
        )


def cosigned(out: Path, policy: Path | None, url: str | None, key: str | None, *, now: bool = False) -> Cosigned:
    """Ask the witnesses of a policy, or one by its URL and key, for the last head of the log in a run's folder.

    now: who cosigned it earlier and does not answer counts for nothing.
    """
    if policy is not None and not (url or key):
        asked = WitnessPolicy.read(policy)
        urls = {where: asked.witnesses[name] for name, where in asked.urls.items()}
        if not urls:
            raise BadInput(f"{policy}: no witness there has a URL. Write: witness NAME VKEY URL")
    elif policy is None and url and key:
        verifier = read_verifier(key)
        if verifier.kind != COSIGNATURE:
            raise BadInput(f"--key {key}: it is the key of a log; a witness prints its own when it starts.")
        asked = WitnessPolicy({verifier.name: verifier}, {verifier.name: url}, {}, verifier.name)
        urls = {url: verifier}
    else:
        raise BadInput("name the witnesses: --policy FILE, or --url URL and --key VKEY for one.")
    with opened(out) as log:
        head = log.head()  # a world that runs meanwhile goes on from it
        if head is None:
            raise BadInput(f"{log.path}: no head is signed yet. Play a round first.")
        told = collect(log, urls, head=head)
        lines = log.cosignatures(head.size)
        if now:
            stand = {witness.name for where, witness in urls.items() if told[where] == "cosigned"}
            lines = [line for line in lines if parse_signature(line).name in stand]
        try:
            return Cosigned(head.size, told, True, asked.check(head, lines))
        except Refused as error:
            return Cosigned(head.size, told, False, str(error))
