# SPDX-License-Identifier: Apache-2.0
"""A random head: continuous in three dimensions, evaluated slice by slice as shares of tissues per pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.brain_deep import DeepStructures
from fedmonai.data.generated.brain_folds import CENTER, Cortex
from fedmonai.data.generated.brain_lesions import Lesions, draw_lesions
from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.mr_tissue import TISSUE_NAMES
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid, ellipsoid_depth

COARSE_STEP = 2.5  # mm; folds have a wavelength of 24 mm, everything else is smoother
# Slices lie between these heights (mm): from the basal ganglia to above the corpus callosum.
LOWEST, HIGHEST = -4.0, 54.0


@dataclass(frozen=True)
class Population:
    """Who is scanned at an institution.

    Attributes:
        tumor, infarct: share of subjects with a glioma-like mass with edema, with an infarct.
        white_lesions: mean load of white-matter lesions, 0 none to 1 confluent.
        atrophy: mean widening of ventricles and sulci, 0 young adult to 1 old or demented.
        atrophy_spread: standard deviation of the above among subjects.
    """

    tumor: float = 0.0
    infarct: float = 0.0
    white_lesions: float = 0.0
    atrophy: float = 0.2
    atrophy_spread: float = 0.1


@dataclass(frozen=True)
class Brain:
    """One subject's head. Positions in mm from the anterior commissure: x to the right, y to the front, z up.

    Attributes:
        scale: of the three axes; above 1 is a smaller head.
        tilt, turn, shift: pose in the scanner, in rad and mm.
        warp: displacement in the three directions, which gives every head its own shape.
        layers: mean thickness in mm of outer fluid, inner table, marrow, outer table, fat, skin.
        thickness: how the layers vary around the head.
    """

    scale: tuple[float, ...]
    tilt: float
    turn: float
    shift: tuple[float, ...]
    warp: tuple[RandomField, ...]
    layers: tuple[float, ...]
    thickness: RandomField
    cortex: Cortex
    deep: DeepStructures
    lesions: Lesions

    @classmethod
    def draw(cls, rng: np.random.RandomState, population: Population) -> Brain:
        """Draw a subject from a population."""
        atrophy = float(np.clip(rng.normal(population.atrophy, population.atrophy_spread), 0, 1.3))
        return cls(
            scale=tuple((1 + 0.04 * rng.uniform(-1, 1, 3)).tolist()),
            tilt=float(np.deg2rad(rng.normal(0, 4))),
            turn=float(np.deg2rad(rng.normal(0, 3))),
            shift=tuple(rng.normal(0, 3, 2).tolist()),
            warp=tuple(RandomField.draw(rng, 120.0, 10) for _ in range(3)),
            layers=_draw_layers(rng, atrophy),
            thickness=RandomField.draw(rng, 70.0, 10),
            cortex=Cortex.draw(rng, atrophy),
            deep=DeepStructures.draw(rng, atrophy),
            lesions=draw_lesions(rng, population.tumor, population.infarct, population.white_lesions),
        )

    def tissue(self, grid: SmoothGrid, height: float, edge: float, stripped: bool = False) -> Array:
        """Shares of the tissues in every pixel of one slice.

        Args:
            grid: rows are positions to the back (-y), columns positions to the right, both from the image center.
            height: z of the slice in mm.
            edge: width of a partial-volume edge in mm, about one pixel.
            stripped: leave only what lies inside the skull's dura, as brain extraction does.

        Returns:
            float32 (tissues, rows, columns) in the order of :data:`TISSUE_NAMES`; sums to 1 in every pixel.
        """
        position = self._head_position(*grid.coarse(), height)
        surface = self._surface(position)
        position = self.lesions.displace(position)
        layers = Layers(TISSUE_NAMES, edge)
        self._paint_head(layers, grid, position, surface, stripped)
        gray, white = self.cortex.paint(layers, grid, position, surface)
        self.deep.paint_nuclei(layers, grid, position)
        self.lesions.paint(layers, grid, position, gray, white)
        self.deep.paint_ventricles(layers, grid, position)
        return layers.shares()

    def _head_position(self, back: Array, right: Array, height: float) -> tuple[Array, Array, Array]:
        """Position in the subject's head of scanner positions, including the pose and the individual shape."""
        x, y = right - self.shift[0], -back - self.shift[1]
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        x, y, z = cos * x - sin * y, sin * x + cos * y, np.full_like(x, height)
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        y, z = cos * y - sin * z, sin * y + cos * z
        moved = [axis + 1.6 * field(x, y, z) for axis, field in zip((x, y, z), self.warp, strict=True)]
        x, y, z = (axis * np.float32(s) for axis, s in zip(moved, self.scale, strict=True))
        return x, y + np.float32(CENTER[1]), z

    @staticmethod
    def _surface(position: Sequence[Array]) -> Array:
        """Depth under the brain's surface, an ellipsoid that is wider behind than in front."""
        x, y, z = (axis - np.float32(c) for axis, c in zip(position, CENTER, strict=True))
        return ellipsoid_depth((x / (1 - 0.10 * y / 85), y, z), (66.0, 85.0, 71.0), 2.15)

    def _paint_head(
        self, layers: Layers, grid: SmoothGrid, position: Sequence[Array], surface: Array, stripped: bool
    ) -> None:
        """Paint scalp and skull from the outside in, then the fluid around the brain."""
        front = position[1] - 0.35 * position[2]
        surface, variation, front = grid.refine(surface, 1 + 0.10 * self.thickness(*position), front)
        if stripped:
            layers.paint("csf", surface + np.float32(0.3 * self.layers[0]))
            return
        fluid, inner, marrow, outer, fat, skin = np.cumsum(self.layers).astype(np.float32)
        layers.paint("skin", surface + skin * variation)
        scalp = surface + fat * variation
        layers.paint("fat", scalp)
        layers.paint("muscle", np.minimum(scalp - 1.5, 28 - np.abs(front - 4)))  # temporalis, at the sides
        layers.paint("bone", surface + outer * variation)
        layers.paint("marrow", surface + marrow * variation)
        layers.paint("bone", surface + inner * variation)
        layers.paint("csf", surface + fluid * variation)


def _draw_layers(rng: np.random.RandomState, atrophy: float) -> tuple[float, ...]:
    """Thickness in mm of outer fluid, inner table, marrow, outer table, fat, skin."""
    mean = np.array([1.8 + 2.2 * atrophy, 1.6, 2.6, 1.6, 4.0, 1.8])
    return tuple((mean * np.exp(rng.normal(0, [0.15, 0.15, 0.3, 0.15, 0.35, 0.1]))).tolist())
