# SPDX-License-Identifier: Apache-2.0
"""Contact sheet: random slices of a site with their labels or targets, on one picture for a person to look at."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fedmonai.io import atomic_path

__all__ = ["ExampleSampler", "write_contact_sheet"]

_SIDE, _LINE = 160, 14
_COLORS = np.array([[230, 60, 60], [60, 200, 90], [70, 120, 240], [240, 200, 50], [200, 80, 220]], np.float32)


@dataclass
class ExampleSampler:
    """Random sample of ``size`` examples of a sequence of any length, each with the same probability.

    Example:
        >>> sampler = ExampleSampler(size=2)
        >>> for number in range(9):
        ...     sampler.add(f"slice {number}", np.zeros((1, 4, 4)), None)
        >>> len(sampler.chosen)
        2
    """

    size: int = 6
    chosen: list[tuple[str, np.ndarray, np.ndarray | None]] = field(default_factory=list)
    seen: int = 0
    generator: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, title: str, image: Tensor | np.ndarray, label: Tensor | np.ndarray | None) -> None:
        """Offer one example: image (C, H, W), and label (1, H, W): whole numbers are classes, others an image."""
        self.seen += 1
        place = len(self.chosen) if len(self.chosen) < self.size else self.generator.randrange(self.seen)
        if place < self.size:
            example = (title, np.array(image), None if label is None else np.array(label))
            self.chosen[place : place + 1] = [example]


def write_contact_sheet(
    splits: Mapping[str, ExampleSampler], path: str | Path, color: bool = False, unlabeled: int | None = None
) -> Path:
    """Write one row per split, one image per example, with its labels in color beside it, or its target.

    Args:
        splits: examples by split.
        path: of the PNG file.
        color: three channels are red, green and blue, and not neighboring slices.
        unlabeled: label that is left uncolored.
    """
    rows = [(split, sampler.chosen) for split, sampler in splits.items() if sampler.chosen]
    columns = max((len(chosen) for _, chosen in rows), default=1)
    sheet = Image.new("RGB", (2 * _SIDE * columns, max(1, len(rows)) * (_SIDE + _LINE)), "black")
    draw = ImageDraw.Draw(sheet)
    for row, (split, chosen) in enumerate(rows):
        for column, (title, image, label) in enumerate(chosen):
            left, top = 2 * _SIDE * column, row * (_SIDE + _LINE)
            plain = _picture(image, color)
            beside = plain if label is None else _labeled(plain, label, unlabeled)
            for place, panel in ((left, plain), (left + _SIDE, beside)):
                sheet.paste(
                    Image.fromarray(panel).resize(_fitting(panel), Image.Resampling.NEAREST), (place, top + _LINE)
                )
            draw.text((left + 2, top + 1), f"{split}: {title}"[:50], fill="white")
    with atomic_path(Path(path)) as partial:
        sheet.save(partial, format="PNG")
    return Path(path)


def _fitting(panel: np.ndarray) -> tuple[int, int]:
    rows, columns = panel.shape[:2]
    scale = (_SIDE - 2) / max(rows, columns)
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def _picture(image: np.ndarray, color: bool) -> np.ndarray:
    """(H, W, 3) of 8 bits, from the 1st to the 99th percentile; of neighboring slices the middle one."""
    planes = image if color and image.shape[0] == 3 else image[[image.shape[0] // 2] * 3]
    values = planes.astype(np.float32).transpose(1, 2, 0)
    low, high = np.percentile(values, (1, 99))
    return (255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _labeled(plain: np.ndarray, label: np.ndarray, unlabeled: int | None) -> np.ndarray:
    if label.dtype.kind == "f":
        return _picture(label, color=False)
    classes = label[0].astype(int)
    out = plain.astype(np.float32)
    for number in np.unique(classes):
        if number > 0 and number != unlabeled:
            place = classes == number
            out[place] = 0.4 * out[place] + 0.6 * _COLORS[(number - 1) % len(_COLORS)]
    if unlabeled is not None:  # labeled background, which is much less than all that is not labeled
        place = classes == 0
        out[place] = 0.6 * out[place] + 0.4 * 255
    return out.astype(np.uint8)


def example_titles(names: Sequence[str], slices: Sequence[int] | None) -> list[str]:
    """``volume, slice 3`` of each example."""
    if slices is None:
        return list(names)
    return [f"{name}, slice {int(place)}" for name, place in zip(names, slices, strict=True)]
