# SPDX-License-Identifier: Apache-2.0
"""The organs around a generated prostate: bladder, seminal vesicles and rectum, with or without a coil in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.prostate_gland import Gland
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid, ellipsoid_depth, tube_depth

_COIL_RADIUS = 17.0  # mm of the inflated balloon of an endorectal coil


@dataclass(frozen=True)
class PelvicOrgans:
    """One man's bladder, vesicles and rectum, placed around his prostate.

    Attributes:
        gland: the prostate they touch.
        bladder: radii in mm (left-right, front-back, up-down).
        rectum: half width and half depth in mm.
        curve: how far the rectum bends to the side, in mm.
        content: ``gas``, ``stool`` or ``collapsed``; a coil replaces it.
        coil: whether an endorectal coil was used.
        convolution: random field that folds the vesicles.
    """

    gland: Gland
    bladder: tuple[float, float, float]
    rectum: tuple[float, float]
    curve: float
    content: str
    coil: bool
    convolution: RandomField

    @classmethod
    def draw(cls, rng: np.random.RandomState, gland: Gland, coil: bool) -> PelvicOrgans:
        """Draw the organs of the man whose prostate is ``gland``."""
        filling = float(rng.uniform(0.65, 1.2))
        return cls(
            gland=gland,
            bladder=(36 * filling, 27 * filling, 25 * filling),
            rectum=(float(rng.uniform(14, 21)), float(rng.uniform(11, 17))),
            curve=float(rng.normal(0, 3)),
            content=str(rng.choice(["gas", "stool", "collapsed"], p=[0.35, 0.4, 0.25])),
            coil=coil,
            convolution=RandomField.draw(rng, 7.0, 20),
        )

    def rectum_center(self, z: Array) -> tuple[Array, Array]:
        """(x, y) of the rectum's axis at heights ``z``: behind the prostate, turning to the back below it."""
        _, depth = self._rectum_radii()
        behind = np.float32(self.gland.radii[1] + 2.5 + depth)
        return np.float32(self.curve) * np.sin(z / 25), behind - 0.10 * np.minimum(z, 0) + 0.003 * z * z

    def paint(self, layers: Layers, grid: SmoothGrid, position: Sequence[Array]) -> None:
        """Paint the organs of one slice (the prostate itself is painted after them)."""
        x, y, z = position
        width, depth, height = self.bladder
        base = self.gland.radii[2]
        bladder = ellipsoid_depth((x, y + 12, z - (base + height - 5)), (width, depth, height), 2.3)
        vesicles = tube_depth(
            (np.abs(x), y, z), ((3, 9, base - 3), (16, 13, base + 6), (31, 9, base + 13)), (3.5, 6.5, 5)
        )
        below = -0.95 * base - z  # the urethra leaves the prostate through a muscle and enters the penile bulb
        sphincter = np.minimum(ellipsoid_depth((x, y, np.zeros_like(z)), (12, 11, 1e3)), below)
        bulb = ellipsoid_depth((x, y + 4, z + base + 22), (11, 13, 13))
        fields = bladder, vesicles, self._rectum(position), sphincter, bulb, self.convolution(x, y, z)
        bladder, vesicles, rectum, sphincter, bulb, folds = grid.refine(*fields)
        layers.paint("muscle", sphincter)
        layers.paint("urethra", sphincter - 8)
        layers.paint("capsule", bulb)
        layers.paint("plexus", bulb - 1)
        layers.paint("wall", bladder + 3.5)
        layers.paint("urine", bladder)
        layers.paint("wall", vesicles + 0.8)
        layers.paint("vesicle", vesicles, within=np.clip(1.25 - 1.6 * np.exp(-6 * folds**2), 0, 1))
        self._paint_rectum(layers, rectum, folds)

    def _rectum_radii(self) -> tuple[float, float]:
        return (_COIL_RADIUS + 4, _COIL_RADIUS + 3) if self.coil else self.rectum

    def _rectum(self, position: Sequence[Array]) -> Array:
        x, y, z = position
        middle = self.rectum_center(z)
        width, depth = self._rectum_radii()
        narrowing = np.clip(1 + (z + 18) / 60, 0.55, 1) if not self.coil else np.float32(1)
        return ellipsoid_depth(
            ((x - middle[0]) / narrowing, (y - middle[1]) / narrowing, np.zeros_like(z)), (width, depth, 1e3)
        )

    def _paint_rectum(self, layers: Layers, rectum: Array, folds: Array) -> None:
        layers.paint("wall", rectum)
        if self.coil:  # a balloon filled with a fluid without signal, between bright mucosa
            layers.paint("mucosa", rectum - 1.8)
            layers.paint("gas", rectum - 3.0)
            return
        layers.paint("mucosa", rectum - 2.6 - 0.5 * folds)
        if self.content == "collapsed":
            layers.paint("wall", rectum - 5.0 - 1.2 * folds)
        else:
            layers.paint(self.content, rectum - 4.4 - (1.0 * folds if self.content == "stool" else 0))
