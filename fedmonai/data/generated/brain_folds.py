# SPDX-License-Identifier: Apache-2.0
"""The folded cortex: sulci as sheets where a random field crosses zero, between the surface and a limited depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid, beyond, coverage, rounded_minimum

CENTER = (0.0, -16.0, 6.0)  # of the brain, in mm from the anterior commissure: right, front, top
WAVELENGTH = 22.0  # mm on the brain's surface; the field crosses zero, i.e. has a sulcus, every half of it


@dataclass(frozen=True)
class Cortex:
    """Sulci, the fissure between the hemispheres, the insula's cleft, and the ribbon of gray matter along them.

    Attributes:
        sulci: its zero crossings are the sulci; ``bend`` curves them, ``reach`` varies their depth.
        midline: deviation of the fissure from the middle plane.
        half_width: of a sulcus in mm.
        gray: thickness of the gray matter in mm.
    """

    sulci: RandomField
    bend: tuple[RandomField, ...]
    reach: RandomField
    midline: RandomField
    half_width: float
    gray: float

    @classmethod
    def draw(cls, rng: np.random.RandomState, atrophy: float) -> Cortex:
        """Draw a folding pattern; ``atrophy`` widens the sulci and thins the gray matter."""
        return cls(
            sulci=RandomField.draw(rng, WAVELENGTH, 40, 0.2),
            bend=tuple(RandomField.draw(rng, 30.0, 12) for _ in range(3)),
            reach=RandomField.draw(rng, 40.0, 12),
            midline=RandomField.draw(rng, 60.0, 8),
            half_width=float(0.45 + 0.8 * atrophy + 0.1 * rng.uniform(-1, 1)),
            gray=float(3.1 - 0.35 * atrophy + 0.1 * rng.uniform(-1, 1)),
        )

    def paint(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array], surface: Array) -> tuple[Array, Array]:
        """Paint gray and white matter; returns their coverages.

        ``position`` and ``surface``, the depth under the brain's surface, are on the coarse grid.
        """
        x, y, z = position
        middle = x + 1.0 * self.midline(x * 0, y, z)
        # the corpus callosum and what lies below it: no fissure there, and close to the midline no cortex
        center = np.sqrt(((y + 5) / 38) ** 2 + ((z - 9) / 21) ** 2)
        bridge, core = 20 * (1 - center), 20 * (1 - np.hypot(center, x / 26))
        nearest = np.minimum(surface, np.hypot(middle, beyond(bridge, 0.0)))
        fold = self._signed_distance(grid, position, nearest)
        reach = 16 + 4.5 * self.reach(*position) - 2 * beyond(core + 7, 0.0)
        wiggle = 2.0 * self.bend[0](*position)
        cleft_parts = self._insula(x + wiggle, y + wiggle, z)
        surface, fold, reach, middle, bridge, core = grid.refine(surface, fold, reach, middle, bridge, core)
        insula = grid.refine(*cleft_parts)

        fissure = np.hypot(middle, beyond(bridge, 0.0)) - np.float32(0.5 + 0.8 * self.half_width)
        below = rounded_minimum(surface, fissure, 3.0)  # depth under the nearest surface
        opening = np.float32(self.half_width) * (1 + beyond(6 - below, 0) * np.float32(0.12))
        cleft = np.hypot(fold, beyond(below, reach)) - opening
        pial = rounded_minimum(below, cleft, 2.5)
        insula_depth = np.minimum(np.hypot(insula[0], insula[1]), np.hypot(insula[2], insula[3]))
        pial = np.minimum(pial, insula_depth - np.float32(0.5 + 1.2 * self.half_width))
        gray = layers.paint("gray", pial)
        # the callosum has no cortex of its own: the ribbon thins to nothing where the fissure meets it
        ribbon = np.float32(self.gray) * (1 - coverage(core - 1.0, 4.0))
        return gray, layers.paint("white", pial - ribbon)

    def _signed_distance(self, grid: SmoothGrid, position: Sequence[Array], depth: Array) -> Array:
        """Distance in the slice from the nearest sulcal sheet, negative on its other side.

        With a field f of wave number k, |f| / sqrt(|grad f|^2 + k^2 f^2) is exactly sin(k d) / k for a plane wave.
        Folds stand on the surface because the field is evaluated at points drawn out toward it.
        """
        x, y, z = (axis - np.float32(c) for axis, c in zip(position, CENTER, strict=True))
        # each hemisphere has its own core; folds run from there to its surface, to the outside and to the midline
        core = (28 * np.tanh(x / 4), 0.6 * y, 0.5 * z)
        outward = np.clip(1 - depth / 36, 0.3, 1.1) ** np.float32(-0.8)
        bent = [c + (axis - c) * outward for axis, c in zip((x, y, z), core, strict=True)]
        bent = [axis + np.float32(3.0) * field(*position) for axis, field in zip(bent, self.bend, strict=True)]
        value = self.sulci(*bent)
        slope = np.hypot(*np.gradient(value, np.float32(grid.step)))
        k = np.float32(2 * np.pi / WAVELENGTH)
        sine = value * k / np.sqrt(slope**2 + (k * value) ** 2 + np.float32(1e-6))
        return np.arcsin(np.clip(sine, -1, 1)) / k

    @staticmethod
    def _insula(x: Array, y: Array, z: Array) -> tuple[Array, Array, Array, Array]:
        """The Sylvian cleft: a sheet over the insula and one that opens to the side of the head.

        Returns for each the signed distance from the sheet and the distance beyond its rim.
        """
        side = np.abs(x)
        height = beyond(np.abs(z - 5), 12.0)
        over, over_rim = side - 37 + 0.008 * (y - 4) ** 2, np.hypot(beyond(np.abs(y - 2), 17.0), height)
        lateral, lateral_rim = y + 6 + 0.25 * (side - 37), np.hypot(beyond(37 - side, 0.0), height)
        return over, over_rim, lateral, lateral_rim
