"""What every test stands on: checked shapes, quick laws, known answers and real data where they are, honest skips.

Shapes   every annotation in apportion is checked while the tests run (jaxtyping with beartype).
Laws     Hypothesis runs 30 examples; `--hypothesis-profile=thorough` runs 500. With CI set the examples are fixed.
Cases    a test with the argument `case` runs once per file of APPORTION_CASES; `data(name)` is a file of APPORTION_DATA.
         Where they are absent the test skips and says so. Neither is part of the repository.
Skips    a reason reads `word: what is missing`. With --no-skips (`make test-all`) a skip is a failure, unless
         ALLOW_SKIP=word,word names the reason's word or a mark of the test; what was forgiven is listed at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

install_import_hook("apportion", "beartype.beartype")  # before anything imports apportion

_slow_machine_is_no_fault = [HealthCheck.too_slow]
settings.register_profile("quick", max_examples=30, deadline=None, suppress_health_check=_slow_machine_is_no_fault)
settings.register_profile("ci", settings.get_profile("quick"), derandomize=True, print_blob=True)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=500)
settings.load_profile("ci" if os.environ.get("CI") else "quick")

ROOT = Path(__file__).resolve().parent.parent
CASES = Path(os.environ.get("APPORTION_CASES") or ROOT.parent / "shared" / "cases" / "economy")
DATA = Path(os.environ.get("APPORTION_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Type a command; give its exit code, output and errors."""
    from apportion.serve.cli import main

    def typed(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apportion", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capfd.readouterr()

    return typed


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Give a real data file by its name below APPORTION_DATA, or skip."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"data: no {name} in {DATA}; APPORTION_DATA names the folder")
        return DATA / name

    return find


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `case` once per known answer."""
    if "case" not in metafunc.fixturenames:
        return
    absent = pytest.mark.skip(reason=f"cases: no *.json in {CASES}; APPORTION_CASES names the folder")
    found = sorted(CASES.glob("*.json")) or [pytest.param(None, marks=absent)]
    metafunc.parametrize("case", found, ids=lambda path: path.stem if path else "absent")


_forgiven = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skip fails unless ALLOW_SKIP=word,word allows it")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_forgiven] = []


def _judge(report: pytest.TestReport | pytest.CollectReport, node: pytest.Item | pytest.Collector) -> None:
    """Turn a skip into a failure, or into a line of the list of what was forgiven."""
    if not report.skipped or hasattr(report, "wasxfail") or not node.config.getoption("--no-skips"):
        return
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = told.removeprefix("Skipped: ")
    word = reason.partition(":")[0] if ":" in reason else ""
    allowed = {name.strip() for name in os.environ.get("ALLOW_SKIP", "").split(",")} - {""}
    if allowed & {word, *(mark.name for mark in node.iter_markers())}:
        node.config.stash[_forgiven].append(f"{node.nodeid} ({reason})")
        return
    report.outcome = "failed"
    report.longrepr = (
        f"skipped, and under --no-skips a skip is a failure: {reason}\n"
        + (f"To allow it: ALLOW_SKIP={word}" if word else "Let its reason begin with a word and a colon.")
    )  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    _judge(report, item)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    _judge(report, collector)  # a whole file may skip: importorskip
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if forgiven := config.stash[_forgiven]:
        terminalreporter.section(f"forgiven skips (ALLOW_SKIP={os.environ['ALLOW_SKIP']})")
        for line in forgiven:
            terminalreporter.write_line(line)
