"""Known answers: every case of APPORTION_CASES through the public door that its kind names; a kind without a row skips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import answers_money
import answers_shares
import numpy as np
import pytest

KINDS: dict[str, Callable[[dict], dict]] = {row.__name__: row for row in answers_shares.ROWS + answers_money.ROWS}


def test_known_answers(case: Path):
    told = json.loads(case.read_text())
    if told["kind"] not in KINDS:
        pytest.skip(f"kind: {told['kind']} has no door yet")
    answer = KINDS[told["kind"]](told["problem"])
    free = {note.split()[0] for note in told.get("not_unique") or ()}  # what may differ; the rest must be answered
    assert_near(answer, {name: want for name, want in told["expected"].items() if name not in free}, told["tolerance"])


def assert_near(got, want, tolerance: dict, where: str = "") -> None:
    """The same shape, names and words, numbers within the case's tolerance."""
    if isinstance(want, dict):
        for name, inner in want.items():
            assert_near(got[name], inner, tolerance, f"{where}.{name}")
    elif isinstance(want, list):
        got = got.tolist() if isinstance(got, np.ndarray) else got
        assert len(got) == len(want), where
        for k, (g, w) in enumerate(zip(got, want, strict=True)):
            assert_near(g, w, tolerance, f"{where}[{k}]")
    elif isinstance(want, str) or tolerance.get("abs") == 0:
        assert got == want, where
    else:
        assert got == pytest.approx(want, abs=tolerance.get("abs", 0.0), rel=tolerance.get("rel", 0.0)), where
