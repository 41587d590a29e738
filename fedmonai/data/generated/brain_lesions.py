# SPDX-License-Identifier: Apache-2.0
"""Lesions: a mass with edema, an infarct, white-matter lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.shapes import Array, Point, RandomField, SmoothGrid


@dataclass(frozen=True)
class Lesions:
    """What one subject has; a size of 0 means that it has none of that kind."""

    tumor_center: Point
    tumor_radius: float
    infarct_center: Point
    infarct_radius: float
    white_load: float
    outline: RandomField
    spots: RandomField

    def displace(self, position: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Where the tissue seen at ``position`` would be without the mass, which pushes it outward."""
        x, y, z = position
        if not self.tumor_radius:
            return x, y, z
        offset = [axis - np.float32(c) for axis, c in zip(position, self.tumor_center, strict=True)]
        squared = sum(axis**2 for axis in offset) / np.float32((1.6 * self.tumor_radius) ** 2)
        pull = np.float32(0.35) * np.exp(-squared)
        x, y, z = (axis - pull * o for axis, o in zip(position, offset, strict=True))
        return x, y, z

    def paint(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array], gray: Array, white: Array) -> None:
        """Paint the lesions into the tissue they grow in: edema and spots only into white matter."""
        if self.white_load:
            x, y, z = position
            around = np.hypot((np.abs(x) - 16) / 1.3, (z - 20) / 1.2) + 0.06 * np.abs(y + 10)
            # peaks of the field above a level that falls with the load and rises away from the ventricles
            spots = 3.2 * (self.spots(*position) - 2.4 + 1.3 * self.white_load) - 0.10 * around + 1.0
            layers.paint("edema", grid.refine(spots)[0], white * np.float32(0.6))
        if self.infarct_radius:
            infarct = self._blob(position, self.infarct_center, self.infarct_radius, 0.35)
            layers.paint("infarct", grid.refine(infarct)[0], gray)
        if self.tumor_radius:
            mass = self._blob(position, self.tumor_center, self.tumor_radius, 0.18)
            edema = self._blob(position, self.tumor_center, 1.75 * self.tumor_radius, 0.30)
            mass, edema = grid.refine(mass, edema)
            layers.paint("edema", edema * np.float32(0.4), white * np.float32(0.9))
            layers.paint("tumor", mass, gray)
            layers.paint("necrosis", mass - np.float32(0.42 * self.tumor_radius), gray)

    def _blob(self, position: Sequence[Array], center: Point, radius: float, roughness: float) -> Array:
        away = np.sqrt(sum((axis - np.float32(c)) ** 2 for axis, c in zip(position, center, strict=True)))
        return np.float32(radius) * (1 + np.float32(roughness) * self.outline(*position)) - away


def draw_lesions(rng: np.random.RandomState, tumor: float, infarct: float, white_lesions: float) -> Lesions:
    """Draw a subject's lesions; ``tumor`` and ``infarct`` are probabilities, ``white_lesions`` a mean load."""
    tumor_side, infarct_side = rng.choice([-1, 1], 2)
    tumor_center = (tumor_side * rng.uniform(18, 42), rng.uniform(-60, 35), rng.uniform(2, 44))
    infarct_center = (infarct_side * rng.uniform(30, 52), rng.uniform(-45, 25), rng.uniform(2, 42))
    tumor_radius, infarct_radius = rng.uniform(9, 19), rng.uniform(9, 22)
    has_tumor, has_infarct = rng.uniform(size=2) < (tumor, infarct)
    load = white_lesions * rng.gamma(2.0, 0.5)
    return Lesions(
        tumor_center=tumor_center,
        tumor_radius=float(tumor_radius) if has_tumor else 0.0,
        infarct_center=infarct_center,
        infarct_radius=float(infarct_radius) if has_infarct else 0.0,
        white_load=float(min(load, 1.5)),
        outline=RandomField.draw(rng, 26.0, 24, 0.5),
        spots=RandomField.draw(rng, 14.0, 40, 0.3),
    )
