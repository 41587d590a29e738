# SPDX-License-Identifier: Apache-2.0
"""Generated pelvis: frame, organs, and both as layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmonai.data.generated.mr_tissue import Tissue, spin_echo
from fedmonai.data.generated.prostate_gland import Gland
from fedmonai.data.generated.shapes import Array, Layers, Point, RandomField, SmoothGrid, ellipsoid_depth, tube_depth

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

    def left_of_middle(self, grid: SmoothGrid, height: float) -> Array:
        """Distance in mm of the pixels of one slice from the man's middle plane, positive on his left."""
        return grid.refine(self._body_position(*grid.coarse(), height)[0])[0]

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
