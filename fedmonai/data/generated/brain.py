# SPDX-License-Identifier: Apache-2.0
"""Generated brain: head, deep structures, folds and lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.mr_tissue import TISSUE_NAMES
from fedmonai.data.generated.shapes import (
    Array,
    Layers,
    Point,
    RandomField,
    SmoothGrid,
    beyond,
    coverage,
    ellipsoid_depth,
    rounded_minimum,
    tube_depth,
)

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


@dataclass(frozen=True)
class Lesions:
    """Lesions of one subject; a size of 0 is none of that kind."""

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


COARSE_STEP = 2.5  # mm; folds have a wavelength of 24 mm, everything else is smoother
# Slices lie between these heights (mm): from the basal ganglia to above the corpus callosum.
LOWEST, HIGHEST = -4.0, 54.0


@dataclass(frozen=True)
class Population:
    """Population: the subjects of an institution.

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
