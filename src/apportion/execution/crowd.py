"""Tells programs how many people have come: one load file per task, holding the factor on its size."""

from __future__ import annotations

from pathlib import Path

from apportion.core.files import replacing
from apportion.core.market import Tasks
from apportion.execution import places


class Crowd:
    """Writes load files, each when its factor has changed and as a whole: no reader sees half a number."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._played: dict[str, float] = {}

    def play(self, tasks: Tasks) -> None:
        """Let this many come."""
        for name, factor in zip(tasks.name, tasks.surge.tolist(), strict=True):
            if self._played.get(name) == factor:
                continue
            path = places.of(self.folder, name, "load")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, sync=False) as part:
                part.write_text(f"{factor:.6g}\n")
            self._played[name] = factor
