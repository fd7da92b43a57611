"""Witnesses cosign what grows and nothing else; whoever asks them keeps what they sign, whatever some of them answer."""

from __future__ import annotations

import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_log import KEY, genesis, long_log

from apportion.core.errors import BadInput, Refused
from apportion.ledger import records
from apportion.ledger.checkpoint import open_head
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Signer, parse_signature
from apportion.ledger.witness import Witness, request
from apportion.ledger.witness_client import collect


def test_a_witness_cosigns_what_grows_and_remembers_it(tmp_path: Path):
    key = Signer.generate("witness.example", COSIGNATURE)
    path = long_log(tmp_path / "ledger.db", 3)
    with Log.open(path) as log:
        first = log.head().note
    long_log(path, 8, start=3)
    with Log.open(path) as log:
        second, growth = log.head().note, log.prove_consistency(3)
    with Log.create(tmp_path / "fork.db", KEY) as other:
        forked = other.append([genesis()] * 8).note

    def witness() -> Witness:
        return Witness(key, [KEY.verifier], lambda: 1_700_000_000, tmp_path / "witness.db")

    seen = witness()
    status, line = seen.add_checkpoint(request(0, (), first))
    assert (status, parse_signature(line).time) == (200, 1_700_000_000)
    assert len(open_head(first + line, KEY.verifier, [key.verifier])[1]) == 2
    seen.close()
    seen = witness()  # starts again, and still knows
    assert seen.add_checkpoint(request(0, (), first)) == (409, "3\n")
    assert seen.add_checkpoint(request(3, growth[1:], second))[0] == 422
    assert seen.add_checkpoint(request(3, growth, second))[0] == 200
    assert seen.add_checkpoint(request(8, (), second))[0] == 200
    assert seen.add_checkpoint(request(8, (), forked)) == (409, "8\n")
    assert seen.add_checkpoint(request(9, (), second))[0] == 400
    assert seen.add_checkpoint(b"old 8\n\xff")[0] == 400
    assert seen.add_checkpoint(b"nothing")[0] == 400
    assert seen.add_checkpoint(request(8, (), second.replace("small\n8", "small\n9")))[0] == 403
    seen.close()
    with pytest.raises(BadInput):
        Witness(KEY, [KEY.verifier], lambda: 0)
    unknown = Witness(key, [], lambda: 0)
    assert unknown.add_checkpoint(request(0, (), first))[0] == 404
    unknown.close()


@contextmanager
def served(seen: Witness) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = seen.add_checkpoint(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        seen.close()


def test_witnesses_are_asked_and_their_signatures_kept(tmp_path: Path):
    keys = [Signer.generate(f"{name}.example", COSIGNATURE) for name in ("a", "b")]
    with (
        served(Witness(keys[0], [KEY.verifier], lambda: 7)) as a,
        served(Witness(keys[1], [], lambda: 7)) as b,
        Log.create(tmp_path / "ledger.db", KEY) as log,
    ):
        asked = {a: keys[0].verifier, b: keys[1].verifier, "http://127.0.0.1:9": keys[1].verifier}
        for size in (2, 5):  # the second time the witness wants a proof from what it holds
            log.append([records.note("0.000", str(k)) for k in range(size - len(list(log.entries())))])
            said = collect(log, asked)
            assert said[a] == "cosigned"
            assert "404" in said[b]
            assert "not reached" in said["http://127.0.0.1:9"]
            (line,) = log.cosignatures(size)
            head = log.head()
            assert len(open_head(head.note + line, KEY.verifier, [keys[0].verifier])[1]) == 2
        with pytest.raises(BadInput):
            collect(log, {"ftp://nowhere": keys[0].verifier})


def test_a_witness_that_saw_more_stops_the_log(tmp_path: Path):
    key = Signer.generate("a.example", COSIGNATURE)
    with served(Witness(key, [KEY.verifier], lambda: 7)) as url:
        with Log.open(long_log(tmp_path / "long.db", 5), KEY) as log:
            assert collect(log, {url: key.verifier})[url] == "cosigned"
        with Log.open(long_log(tmp_path / "short.db", 3), KEY) as log, pytest.raises(Refused, match="lost"):
            collect(log, {url: key.verifier})
        with Log.create(tmp_path / "other.db", KEY) as log:
            log.append([records.note("0.000", "other") for _ in range(5)])
            assert "forked" in collect(log, {url: key.verifier})[url]


# what a stranger may answer

WITNESS = Signer.generate("w.example", COSIGNATURE)


def read_request(connection: socket.socket) -> None:
    """All of it: who closes before that resets the connection, and what was answered may be lost."""
    told = b""
    while b"\r\n\r\n" not in told:
        told += connection.recv(1 << 16)
    head, _, body = told.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(1 << 16)


@contextmanager
def stranger(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Whoever listens where a witness should; `answer` is given each connection, its request already read."""
    server, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def listen() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(3)
                try:
                    read_request(connection)
                    answer(connection)
                except OSError:
                    continue  # whoever asked had enough

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    for _ in range(30):
        connection.sendall(b"x")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * (1 << 16))


STRANGE = {
    "nothing": (b"", "no HTTP"),
    "garbage": (b"\x00\xff\xfe\r\n\r\n", "no HTTP"),
    "a long line": (b"HTTP/1.1 200 " + b"x" * 100_000, "answered"),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", "without"),
    "another page": (http("200 OK", b"<html>\xff\xfe welcome"), "without a signature"),
    "many signatures of others": (
        http("200 OK", Signer.generate("o", COSIGNATURE).sign("x", 1).line.encode() * 9999),
        "without",
    ),
    "a redirect": (http("302 Found", b"", "Location: http://127.0.0.1:9/"), "answered 302"),
    "an error": (http("500 No", b"two\nlines\x1b[31m"), "answered 500: two lines [31m"),
    "a size that is none": (http("409 Conflict", "٣\n".encode()), "answered 409"),
    "a size below 0": (http("409 Conflict", b"-1\n"), "answered 409"),
    "a size beyond all": (http("409 Conflict", b"9" * 30), "answered 409"),
    "no size": (http("409 Conflict"), "answered 409"),
    "size 0 again and again": (http("409 Conflict", b"0\n"), "forked"),
    "a drip": (drip, "no whole answer within"),
    "silence": (lambda _: time.sleep(1.5), "no whole answer within"),
    "a flood": (flood, "without a signature"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_a_stranger_answers_is_told_on_one_line_and_holds_up_nobody(what: str, tmp_path: Path):
    given, why = STRANGE[what]
    answer = given if callable(given) else lambda connection: connection.sendall(given)
    with (
        stranger(answer) as url,
        served(Witness(WITNESS, [KEY.verifier], lambda: 7)) as good,
        Log.open(long_log(tmp_path / "ledger.db", 3)) as log,
    ):
        began = time.monotonic()
        said = collect(log, {url: WITNESS.verifier, good: WITNESS.verifier}, timeout_seconds=1.0)
        assert time.monotonic() - began < 5
        assert why in said[url]
        assert said[url].isprintable()
        assert len(said[url]) < 300
        assert said[good] == "cosigned"
        assert len(log.cosignatures(3)) == 1


def test_what_the_others_signed_is_kept_though_one_says_that_entries_were_lost(tmp_path: Path):
    with (
        stranger(lambda connection: connection.sendall(http("409 Conflict", b"99\n"))) as url,
        served(Witness(WITNESS, [KEY.verifier], lambda: 7)) as good,
        Log.open(long_log(tmp_path / "ledger.db", 3)) as log,
    ):
        with pytest.raises(Refused, match="99 entries of this log, which holds 3"):
            collect(log, {url: WITNESS.verifier, good: WITNESS.verifier})
        assert len(log.cosignatures(3)) == 1


@pytest.mark.parametrize(
    "url", ["w.example", "http://", "http://[::1", "http://w:port", "http://w\n", "file:///etc/passwd", "http://wörld"]
)
def test_what_is_no_address_is_bad_input(url: str, tmp_path: Path):
    with Log.open(long_log(tmp_path / "ledger.db", 3)) as log, pytest.raises(BadInput, match="no address"):
        collect(log, {url: WITNESS.verifier})


def test_cosignatures_are_collected_while_another_process_writes(tmp_path: Path):
    path = tmp_path / "ledger.db"
    with served(Witness(WITNESS, [KEY.verifier], lambda: 7)) as url, Log.create(path, KEY) as world:
        for size in (1, 2, 3):
            world.append([records.note("0.000", str(size))])
            with Log.open(path) as log:  # it has no key and no lock
                assert collect(log, {url: WITNESS.verifier})[url] == "cosigned"
            assert len(world.cosignatures(size)) == 1
    Log.open(path, KEY).close()


def test_a_witness_asked_again_and_again_leaves_one_line(tmp_path: Path):
    """A note of more than a hundred signatures is not read, not even by us."""
    with Log.open(long_log(tmp_path / "ledger.db", 3), KEY) as log:
        head = log.head()
        for now in range(120):
            log.cosign(head, [WITNESS.sign(head.text, now).line])
        (line,) = log.cosignatures(3)
        assert parse_signature(line).time == 119


def test_two_witnesses_of_one_store_and_key_sign_no_fork(tmp_path: Path):
    """Whoever of them is asked, the store decides; threads ask both at once for two histories."""
    store, notes = tmp_path / "witness.db", []
    for name in ("one", "two"):
        with Log.create(tmp_path / f"{name}.db", KEY) as log:
            notes.append(log.append([records.note("0.000", name)]).note)
    witnesses = [Witness(WITNESS, [KEY.verifier], lambda: 7, store) for _ in range(2)]
    came: list[tuple[int, str]] = []
    ready = threading.Barrier(8)

    def ask(k: int) -> None:
        ready.wait()
        came.append((k % 2, str(witnesses[k // 4].add_checkpoint(request(0, (), notes[k % 2]))[0])))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for w in witnesses:
        w.close()
    assert len({log for log, status in came if status == "200"}) == 1
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT COUNT(*) FROM seen").fetchone() == (1,)
    db.close()
