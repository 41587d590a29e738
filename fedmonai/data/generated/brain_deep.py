# SPDX-License-Identifier: Apache-2.0
"""Ventricles and the gray nuclei around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid, ellipsoid_depth, tube_depth

# Center lines (x to the side, y to the front, z up; mm from the anterior commissure) and radii of a young adult.
_LATERAL = ((12, 31, 0), (9.5, 20, 9), (7, 5, 19), (9, -13, 24), (16, -30, 20), (25, -43, 8), (26, -62, 4))
_LATERAL_RADII = (2.6, 4.4, 4.4, 4.4, 4.8, 5.8, 2.4)
_TEMPORAL = ((25, -43, 8), (34, -28, -10))
_TEMPORAL_RADII = (5.2, 2.4)
_CAUDATE = ((14.5, 19, 3), (15, 9, 12), (17, -6, 20), (21, -22, 20))
_CAUDATE_RADII = (5.0, 4.6, 3.0, 1.8)


@dataclass(frozen=True)
class DeepStructures:
    """Sizes of one subject's ventricles and nuclei."""

    ventricles: float
    lopsided: float
    nuclei: float
    outline: RandomField

    @classmethod
    def draw(cls, rng: np.random.RandomState, atrophy: float) -> DeepStructures:
        """Draw sizes; ``atrophy`` widens the ventricles."""
        return cls(
            ventricles=float((0.85 + 1.1 * atrophy) * np.exp(rng.normal(0, 0.15))),
            lopsided=float(rng.normal(0, 0.08)),
            nuclei=float(1 + rng.normal(0, 0.05)),
            outline=RandomField.draw(rng, 30.0, 16),
        )

    def paint_nuclei(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> None:
        """Paint caudate nucleus, putamen, pallidum and thalamus; the white matter between them stays."""
        x, y, z = position
        side = np.abs(x)
        rough = 0.6 * self.outline(x, y, z)
        size = self.nuclei
        caudate = tube_depth((side, y, z), _CAUDATE, [size * r for r in _CAUDATE_RADII]) + rough
        curved = (side - 26.5 - 0.11 * np.abs(y - 4), y - 4, z - 2)
        putamen = ellipsoid_depth(curved, (5.6 * size, 16 * size, 11 * size)) + rough
        pallidum = ellipsoid_depth((side - 19.5 + 0.25 * (y + 2), y + 2, z), (3.8 * size, 8.5 * size, 7.5 * size))
        thalamus = ellipsoid_depth((side - 10.5 - 0.2 * (y + 18), y + 18, z - 8), (8.0, 14.0, 10.0)) + rough
        gray, dark = grid.refine(np.maximum.reduce([caudate, putamen, thalamus]), pallidum)
        layers.paint("deep_gray", gray)
        layers.paint("pallidum", dark)

    def paint_ventricles(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> None:
        """Paint the lateral ventricles, with the septum between them, and the third."""
        x, y, z = position
        mirrored = (np.abs(x), y, z)
        lateral = np.maximum(
            tube_depth(mirrored, _LATERAL, _LATERAL_RADII), tube_depth(mirrored, _TEMPORAL, _TEMPORAL_RADII)
        )
        wider = self.ventricles * (1 + self.lopsided * np.tanh(x / 5)) - 1
        lateral = lateral + 5.0 * wider + 0.3 * self.outline(x, y, z)
        third_rim = np.hypot(np.maximum(np.abs(y + 12) - 14, 0), np.maximum(np.abs(z + 1) - 8, 0))
        lateral, middle, third_rim = grid.refine(lateral, x, third_rim)
        third = np.float32(0.9 + 1.6 * (self.ventricles - 0.8)) - np.hypot(middle, third_rim)
        layers.paint("csf", np.maximum(np.minimum(lateral, np.abs(middle) - np.float32(1.0)), third))
