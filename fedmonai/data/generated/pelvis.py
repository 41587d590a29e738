# SPDX-License-Identifier: Apache-2.0
"""A random male pelvis: continuous in three dimensions, evaluated slice by slice as shares of tissues per pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.layers import Layers
from fedmonai.data.generated.mr_tissue import Tissue, spin_echo
from fedmonai.data.generated.pelvis_frame import PelvicFrame
from fedmonai.data.generated.pelvis_organs import PelvicOrgans
from fedmonai.data.generated.prostate_gland import Gland
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid

#: Values of the usual size at 1.5 T; T2 of fat and muscle are the longer effective ones of a fast spin echo.
PELVIC_TISSUES: dict[str, Tissue] = {
    "air": Tissue(0.0, 1000.0, 100.0, 0.0),
    "skin": Tissue(0.60, 750.0, 50.0, 0.35),
    "fat": Tissue(0.85, 300.0, 145.0, 0.30),
    "fascia": Tissue(0.60, 700.0, 60.0, 0.35),
    "muscle": Tissue(0.80, 950.0, 46.0, 0.45),
    "cortex": Tissue(0.15, 400.0, 10.0, 0.20),
    "marrow": Tissue(0.60, 400.0, 88.0, 0.35),
    "flow": Tissue(0.10, 1400.0, 60.0, 0.30),
    "blood": Tissue(0.80, 1400.0, 110.0, 0.30),
    "wall": Tissue(0.80, 1000.0, 58.0, 0.40),
    "urine": Tissue(1.00, 3000.0, 700.0, 0.05),
    "vesicle": Tissue(0.95, 1700.0, 230.0, 0.25),
    "plexus": Tissue(0.88, 1100.0, 150.0, 0.30),
    "mucosa": Tissue(0.85, 1000.0, 120.0, 0.40),
    "gas": Tissue(0.01, 1000.0, 50.0, 0.0),
    "stool": Tissue(0.55, 900.0, 75.0, 0.30),
    "capsule": Tissue(0.70, 900.0, 48.0, 0.40),
    "stromal": Tissue(0.78, 950.0, 58.0, 0.40),
    "central": Tissue(0.85, 1150.0, 88.0, 0.35),
    "glandular": Tissue(0.90, 1300.0, 135.0, 0.35),
    "peripheral": Tissue(0.93, 1400.0, 165.0, 0.30),
    "lesion": Tissue(0.82, 1100.0, 76.0, 0.35),
    "urethra": Tissue(0.90, 1500.0, 170.0, 0.30),
}
PELVIC_TISSUE_NAMES = tuple(PELVIC_TISSUES)


@dataclass(frozen=True)
class Pelvis:
    """One man's pelvis. Positions in mm from the middle of the prostate: x to the left, y to the back, z up."""

    scale: float
    turn: float
    shift: tuple[float, float]
    warp: tuple[RandomField, ...]
    frame: PelvicFrame
    organs: PelvicOrgans
    gland: Gland

    @classmethod
    def draw(cls, rng: np.random.RandomState, volume: float, lesions: float, coil: bool) -> Pelvis:
        """Draw a man; arguments as in :meth:`Gland.draw`, ``coil`` = with an endorectal coil."""
        gland = Gland.draw(rng, volume, lesions, flattened=coil)
        return cls(
            scale=float(np.exp(rng.normal(0, 0.04))),
            turn=float(np.deg2rad(rng.normal(0, 3))),
            shift=(float(rng.normal(0, 4)), float(rng.normal(0, 5))),
            warp=tuple(RandomField.draw(rng, wavelength, 12) for wavelength in (90.0, 90.0, 28.0, 28.0)),
            frame=PelvicFrame.draw(rng, inner=gland.radii[0] + float(rng.uniform(2.5, 5.5))),
            organs=PelvicOrgans.draw(rng, gland, coil),
            gland=gland,
        )

    def tissue(self, grid: SmoothGrid, height: float, edge: float) -> tuple[Array, Array, Array]:
        """One slice.

        Args:
            grid: rows are positions to the back, columns positions to the left, both from the image center.
            height: z of the slice in mm.
            edge: width of a partial-volume edge in mm, about one pixel.

        Returns:
            float32 shares of the tissues (tissues, rows, columns) in the order of :data:`PELVIC_TISSUE_NAMES`, and
            the depths (rows, columns) in the prostate and in its central gland, positive inside.
        """
        x, y, z = self._body_position(*grid.coarse(), height)
        layers = Layers(PELVIC_TISSUE_NAMES, edge)
        self.frame.paint(layers, grid, (x / self.scale, y / self.scale, z))
        self.gland.paint_surroundings(layers, grid, (x, y, z))
        self.organs.paint(layers, grid, (x, y, z))
        whole, central = self.gland.paint(layers, grid, (x, y, z))
        return layers.shares(), whole, central

    def coil_center(self, height: float) -> tuple[float, float]:
        """(x, y) of the rectum's middle at a height, in scanner coordinates (without the small random warp)."""
        x, y = (float(axis[0]) for axis in self.organs.rectum_center(np.array([height], np.float32)))
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return cos * x - sin * y + self.shift[0], sin * x + cos * y + self.shift[1]

    def _body_position(self, back: Array, left: Array, height: float) -> tuple[Array, Array, Array]:
        """Position in the man's body of scanner positions, including his pose and individual shape."""
        x, y, z = left - self.shift[0], back - self.shift[1], np.full_like(left, height)
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        x, y = cos * x + sin * y, -sin * x + cos * y
        far, near = np.float32(2.2), np.float32(0.7)
        moved = [field(x, y, z) for field in self.warp]
        return x + far * moved[0] + near * moved[2], y + far * moved[1] + near * moved[3], z


def pelvic_signals(field_strength: float, tr: float, te: float) -> Array:
    """Signal of every tissue in a spin echo at ``field_strength`` tesla; times in ms."""
    ratio = field_strength / 1.5
    density, t1, t2, growth = (
        np.array([getattr(tissue, name) for tissue in PELVIC_TISSUES.values()])
        for name in ("density", "t1", "t2", "t1_growth")
    )
    return spin_echo(density, t1 * ratio**growth, t2 * ratio**-0.08, tr, te).astype(np.float32)
