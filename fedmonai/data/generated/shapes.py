# SPDX-License-Identifier: Apache-2.0
"""Smooth random shapes: distance functions, random fields of one wavelength, partial-volume edges.

A shape is a *depth*: a function of position that is positive inside, zero on the border and negative outside, in
millimeters near the border. Depths combine with minimum (intersection), maximum (union) and their rounded forms, and
become the share of a pixel that the shape covers by :func:`coverage`. Positions are tuples of arrays of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Array = NDArray[np.floating]  # float32 throughout; float64 scalars and grids may mix in
Point = Sequence[float]


@dataclass(frozen=True)
class RandomField:
    """A stationary Gaussian-like random field: a sum of plane waves of about one wavelength, standard deviation 1.

    f(p) = sqrt(2 / n) * sum_i cos(k_i . p + phi_i), with |k_i| in 2 pi / wavelength * (1 -+ spread) and directions
    uniform on the sphere (or circle). It can be evaluated anywhere, so neighboring slices of one field fit together.
    """

    vectors: Array
    phases: Array

    @classmethod
    def draw(
        cls, rng: np.random.RandomState, wavelength: float, waves: int = 24, spread: float = 0.25, dimensions: int = 3
    ) -> RandomField:
        """Draw a field; ``wavelength`` is in the unit of the positions."""
        directions = rng.standard_normal((waves, dimensions))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        size = 2 * np.pi / wavelength * (1 + spread * rng.uniform(-1, 1, (waves, 1)))
        return cls((directions * size).astype(np.float32), rng.uniform(0, 2 * np.pi, waves).astype(np.float32))

    def __call__(self, *position: Array) -> Array:
        """Values at ``position`` (one array per dimension, all of one shape)."""
        axes = [np.asarray(axis, np.float32) for axis in position]
        total = np.zeros(np.shape(position[0]), np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):  # wave by wave: stays in the cache
            angle = axes[0] * vector[0] + phase
            for axis, number in zip(axes[1:], vector[1:], strict=True):
                angle += axis * number
            total += np.cos(angle, out=angle)
        return total * np.float32(np.sqrt(2 / len(self.phases)))


def ellipsoid_depth(offset: Sequence[Array], radii: Point, power: float = 2.0) -> Array:
    """Depth in an ellipsoid around the origin; ``power`` > 2 makes it more box-like (a superellipsoid).

    First-order distance: exact on the border for any radii, and everywhere for a sphere.
    """
    size = np.asarray(radii, np.float32).reshape(-1, *[1] * np.ndim(offset[0]))
    scaled = np.sqrt((np.stack(list(offset)) / size) ** 2 + np.float32(1e-6))  # never 0: the gradient divides
    level = np.sum(scaled ** np.float32(power), axis=0) ** np.float32(1 / power)
    steps = scaled ** np.float32(power - 1)  # gradient of the level = steps / size * level^(1 - power)
    slope = np.sqrt(np.sum((steps / size) ** 2, axis=0))
    return (1 - level) * level ** np.float32(power - 1) / slope


def tube_depth(position: Sequence[Array], points: Sequence[Point], radii: Sequence[float]) -> Array:
    """Depth in a tube along a polyline; its radius changes linearly from point to point."""
    parts = []
    for start, end, first, last in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        axis = [np.float32(e - s) for s, e in zip(start, end, strict=True)]
        offset = [p - np.float32(s) for p, s in zip(position, start, strict=True)]
        along = sum(o * a for o, a in zip(offset, axis, strict=True)) / np.float32(sum(a * a for a in axis))
        along = np.clip(along, 0, 1)
        away = np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True)))
        parts.append(np.float32(first) + along * np.float32(last - first) - away)
    return np.maximum.reduce(parts)


def rounded_minimum(first: Array, second: Array, radius: float) -> Array:
    """Minimum of two depths whose edge is rounded over about ``radius``; never above the plain minimum."""
    gap = np.float32(radius) - np.abs(first - second)
    np.maximum(gap, 0, out=gap)
    return np.minimum(first, second) - gap * gap * np.float32(0.25 / radius)


def beyond(value: Array, limit: Array | float) -> Array:
    """How far ``value`` lies above ``limit``, 0 below it."""
    return np.maximum(value - limit, 0)


def coverage(depth: Array, edge: float) -> Array:
    """Share of a pixel inside the shape, 0 to 1: linear over an edge ``edge`` wide, i.e. the partial-volume effect."""
    return np.clip(depth * np.float32(1 / edge) + np.float32(0.5), 0, 1)


class SmoothGrid:
    """Evaluates smooth functions on a coarse grid and interpolates them to pixels by cubic convolution.

    Depths and random fields vary over millimeters to centimeters; sampling them at ``step`` costs a tenth of the
    pixels. Edges and folds are made from them afterwards, at full resolution. Sparse matrices, and no BLAS here or in
    the fields: its threads cost more than they save on pieces of this size, and ten times that on a busy machine.

    Args:
        rows, columns: increasing pixel positions along each axis.
        step: spacing of the coarse grid, in the same unit. The error is of the order of (step / wavelength)^3.
    """

    def __init__(self, rows: Array, columns: Array, step: float) -> None:
        self.step = step
        self.coarse_rows, self._row_weights = _cubic_convolution(rows, step)
        self.coarse_columns, self._column_weights = _cubic_convolution(columns, step)

    def coarse(self) -> tuple[Array, Array]:
        """Row and column positions of the coarse grid, each float32 (coarse rows, coarse columns)."""
        rows, columns = np.meshgrid(self.coarse_rows, self.coarse_columns, indexing="ij")
        return rows, columns

    def refine(self, *fields: Array) -> Array:
        """Interpolate coarse fields; returns float32 (number of fields, rows, columns)."""
        return np.stack([self._row_weights @ (self._column_weights @ field.T.astype(np.float32)).T for field in fields])


def _cubic_convolution(positions: Array, step: float) -> tuple[Array, csr_array]:
    """Coarse positions that enclose ``positions``, and the weights (positions, coarse) of the four nearest ones.

    Keys, "Cubic convolution interpolation for digital image processing", 1981, equation (15), a = -1/2.
    """
    start = float(positions[0]) - step
    index = np.floor((positions - start) / step).astype(int)
    coarse = start + step * np.arange(index.max() + 3)
    t = ((positions - start) / step - index)[:, None]
    weights = 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3])
    columns = index[:, None] + np.arange(-1, 3)
    rows = np.repeat(np.arange(len(positions)), 4)
    entries = (weights.ravel().astype(np.float32), (rows, columns.ravel()))
    return coarse.astype(np.float32), csr_array(entries, shape=(len(positions), len(coarse)))
