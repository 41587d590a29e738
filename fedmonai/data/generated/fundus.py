# SPDX-License-Identifier: Apache-2.0
"""Fundus-like pictures of the optic disc with exact masks of cup and rim, in the styles of five sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedmonai.data.generated.octa import draw_vessels, grow_vessels
from fedmonai.data.generated.shapes import inside, outline_distance, plane, smooth_field

__all__ = ["FUNDUS_CLASSES", "FUNDUS_SITES", "FundusStyle", "draw_fundus"]

#: background 0, cup 1, rim 2 (the disc is both); 3 is unlabeled
FUNDUS_CLASSES = 3

Color = tuple[float, float, float]


@dataclass(frozen=True)
class FundusStyle:
    """Camera and population of a site.

    Args:
        retina, rim, cup: usual colors (red, green, blue in 0..1).
        disc_radius: usual radius of the disc, in half sides of the image.
        cup_ratio: smallest and largest ratio of cup and disc radius.
        cup_edge: softness of the border of the cup, in half sides.
        vessel: darkness of the vessels, 0..1.
        atrophy: brightness of the ring around the disc, negative for a dark one.
        texture: strength of the choroidal pattern.
        vignette: fall of the illumination towards the corners, 0..1.
        aperture: chance that the round border of the camera's field crosses the picture.
        gamma, blur, noise: of the camera; blur in pixels of a picture of 384.
    """

    retina: Color
    rim: Color
    cup: Color
    disc_radius: float
    cup_ratio: tuple[float, float]
    cup_edge: float
    vessel: float
    atrophy: float
    texture: float
    vignette: float
    aperture: float
    gamma: float
    blur: float
    noise: float


#: in the order of the sites of FedICRA: dark and brown; red and close; gray-green; warm brown; bright and yellow
FUNDUS_SITES = (
    FundusStyle((0.34, 0.17, 0.07), (0.62, 0.32, 0.15), (0.74, 0.56, 0.34), 0.62, (0.45, 0.8), 0.035, 0.55, -0.03, 0.05,
                0.45, 0.0, 1.1, 1.4, 0.008),
    FundusStyle((0.62, 0.24, 0.14), (0.85, 0.45, 0.30), (0.95, 0.72, 0.52), 0.74, (0.35, 0.7), 0.05, 0.6, 0.04, 0.07,
                0.25, 0.0, 0.9, 0.9, 0.02),
    FundusStyle((0.36, 0.36, 0.30), (0.85, 0.47, 0.38), (1.0, 0.92, 0.72), 0.58, (0.3, 0.65), 0.06, 0.7, 0.06, 0.10,
                0.30, 0.7, 1.0, 0.8, 0.012),
    FundusStyle((0.52, 0.33, 0.14), (0.88, 0.52, 0.25), (0.98, 0.80, 0.36), 0.56, (0.3, 0.65), 0.07, 0.5, 0.03, 0.06,
                0.35, 0.3, 1.0, 1.2, 0.01),
    FundusStyle((0.76, 0.45, 0.22), (0.93, 0.65, 0.35), (1.0, 0.92, 0.66), 0.66, (0.4, 0.75), 0.045, 0.45, -0.05, 0.05,
                0.15, 0.0, 0.85, 0.6, 0.025),
)  # fmt: skip


def draw_fundus(generator: np.random.RandomState, style: FundusStyle, size: int = 384) -> tuple[np.ndarray, np.ndarray]:
    """Picture float32 ``(3, size, size)`` in [0, 1] and mask uint8 ``(size, size)`` of one eye."""
    center = (generator.uniform(-0.1, 0.1), generator.uniform(-0.1, 0.1))
    radius = style.disc_radius * generator.uniform(0.88, 1.12)
    disc = outline_distance(generator, size, center, radius, 0.02, generator.uniform(1.0, 1.2), 4)
    cup = _cup_distance(generator, style, size, center, radius)
    cup = np.maximum(cup, disc + 0.06 * radius)  # the cup ends before the disc
    mask = np.where(cup < 0, 1, np.where(disc < 0, 2, 0)).astype(np.uint8)
    picture = _tissue(generator, style, size, disc, cup)
    veins, arteries = _arcades(generator, center, size)
    for coverage, darkness in ((veins, (0.35, 0.85, 0.8)), (arteries, (0.15, 0.65, 0.65))):
        picture *= 1 - style.vessel * coverage * np.array(darkness)[:, None, None]
    return _photograph(generator, style, picture).astype(np.float32), mask


def _cup_distance(
    generator: np.random.RandomState, style: FundusStyle, size: int, center: tuple[float, float], radius: float
) -> np.ndarray:
    ratio = generator.uniform(*style.cup_ratio)
    room = 0.5 * radius * (1 - ratio)
    place = (center[0] + generator.uniform(-room, room), center[1] + generator.uniform(-0.3, 1.0) * room)
    return outline_distance(generator, size, place, ratio * radius, 0.05, generator.uniform(0.9, 1.15), 4)


def _tissue(
    generator: np.random.RandomState, style: FundusStyle, size: int, disc: np.ndarray, cup: np.ndarray
) -> np.ndarray:
    """Retina, disc and cup without vessels, ``(3, size, size)``."""
    shift = generator.uniform(0.85, 1.15)

    def colored(color: Color) -> np.ndarray:
        return (np.array(color) * shift * generator.uniform(0.93, 1.07, 3))[:, None, None]

    pattern = smooth_field(generator, size, 0.25) + 0.6 * smooth_field(generator, size, 0.05)
    retina = colored(style.retina) * (1 + style.texture * pattern)
    ring = style.atrophy * np.exp(-np.square((disc - 0.05) / 0.07))
    retina = retina + ring * (1 + 0.5 * smooth_field(generator, size, 0.15))
    on_disc = inside(disc, 0.018)
    in_cup = inside(cup, style.cup_edge * generator.uniform(0.7, 1.3))
    rim = colored(style.rim) * (1 + 0.05 * smooth_field(generator, size, 0.2))
    picture = retina * (1 - on_disc) + rim * on_disc
    pallor = in_cup * generator.uniform(0.75, 1.0)
    return picture * (1 - pallor) + colored(style.cup) * (1 + 0.04 * smooth_field(generator, size, 0.1)) * pallor


def _arcades(generator: np.random.RandomState, center: tuple[float, float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of veins and arteries that leave the disc upwards and downwards and branch."""
    trunk = (center[0] + generator.uniform(-0.08, 0.08), center[1] + generator.uniform(-0.22, 0.0))
    layers = []
    for width in (0.032, 0.022):
        vessels = []
        for heading in (-np.pi / 2, np.pi / 2):
            for _ in range(generator.randint(1, 3)):
                away = heading + generator.uniform(-0.7, 0.7)
                length = generator.uniform(1.1, 1.6)
                vessels += grow_vessels(
                    generator, trunk, away, width * generator.uniform(0.8, 1.2), length, 0.8, 1.8, 0.006
                )
        for _ in range(generator.randint(2, 5)):
            away = generator.uniform(-np.pi, np.pi)
            vessels += grow_vessels(generator, trunk, away, width * 0.4, generator.uniform(0.7, 1.3), 0.9, 0.8, 0.006)
        layers.append(draw_vessels(vessels, size))
    return layers[0], layers[1]


def _photograph(generator: np.random.RandomState, style: FundusStyle, picture: np.ndarray) -> np.ndarray:
    """Illumination, optics, sensor and the border of the field."""
    size = picture.shape[-1]
    rows, columns = plane(size)
    tilt = generator.uniform(-0.12, 0.12, 2)
    light = 1 - style.vignette * 0.5 * (rows**2 + columns**2) / 2 + tilt[0] * rows + tilt[1] * columns
    picture = np.clip(picture * light, 0, 1) ** style.gamma
    picture = ndimage.gaussian_filter(picture, (0, style.blur * size / 384, style.blur * size / 384))
    picture = picture + style.noise * generator.standard_normal(picture.shape)
    if generator.uniform() < style.aperture:
        side = generator.choice([-1.0, 1.0])
        reach = generator.uniform(2.4, 2.9)
        field = np.hypot(rows + generator.uniform(-0.3, 0.3), columns + side * (reach - generator.uniform(0.82, 0.97)))
        picture = picture * inside(field - reach, 0.004)
    return np.clip(picture, 0, 1)
