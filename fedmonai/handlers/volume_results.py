# SPDX-License-Identifier: Apache-2.0
"""The results of an inference, one file per volume, with previews and a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.image import imsave

from fedmonai.handlers.whole_file import refuse_existing, write_table, write_whole

__all__ = ["VolumeResults"]


class VolumeResults(ABC):
    """Handler that writes one file per iteration of an evaluator over a folder of volumes, whole or not at all.

    Before the first iteration it refuses results of an earlier run; after the last one it writes the table and prints
    a line per file, and one per file that the folder's data set left out (its ``skipped``).

    Args:
        output_dir: folder of the results.
        preview: write ``previews/<volume>.png``.
        overwrite: replace results of an earlier run; without it an existing one is an error.

    Raises:
        ConfigError: an existing result, a folder that cannot be written.
    """

    table: str  #: file name of the table
    columns: tuple[str, ...]  #: of the table

    def __init__(self, output_dir: str, preview: bool, overwrite: bool) -> None:
        self.output_dir = Path(output_dir)
        self.preview = preview
        self.overwrite = overwrite
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    @abstractmethod
    def __call__(self, engine: Engine) -> None:
        """Write the volume of this iteration."""

    @abstractmethod
    def path(self, volume: str, kind: str) -> Path:
        """File of a volume's result, by the kind of its input."""

    @abstractmethod
    def found(self, row: dict[str, Any]) -> str:
        """What the line about a row says in brackets."""

    def add_row(self, *values: Any) -> None:
        """Note a line of the table."""
        self.rows.append(dict(zip(self.columns, values, strict=True)))

    def write_preview(self, volume: str, picture: np.ndarray, **options: Any) -> None:
        """Write a picture in [0, 1], (H, W) with a color map in ``options`` or (H, W, 3)."""
        place = self.output_dir / "previews" / f"{volume}.png"
        write_whole(place, lambda partial: imsave(partial, picture, **options))

    def _begin(self, engine: Engine) -> None:
        self.rows = []
        for source in getattr(_dataset(engine), "data", None) or []:
            refuse_existing(self.path(source.name, source.kind), self.overwrite)

    def _finish(self, engine: Engine) -> None:
        write_table(self.output_dir / self.table, self.columns, self.rows)
        for row in self.rows:
            print(f"{row['source']} ({self.found(row)}) -> {self.output_dir / row['file']}")
        for reason in getattr(_dataset(engine), "skipped", None) or []:
            print(f"left out: {reason}")


def _dataset(engine: Engine) -> Any:
    return getattr(engine.state.dataloader, "dataset", None)
