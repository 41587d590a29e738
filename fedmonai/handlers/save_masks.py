# SPDX-License-Identifier: Apache-2.0
"""Segmented pictures as masks of the size of their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ignite.engine import Engine
from PIL import Image

from fedmonai.errors import ConfigError
from fedmonai.handlers.volume_results import VolumeResults
from fedmonai.handlers.whole_file import write_whole

__all__ = ["SaveMasks"]

#: outline of class 1, 2, ... in previews
COLORS = np.array([[1.0, 0.15, 0.1], [0.1, 0.8, 1.0], [1.0, 0.85, 0.1], [0.4, 1.0, 0.3]])
SUFFIXES = {"picture": ".png", "hdf5": ".h5"}


class SaveMasks(VolumeResults):
    """Write the mask of every file of an evaluator over a :class:`fedmonai.data.weak.folder.PictureFolder`, whole or not at all.

    Predictions are classes ``(N, rows, columns)`` (:class:`fedmonai.transforms.slices.ClassesInPlaned`). A picture gets
    ``<volume>_mask.png``, gray, with the size of the picture; an HDF5 file ``<volume>_mask.h5`` with ``mask`` uint8 of
    the shape of its planes. ``previews/<volume>.png`` shows what the network saw of the slice with the largest mask
    and the mask's outlines on it. ``masks.csv`` lists all of it, with the pixels of every class above 0.

    Args:
        output_dir: folder of the results.
        gray_levels: of class 0, 1, ... in PNG masks; None writes class numbers, which look black.
        preview: write the pictures.
        overwrite: replace results of an earlier run; without it an existing one is an error.

    Raises:
        ConfigError: gray levels outside 0 to 255, equal ones, or too few; an existing result; a folder that cannot be
            written.
    """

    table = "masks.csv"
    columns = ("volume", "source", "slices", "rows", "columns", "pixels", "file")

    def __init__(
        self,
        output_dir: str,
        gray_levels: Sequence[int] | None = None,
        preview: bool = True,
        overwrite: bool = False,
    ) -> None:
        levels = list(range(256)) if gray_levels is None else list(gray_levels)
        if not all(0 <= level <= 255 for level in levels) or len(set(levels)) < len(levels):
            raise ConfigError(f"gray_levels is {levels}; give different numbers from 0 to 255, one for each class.")
        super().__init__(output_dir, preview, overwrite)
        self.levels = np.array(levels, np.uint8)

    def path(self, volume: str, kind: str) -> Path:
        """See :meth:`VolumeResults.path`."""
        return self.output_dir / f"{volume}_mask{SUFFIXES[kind]}"

    def __call__(self, engine: Engine) -> None:
        """Write the masks of this iteration's file."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        masks = output["pred"].cpu().numpy()
        if masks.max(initial=0) >= len(self.levels):
            raise ConfigError(f"gray_levels names {len(self.levels)} classes, the network found class {masks.max()}.")
        path = self.path(batch["volume"], batch["kind"])
        if path.suffix == ".png":
            write_whole(path, lambda partial: Image.fromarray(self.levels[masks[0]]).save(partial))
        else:
            write_whole(path, lambda partial: _write_hdf5(partial, masks if batch["slices"] > 1 else masks[0]))
        if self.preview:
            self.write_preview(batch["volume"], _outlined(output["image"].detach().float().cpu().numpy(), masks))
        pixels = " ".join(f"{label}:{int((masks == label).sum())}" for label in np.unique(masks[masks > 0]))
        self.add_row(batch["volume"], batch["source"], *masks.shape, pixels, path.name)

    def found(self, row: dict[str, Any]) -> str:
        """See :meth:`VolumeResults.found`."""
        return row["pixels"] or "nothing found"


def _write_hdf5(path: str, masks: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("mask", data=masks, compression="gzip")


def _outlined(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The slice with the largest mask: what the network saw, and that with colored outlines, (side, 2 side, 3)."""
    areas = (masks > 0).sum(axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else len(images) // 2
    plain = np.repeat(images[index], 3, axis=0) if len(images[index]) == 1 else images[index][:3]
    plain = np.clip(plain.transpose(1, 2, 0), 0.0, 1.0)
    rows, columns = (np.arange(n) * m // n for n, m in zip(plain.shape, masks.shape[1:], strict=False))
    mask = masks[index][np.ix_(rows, columns)]
    padded = np.pad(mask, 1, mode="edge")
    neighbors = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (mask > 0) & np.any([mask != other for other in neighbors], axis=0)
    marked = plain.copy()
    marked[edge] = COLORS[(mask[edge].astype(int) - 1) % len(COLORS)]
    return np.hstack([plain, marked])
