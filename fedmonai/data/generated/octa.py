# SPDX-License-Identifier: Apache-2.0
"""Generated OCTA pictures: vessels and the foveal avascular zone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedmonai.data.generated.shapes import inside, line_network, outline_distance, plane, smooth_field

__all__ = ["OCTA_CLASSES", "OCTA_SITES", "OctaStyle", "Vessel", "draw_octa", "draw_vessels", "grow_vessels"]


@dataclass(frozen=True)
class Vessel:
    """A curved tube.

    Args:
        points: ``(n, 2)`` center line as (row, column), both in [-1, 1] over the image.
        widths: ``(n,)`` half width at each point, in half sides of the image.
        strength: 0..1, how strongly it is seen.
    """

    points: np.ndarray
    widths: np.ndarray
    strength: float


def grow_vessels(
    generator: np.random.RandomState,
    start: tuple[float, float],
    heading: float,
    width: float,
    length: float,
    bend: float = 0.5,
    branching: float = 1.2,
    smallest: float = 0.004,
    strength: float = 1.0,
    target: tuple[float, float] | None = None,
) -> list[Vessel]:
    """A vessel and its branches: a random walk of the heading, from which thinner vessels leave to both sides.

    Args:
        generator: source of all randomness.
        start: (row, column) of the beginning.
        heading: direction in radians, 0 is towards larger columns, pi / 2 towards larger rows.
        width: half width at the beginning; branches have about two thirds of it.
        length: length of the center line, in half sides of the image.
        bend: how much the heading wanders per unit of length, in radians.
        branching: expected number of branches per unit of length.
        smallest: branches thinner than this are not grown.
        strength: passed on to the vessels; branches are a little weaker.
        target: a point the heading is slowly drawn to.
    """
    step = 0.02
    count = max(int(length / step), 2)
    drift = np.cumsum(generator.standard_normal(count)) * bend * np.sqrt(step)
    sway = 0.35 * np.sin(np.linspace(0, generator.uniform(2, 5), count) + generator.uniform(0, 2 * np.pi))
    points = np.empty((count, 2))
    headings = heading + drift + sway * bend
    position = np.array(start, dtype=float)
    for index in range(count):
        points[index] = position
        if target is not None:
            wanted = np.arctan2(target[0] - position[0], target[1] - position[1])
            turn = (wanted - headings[index] + np.pi) % (2 * np.pi) - np.pi
            headings[index:] += 0.05 * turn
        position = position + step * np.array([np.sin(headings[index]), np.cos(headings[index])])
    widths = width * np.linspace(1.0, 0.6, count)
    vessels = [Vessel(points, widths, strength)]
    for _ in range(generator.poisson(branching * length)):
        thinner = width * generator.uniform(0.5, 0.75)
        if thinner < smallest:
            continue
        place = generator.randint(count // 6, count)
        side = generator.choice([-1.0, 1.0]) * generator.uniform(0.5, 1.1)
        begin = (float(points[place, 0]), float(points[place, 1]))
        vessels += grow_vessels(
            generator,
            begin,
            float(headings[place] + side),
            thinner,
            length * generator.uniform(0.35, 0.6),
            bend * 1.2,
            branching,
            smallest,
            strength * 0.9,
            target,
        )
    return vessels


def draw_vessels(vessels: list[Vessel], size: int) -> np.ndarray:
    """Coverage ``(size, size)`` in [0, 1]: a soft profile across each vessel; where two cross, the stronger one."""
    canvas = np.zeros((size, size), dtype=np.float32)
    for vessel in vessels:
        centers = (vessel.points + 1) * (size - 1) / 2
        radii = np.maximum(vessel.widths * size / 2, 0.45)
        for (row, column), radius in zip(centers, radii, strict=True):
            reach = int(np.ceil(2 * radius)) + 1
            top, left = int(row) - reach, int(column) - reach
            rows = np.arange(max(top, 0), min(top + 2 * reach + 2, size))
            columns = np.arange(max(left, 0), min(left + 2 * reach + 2, size))
            if not rows.size or not columns.size:
                continue
            distance = np.square(rows[:, None] - row) + np.square(columns[None] - column)
            patch = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            np.maximum(patch, vessel.strength * np.exp(-distance / (1.2 * radius**2)), out=patch)
    return canvas


#: background 0, avascular zone 1; 2 is unlabeled
OCTA_CLASSES = 2


@dataclass(frozen=True)
class OctaStyle:
    """Device and field of view of a site.

    Args:
        zone_radius: usual radius of the avascular zone, in half sides of the image (larger for a smaller field).
        zone_roughness: how jagged its outline is.
        zone_level: flow seen inside of it (leaks, projections), relative to that outside.
        dropout: loss of flow in patches outside of it, 0..1.
        mesh: size of the capillary meshes, in half sides.
        capillary: brightness of the capillaries.
        haze: even brightness between them.
        vessel: brightness of the large vessels; vessel_width their half width.
        speckle: multiplicative noise; noise: additive noise.
        stripes: strength of motion stripes, row by row.
        gamma, blur: of the device; blur in pixels of a picture of 256.
    """

    zone_radius: float
    zone_roughness: float
    zone_level: float
    dropout: float
    mesh: float
    capillary: float
    haze: float
    vessel: float
    vessel_width: float
    speckle: float
    noise: float
    stripes: float
    gamma: float
    blur: float


#: in the order of the sites of FedICRA: clinical scans; 3 mm; 6 mm; 3 mm with strong contrast; few, coarse scans
OCTA_SITES = (
    OctaStyle(0.24, 0.10, 0.55, 0.45, 0.035, 0.45, 0.22, 0.65, 0.022, 0.45, 0.05, 0.04, 1.0, 0.6),
    OctaStyle(0.27, 0.08, 0.35, 0.60, 0.040, 0.60, 0.10, 0.75, 0.020, 0.30, 0.04, 0.02, 1.0, 0.7),
    OctaStyle(0.15, 0.09, 0.38, 0.50, 0.020, 0.50, 0.18, 0.70, 0.014, 0.40, 0.04, 0.03, 0.9, 0.5),
    OctaStyle(0.20, 0.14, 0.25, 0.55, 0.025, 0.45, 0.12, 1.00, 0.020, 0.60, 0.03, 0.08, 1.2, 0.4),
    OctaStyle(0.25, 0.10, 0.40, 0.40, 0.055, 0.70, 0.08, 0.80, 0.026, 0.20, 0.03, 0.00, 1.1, 1.1),
)


def draw_octa(generator: np.random.RandomState, style: OctaStyle, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Picture float32 ``(1, size, size)`` in [0, 1] and mask uint8 ``(size, size)`` of one scan."""
    center = (generator.uniform(-0.12, 0.12), generator.uniform(-0.12, 0.12))
    radius = style.zone_radius * generator.uniform(0.75, 1.3)
    zone = outline_distance(generator, size, center, radius, style.zone_roughness, generator.uniform(0.8, 1.25), 7)
    mask = (zone < 0).astype(np.uint8)
    perfused = 1 - inside(zone, 0.012)
    # Dark patches elsewhere, so that darkness alone does not make the zone.
    dropout = style.dropout * inside(1.3 - smooth_field(generator, size, 0.18), 0.15)
    capillaries = 0.6 * line_network(generator, size, style.mesh) + 0.4 * line_network(generator, size, style.mesh / 2)
    capillaries *= 0.8 + 0.15 * smooth_field(generator, size, 0.3)
    border = np.exp(-np.square((zone - 0.012) / 0.010)) * np.clip(0.6 + 0.4 * smooth_field(generator, size, 0.08), 0, 1)
    flow = (1 - dropout) * (style.haze + style.capillary * np.clip(capillaries + 0.5 * border, 0, 1))
    leak = style.zone_level * (0.7 + 0.3 * smooth_field(generator, size, 0.1) + 0.5 * capillaries)
    flow = perfused * flow + (1 - perfused) * np.clip(leak, 0, 1) * (style.haze + 0.3 * style.capillary)
    large = draw_vessels(_large_vessels(generator, style, center), size) * inside(0.02 - zone, 0.02)
    flow = np.maximum(flow, style.vessel * large)
    return _scan(generator, style, flow)[None].astype(np.float32), mask


def _large_vessels(generator: np.random.RandomState, style: OctaStyle, center: tuple[float, float]) -> list[Vessel]:
    """Arcades along the upper and lower border, and vessels from all around that run towards the zone."""
    vessels: list[Vessel] = []
    for side in (-1.0, 1.0):
        start = (side * generator.uniform(0.75, 1.0), -1.05)
        vessels += grow_vessels(
            generator, start, -side * generator.uniform(-0.1, 0.25), 1.3 * style.vessel_width, 2.2, 0.25, 1.0, 0.008
        )
    for angle in np.arange(0, 2 * np.pi, 2 * np.pi / 12) + generator.uniform(0, 1):
        reach = generator.uniform(1.0, 1.3)
        start = (center[0] + reach * np.sin(angle), center[1] + reach * np.cos(angle))
        width = style.vessel_width * generator.uniform(0.45, 0.9)
        length = generator.uniform(0.5, 0.9) * reach
        vessels += grow_vessels(
            generator, start, angle + np.pi + generator.uniform(-0.4, 0.4), width, length, 1.0, 1.6, 0.006, 0.9, center
        )
    return vessels


def _scan(generator: np.random.RandomState, style: OctaStyle, flow: np.ndarray) -> np.ndarray:
    """Speckle, noise, motion stripes and the device's contrast."""
    size = flow.shape[-1]
    rows, columns = plane(size)
    tilt = generator.uniform(-0.1, 0.1, 2)
    flow = flow * (1 + tilt[0] * rows + tilt[1] * columns)
    grain = generator.gamma(1 / style.speckle**2, style.speckle**2, flow.shape)  # mean 1, deviation `speckle`
    picture = flow * grain + style.noise * np.abs(generator.standard_normal(flow.shape))
    picture = ndimage.gaussian_filter(picture, style.blur * size / 256)
    picture *= 1 + style.stripes * ndimage.gaussian_filter1d(generator.standard_normal((size, 1)), 0.8, axis=0)
    return np.clip(picture, 0, 1) ** style.gamma
