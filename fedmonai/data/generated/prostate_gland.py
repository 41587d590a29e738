# SPDX-License-Identifier: Apache-2.0
"""Prostate drawn at random: outline, peripheral zone, nodular central gland, stroma, urethra, perhaps a lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.shapes import (
    Array,
    Layers,
    RandomField,
    SmoothGrid,
    beyond,
    ellipsoid_depth,
    rounded_minimum,
    tube_depth,
)

_SPHERE = 4.18879  # volume of the unit sphere


@dataclass(frozen=True)
class Nodule:
    """A nodule of the central gland: center and radius in mm, bright (glandular) or dark (stromal)."""

    center: tuple[float, float, float]
    radius: float
    tissue: str


@dataclass(frozen=True)
class Gland:
    """One man's prostate; positions in mm from its middle: x to the left, y to the back, z up.

    Attributes:
        radii: half width, half depth, half height.
        enlargement: size of the central gland relative to the whole, 0.56 young to 0.88 with hyperplasia.
        unevenness: random field that makes the outline irregular.
        zone_unevenness: the same for the border between the zones.
        mottle: random field of the central gland's texture.
        nodules: of the central gland.
        lesion: center and radii of a tumor in the peripheral zone, or None.
    """

    radii: tuple[float, float, float]
    enlargement: float
    unevenness: RandomField
    zone_unevenness: RandomField
    mottle: RandomField
    nodules: tuple[Nodule, ...]
    lesion: tuple[tuple[float, float, float], tuple[float, float, float]] | None

    @classmethod
    def draw(cls, rng: np.random.RandomState, volume: float, lesions: float, flattened: bool = False) -> Gland:
        """Draw a prostate.

        Args:
            rng: source of all draws.
            volume: mean volume of the population in ml; the man's own scatters around it by a quarter.
            lesions: share of men with a visible tumor.
            flattened: pressed from behind by a coil.
        """
        own = volume * float(np.exp(rng.normal(0, 0.25)))
        enlargement = float(np.clip(0.70 + 0.10 * np.log2(own / 35) + rng.normal(0, 0.04), 0.56, 0.88))
        shape = np.array([1.22, 0.86, 1.0]) * np.exp(rng.normal(0, 0.05, 3))
        if flattened:
            shape = shape * np.array([1.08, 0.86, 1.05])
        radii = shape * np.cbrt(own * 1000 / (_SPHERE * np.prod(shape)))
        central = _central_radii(radii, enlargement)
        return cls(
            radii=(float(radii[0]), float(radii[1]), float(radii[2])),
            enlargement=enlargement,
            unevenness=RandomField.draw(rng, 30.0, 16),
            zone_unevenness=RandomField.draw(rng, 22.0, 16),
            mottle=RandomField.draw(rng, 6.0, 28, 0.5),
            nodules=tuple(_draw_nodules(rng, central, radii[1], enlargement)),
            lesion=_draw_lesion(rng, radii) if rng.uniform() < lesions else None,
        )

    def depth(self, position: Sequence[Array]) -> Array:
        """Depth in the whole prostate: an ellipsoid, narrower at its apex, hollow where the rectum lies."""
        x, y, z = position
        width, thickness, height = self.radii
        taper = 1 - 0.16 * np.clip(-z / height, 0, 1)
        hollow = 0.10 * thickness * np.exp(-((x / (0.45 * width)) ** 2))
        behind = 1 / (1 + np.exp(-4 * y / thickness))
        front = 1 + 0.22 * (1 - behind) * (np.abs(x) / width) ** 2  # the front is narrower than the back
        body = ellipsoid_depth((x / taper * front, (y + hollow * behind) / taper, z), (width, thickness, height), 2.25)
        return body + 0.8 * self.unevenness(x, y, z)

    def central_depth(self, position: Sequence[Array]) -> Array:
        """Depth in the central gland, regardless of the outline of the whole."""
        x, y, z = position
        width, thickness, height = _central_radii(self.radii, self.enlargement)
        low, high = self._central_middle()
        body = ellipsoid_depth((x, y - low, z - high), (width, thickness, height), 2.2)
        cleft = 2.0 * np.exp(-((x / 3.0) ** 2)) * np.clip((y - low) / thickness, 0, 1)  # between the two lobes
        return body - cleft + 0.9 * self.zone_unevenness(x, y, z)

    def paint_surroundings(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> None:
        """Paint the veins and the fascia around the prostate; the organs beside it are painted over them."""
        x, y, z = position
        whole, mottle = grid.refine(self.depth(position), self.mottle(x, y, z))
        layers.paint("fascia", whole + 6.0 + 0.8 * mottle, within=0.5)
        layers.paint("plexus", whole + 5.4 + 0.8 * mottle, within=np.clip(0.45 + 0.5 * mottle, 0, 1))

    def paint(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> tuple[Array, Array]:
        """Paint the prostate of one slice; returns the depths in it and in its central gland at full resolution."""
        x, y, z = position
        _, thickness, height = self.radii
        near = [nodule for nodule in self.nodules if abs(float(z.flat[0]) - nodule.center[2]) < nodule.radius + 4]
        spheres = [
            ellipsoid_depth([axis - c for axis, c in zip(position, nodule.center, strict=True)], [nodule.radius] * 3)
            for nodule in near
        ]
        front = 0.42 * thickness - np.hypot(x * 0.55, y + 1.02 * thickness)
        urethra = tube_depth(
            position, ((0, -1, 1.2 * height), (0, 1.5, 0), (0, -0.2 * thickness, -1.1 * height)), (2.2, 2.6, 2.0)
        )
        lesion = np.full_like(x, -1e3)
        if self.lesion is not None:
            center, radii = self.lesion
            lesion = ellipsoid_depth([axis - c for axis, c in zip(position, center, strict=True)], radii)
        fields = grid.refine(
            self.depth(position), self.central_depth(position), front, urethra, lesion, self.mottle(x, y, z), *spheres
        )
        whole, central, front, urethra, lesion, mottle, *spheres = fields
        layers.paint("capsule", whole + 0.5)
        layers.paint("peripheral", whole - 0.3)
        layers.paint("stromal", rounded_minimum(whole - 0.5, 5.5 - 2.0 * beyond(np.abs(mottle), 0.3), 1), within=0.10)
        layers.paint("lesion", np.minimum(lesion + 0.8 * mottle, whole - 0.6))
        inner = np.minimum(central, whole - 1.0)
        layers.paint("capsule", inner, within=0.8)
        layers.paint("central", inner - 0.9)
        layers.paint("glandular", np.minimum(inner - 1.2, 1.6 * (mottle - 0.7)), within=0.55)
        layers.paint("stromal", np.minimum(inner - 1.2, 1.6 * (-mottle - 0.8)), within=0.6)
        for nodule, sphere in zip(near, spheres, strict=True):
            inside = np.minimum(sphere + 0.6 * mottle, inner - 1.0)
            layers.paint("capsule", inside, within=0.85)
            layers.paint(nodule.tissue, inside - 0.8, within=np.clip(0.85 + 0.15 * mottle, 0.5, 1))
        layers.paint("stromal", np.minimum(front, whole - 0.4), within=0.9)
        layers.paint("capsule", np.minimum(urethra + 1.0, whole - 1), within=0.6)
        layers.paint("urethra", np.minimum(urethra - 0.2, whole - 1), within=0.8)
        return whole, central

    def _central_middle(self) -> tuple[float, float]:
        """y and z of the central gland: it lies in front and reaches the base."""
        return -0.20 * self.radii[1], 0.18 * self.radii[2]


def _central_radii(radii: Sequence[float], enlargement: float) -> tuple[float, float, float]:
    return 0.98 * enlargement * radii[0], 1.06 * enlargement * radii[1], 1.12 * enlargement * radii[2]


def _draw_nodules(
    rng: np.random.RandomState, central: tuple[float, float, float], thickness: float, enlargement: float
) -> list[Nodule]:
    """More and larger nodules in an enlarged gland, in both lobes."""
    nodules = []
    for _ in range(rng.poisson(3 + 26 * max(0.0, enlargement - 0.58))):
        direction = rng.standard_normal(3)
        direction *= rng.uniform(0.25, 0.85) / np.linalg.norm(direction)
        x, y, z = direction * np.array(central)
        radius = float(np.clip(rng.lognormal(np.log(3.6), 0.35), 2.0, 8.0))
        tissue = "glandular" if rng.uniform() < 0.55 else "stromal"
        nodules.append(Nodule((float(x), float(y - 0.20 * thickness), float(z + 3)), radius, tissue))
    return nodules


def _draw_lesion(
    rng: np.random.RandomState, radii: Sequence[float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """A tumor in the back of the peripheral zone, left or right of the midline."""
    angle = float(rng.uniform(0.35, 1.15)) * (1 if rng.uniform() < 0.5 else -1)
    center = (
        0.82 * radii[0] * np.sin(angle),
        0.80 * radii[1] * np.cos(angle),
        float(rng.uniform(-0.5, 0.3)) * radii[2],
    )
    size = rng.uniform(3.5, 7.0, 3)
    return (float(center[0]), float(center[1]), float(center[2])), (
        float(size[0]),
        0.7 * float(size[1]),
        float(size[2]),
    )
