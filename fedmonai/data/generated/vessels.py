# SPDX-License-Identifier: Apache-2.0
"""Branching vessels drawn as soft tubes, for generated fundus and angiography images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Vessel", "draw_vessels", "grow_vessels"]


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
