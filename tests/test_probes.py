"""What strangers say: no page and no line, however long, late or wrong, holds up a round or ends it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from executors import allocation, eventually, local
from hypothesis import given
from hypothesis import strategies as st

from apportion.execution import probes
from apportion.execution.probes import MOST_READ, MOST_USED, LineReader, PageReader, counter, printable
from apportion.execution.programs import Probe, own
from apportion.ledger.canonical import dumps

OK = b"HTTP/1.0 200 OK\r\n"
GOOD = OK + b"\r\na 1\nb 1\n"


@contextmanager
def page(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve whatever bytes `answer` sends, however little they are HTTP; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    asks, _ = server.accept()
                    with asks, suppress(OSError):
                        asks.recv(4096)
                        answer(asks)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


WRONG = {
    "no HTTP": b"good morning\r\n\r\n",
    "an endless header": OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
    "a cut chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "no time": OK + b'\r\n{"t": null, "asked": 1, "in_time": 1}',
    "a time beyond numbers": OK + b'\r\n{"t": 1' + b"0" * 400 + b', "asked": 1, "in_time": 1}',
    "a sum beyond numbers": OK + b"\r\na 1e308\na 1e308\nb 1\n",
}


@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG)
def test_a_page_that_answers_wrong_is_told_once_and_asked_again(said: bytes):
    answers = iter([said])
    with page(lambda asks: asks.sendall(next(answers, GOOD))) as url:
        reader = PageReader(Probe(url, "a", "b"), every=0.02)
        wrong: list[str] = []
        assert eventually(lambda: bool(wrong.append(reader.read()) or wrong[-1]), 5)
        assert "cannot be used" in wrong[-1]
        assert eventually(lambda: reader.read() == "" and reader.told.lines >= 2, 5)
        reader.close()


def test_a_page_told_drop_by_drop_is_given_up_and_closing_waits_for_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "ANSWER_SECONDS", 0.2)
    end = threading.Event()

    def drip(asks: socket.socket) -> None:
        asks.sendall(OK + b"\r\n")
        while not end.wait(0.02):
            asks.sendall(b"a")

    with page(drip) as url:
        reader = PageReader(Probe(url, "a", "b"), every=0.02)
        assert eventually(lambda: "not told in full" in reader.read(), 5)
        time.sleep(0.1)  # it asks again
        begun = time.monotonic()
        reader.close()
        assert time.monotonic() - begun < 0.1
        end.set()


def test_a_page_too_long_to_be_whole_counts_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "MOST_PAGE", 1000)
    with page(lambda asks: asks.sendall(GOOD + b"c 1\n" * 1000)) as url:
        reader = PageReader(Probe(url, "a", "b"), every=0.02)
        assert eventually(lambda: "longer than 1000 bytes" in reader.read(), 5)
        reader.close()


HARD = {
    "spaces": "a" + " " * 200_000,
    "letters": 'a{x="1",' + "x" * 200_000 + "} 1",
    "labels": "a{" + 'x="' * 100_000 + "} 1",
    "braces": "a{" + "} " * 100_000,
}


@pytest.mark.parametrize("line", HARD.values(), ids=HARD)
def test_a_line_made_to_be_hard_takes_no_longer_than_its_length(line: str):
    """A pattern that tries again and again holds the interpreter, and with it every round: seconds, then hours."""
    begun = time.process_time()
    assert np.isnan(counter(line, 'a{y="1"}'))
    assert time.process_time() - begun < 1.0


def test_labels_are_read_whatever_stands_in_them():
    text = 'x{a="}",b="c,\\"d"} 3\nx {a = "}" , ab="1"} 4 17\nx{a="1"}5\n'
    assert counter(text, 'x{a="}"}') == 7
    assert counter(text, 'x{b="c,\\"d"}') == 3
    assert np.isnan(counter(text, 'x{b="1"}'))


def test_of_a_flood_the_end_is_read(tmp_path: Path):
    path = tmp_path / "x.out"
    reader = LineReader(path)
    with path.open("wb") as file:
        file.write(b'{"asked": 1, "in_time": 1}\n')
        file.truncate(200 * MOST_READ)  # zeros
        file.seek(0, 2)
        file.write(b'\n{"asked": 4, "in_time": 3}\n')
    assert reader.read() == ""
    assert (reader.told.lines, reader.told.asked) == (1, 4)
    assert path.stat().st_size == 0
    assert path.with_name("x.out.1").stat().st_size <= probes.ROTATE_BYTES


def test_what_is_no_file_any_more_says_nothing(tmp_path: Path):
    reader = LineReader(tmp_path / "x.out")
    (tmp_path / "x.out").mkdir()
    assert reader.read() == ""


def test_a_program_that_names_ever_more_resources_is_not_heard(tmp_path: Path):
    path = tmp_path / "x.out"
    reader = LineReader(path)
    path.write_text("".join(f'{{"asked": 1, "in_time": 1, "used": {{"r{k}": 1}}}}\n' for k in range(1000)))
    assert "more than 64 resources" in reader.read()
    assert len(reader.told.used) == reader.told.lines == MOST_USED


@given(text=st.text() | st.text(st.characters(categories=["C"])))
def test_what_a_program_says_can_be_printed_and_logged(text: str):
    said = printable(text)
    assert len(said.splitlines()) <= 1
    assert all(c.isprintable() or c.isspace() for c in said)
    dumps({"note": said})


def test_a_program_s_words_end_no_round_and_steer_no_terminal(tmp_path: Path):
    half = json.dumps({"asked": 1, "in_time": 1, "used": {"\ud800": -1}})
    says = f"import sys\nprint({half!r}, flush=True)\nsys.exit('bye \\x1b]0;mine\\x07')"
    with local("none", tmp_path, own("a", (sys.executable, "-S", "-c", says))) as executor:
        notes = ""

        def told() -> bool:
            nonlocal notes
            executor.grant(allocation({"a": 50}))
            notes += " ".join(executor.observe().notes)
            return "exit status" in notes and "used." in notes

        assert eventually(told, 5)
    assert "'a' printed a probe line that cannot be used: used.\ufffd is -1" in notes
    assert "bye \ufffd]0;mine\ufffd" in notes
