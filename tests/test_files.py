"""A file is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apportion.core.files import replacing


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path, sync: bool):
    path = tmp_path / "page.html"
    for text in ("old", "new"):
        with replacing(path, sync=sync) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    with pytest.raises(RuntimeError), replacing(path, sync=sync) as part:  # noqa: PT012
        part.write_text("half")
        raise RuntimeError
    with pytest.raises(FileNotFoundError), replacing(path, sync=sync):
        pass  # nothing was written
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    for name in ("fsync", "replace"):
        then = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, then=then: (calls.append(name), then(*given)))
    with replacing(tmp_path / "a") as part:
        part.write_text("a")
    with replacing(tmp_path / "a", sync=False) as part:
        part.write_text("b")
    assert calls == ["fsync", "replace", "replace"]
