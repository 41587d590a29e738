# SPDX-License-Identifier: Apache-2.0
"""What surrounds the organs of a generated pelvis: skin, fat, muscles, bones and large vessels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.shapes import Array, Point, RandomField, SmoothGrid, ellipsoid_depth, tube_depth

_CORTEX = 1.6  # mm of cortical bone around the marrow

#: Right and left alike, x = distance from the midline; (points, radii) of tubes in mm from the middle of the prostate.
_MUSCLES: dict[str, tuple[Sequence[Point], Sequence[float]]] = {
    "pectineus": (((14, -68, -8), (48, -66, -12), (100, -46, -22)), (7, 20, 22)),
    "adductors": (((14, -42, -42), (46, -46, -34), (84, -24, -34)), (8, 20, 22)),
    "rectus": (((4, -84, 70), (17, -82, 30), (24, -74, 2)), (6, 8, 6)),
    "iliopsoas": (((72, -60, 70), (88, -58, 0), (98, -42, -50)), (20, 22, 16)),
    "gluteus": (((18, 82, 50), (60, 90, 6), (116, 54, -46)), (16, 30, 36)),
    "quadratus": (((58, 30, -34), (92, 26, -32), (120, 14, -30)), (9, 12, 12)),
}
_BONES: dict[str, tuple[Sequence[Point], Sequence[float]]] = {
    "pubis": (((2, -41, -22), (26, -47, -12), (64, -34, 10)), (8, 7.5, 12)),
    "lower pubis": (((3, -38, -26), (24, -18, -46), (50, 18, -54)), (6.5, 6.5, 11)),
    "ischium": (((74, 4, 18), (66, 20, -14), (56, 28, -50)), (17, 14, 14)),
    "coccyx": (((0, 62, 50), (0, 68, 22), (0, 58, 2)), (9, 7, 3.5)),
}


@dataclass(frozen=True)
class PelvicFrame:
    """One man's body around the organs.

    Attributes:
        inner: distance of the pelvic floor from the midline in mm.
        fat: thickness of the fat under the skin relative to the usual, in mm more.
        muscle: radius of the muscles relative to the usual.
        obturator: half thickness of the internal obturator muscles in mm.
        levator: half thickness of the pelvic floor in mm.
        vessel: place of the femoral vessels, in mm off the usual.
        septa, streaks: random fields of the texture of fat and muscle.
    """

    inner: float
    fat: float
    muscle: float
    obturator: float
    levator: float
    vessel: tuple[float, float]
    septa: RandomField
    streaks: RandomField

    @classmethod
    def draw(cls, rng: np.random.RandomState, inner: float) -> PelvicFrame:
        """Draw a man whose pelvic floor is ``inner`` mm from the midline beside the prostate."""
        return cls(
            inner=inner,
            fat=float(rng.uniform(-8, 14)),
            muscle=float(rng.uniform(0.88, 1.08)),
            obturator=float(rng.uniform(8.0, 11.0)),
            levator=float(rng.uniform(1.6, 2.6)),
            vessel=(float(rng.normal(0, 3)), float(rng.normal(0, 3))),
            septa=RandomField.draw(rng, 18.0, 24, 0.5),
            streaks=RandomField.draw(rng, 8.0, 24, 0.4),
        )

    def paint(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> None:
        """Paint the frame of one slice; ``position`` is (x to the left, y to the back, z up) on the coarse grid."""
        x, y, z = position
        side = (np.abs(x), y, z)
        body = ellipsoid_depth((x, y - 4, np.zeros_like(z)), (178 + self.fat, 112 + self.fat, 1e3), 2.4)
        muscles = [self._tube(side, *shape) for shape in _MUSCLES.values()]
        bones = [tube_depth(side, *shape) for shape in _BONES.values()]
        bones.append(ellipsoid_depth((side[0] - 76, y + 12, z - 20), (17, 27, 33)))  # acetabulum
        bone = np.max(bones, axis=0)
        head = ellipsoid_depth((side[0] - 100, y + 12, z - 12), (25, 25, 25))
        joint = ellipsoid_depth((side[0] - 100, y + 12, z - 12), (28, 28, 28))
        septa, streaks = self.septa(x, y, z), self.streaks(x, y, z)
        groin = [tube_depth(side, ((66 + dx + self.vessel[0], -92 + self.vessel[1], -60),
                                   (62 + dx + self.vessel[0], -84 + self.vessel[1], 70)), (4.5, 4.5))
                 for dx in (0, 12)]  # fmt: skip
        floor = self._levator(side), self._obturator(side)
        fields = grid.refine(body, bone, head, joint, septa, streaks, *floor, *groin, *muscles)
        body, bone, head, joint, septa, streaks, levator, obturator, *rest = fields
        groin, muscles = rest[:2], rest[2:]
        layers.paint("skin", body)
        layers.paint("fat", body - 2)
        layers.paint("fascia", 0.4 - 2.4 * np.abs(septa), within=0.38)
        layers.paint("fascia", 1.5 * (streaks - 1.4), within=0.25)
        bundles = 3.0 * (np.abs(septa + 0.6 * streaks) - 0.14)  # fat between the bundles of a muscle
        for depth in (*muscles, obturator):
            layers.paint("fat", depth + 0.7)
            layers.paint("muscle", depth, within=np.clip(0.86 + 0.5 * bundles, 0.72, 1))
        layers.paint("fat", joint)
        layers.paint("cortex", np.minimum(bone, -head))
        layers.paint("marrow", np.minimum(bone - _CORTEX, -head - 2), within=np.clip(0.85 + 0.1 * septa, 0, 1))
        layers.paint("cortex", head)
        layers.paint("marrow", head - _CORTEX)
        layers.paint("muscle", levator)
        for depth, content in zip(groin, ("flow", "blood"), strict=True):
            layers.paint("wall", depth)
            layers.paint(content, depth - 1.2)

    def _tube(self, side: Sequence[Array], points: Sequence[Point], radii: Sequence[float]) -> Array:
        return tube_depth(side, points, [radius * self.muscle for radius in radii])

    def _obturator(self, side: Sequence[Array]) -> Array:
        """The internal obturator: a plate inside of the bone, from the pubis to behind the ischium."""
        points = ((36, -40, 2), (47, -14, 0), (52, 16, -4), (50, 44, -8))
        plate = tube_depth((side[0] - 0.10 * side[2] + 34 - self.inner, side[1], 0.25 * side[2]), points, (3, 4, 3, 3))
        return plate + np.float32(self.obturator - 1)

    def _levator(self, side: Sequence[Array]) -> Array:
        """The pelvic floor: a thin funnel around prostate and rectum, narrower below, open in front."""
        x, y, z = side
        width = self.inner + 0.40 * np.clip(z, -45, 12)
        ring = ellipsoid_depth((x * 34 / width, y - 12, np.zeros_like(z)), (34, 46, 1e3), 2.3)
        shell = np.float32(self.levator) - np.abs(ring)
        return np.minimum(np.minimum(shell, y + 24), 20 - z)
