# SPDX-License-Identifier: Apache-2.0
"""Shapes painted over each other, with soft edges, until every pixel is divided among the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmonai.data.generated.shapes import Array, coverage


class Layers:
    """Collects painted shapes; a later one hides earlier ones by the share of the pixel that it covers.

    Args:
        classes: names of the classes; the first is the background.
        edge: width of a shape's edge in the unit of the depths, about one pixel.
    """

    def __init__(self, classes: Sequence[str], edge: float) -> None:
        self.classes = tuple(classes)
        self.edge = edge
        self._painted: list[tuple[int, Array]] = []

    def paint(self, name: str, depth: Array, within: Array | float = 1.0) -> Array:
        """Paint the shape of a depth as class ``name`` and return its coverage.

        ``within`` (0 to 1) restricts or thins the shape.
        """
        share = coverage(depth, self.edge) * np.float32(within)
        self._painted.append((self.classes.index(name), share))
        return share

    def shares(self) -> Array:
        """Visible share of each class in each pixel: float32 (classes, rows, columns), with sum 1 over the classes."""
        left = np.ones_like(self._painted[0][1])
        out = np.zeros((len(self.classes), *left.shape), np.float32)
        for index, share in reversed(self._painted):
            visible = share * left
            out[index] += visible
            left -= visible
        out[0] += left
        return out
