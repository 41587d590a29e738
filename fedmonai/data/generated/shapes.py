# SPDX-License-Identifier: Apache-2.0
"""Shapes, layers and textures that generated anatomy is drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array

__all__ = ["inside", "line_network", "outline_distance", "plane", "smooth_field"]


Array = NDArray[np.floating]  # float32 throughout; float64 scalars and grids may mix in
Point = Sequence[float]


@dataclass(frozen=True)
class RandomField:
    """A stationary Gaussian-like random field: a sum of plane waves of about one wavelength, standard deviation 1.

    f(p) = sqrt(2 / n) * sum_i cos(k_i . p + phi_i), with |k_i| in 2 pi / wavelength * (1 -+ spread) and directions
    uniform on the sphere (or circle). It can be evaluated anywhere, so neighboring slices of one field fit together.

    Example:
        >>> field = RandomField.draw(np.random.RandomState(0), wavelength=10, dimensions=2)
        >>> field(*np.meshgrid(range(4), range(3))).shape
        (3, 4)
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
    """Coarse grid on which smooth functions are evaluated, interpolated to pixels by cubic convolution.

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


class Layers:
    """Layers of painted shapes; a later one hides earlier ones by the share of the pixel that it covers.

    Args:
        classes: names of the classes; the first is the background.
        edge: width of a shape's edge in the unit of the depths, about one pixel.

    Example:
        >>> layers = Layers(("background", "organ"), edge=1.0)
        >>> _ = layers.paint("organ", depth=np.float32([[-1, 0, 1]]))
        >>> layers.shares().tolist()
        [[[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]]
    """

    def __init__(self, classes: Sequence[str], edge: float) -> None:
        self.classes = tuple(classes)
        self.edge = edge
        self._painted: list[tuple[int, Array]] = []

    def paint(self, name: str, depth: Array, within: Array | float = 1.0) -> Array:
        """Paint the shape of a depth as class ``name`` and return its coverage.

        ``within`` (0 to 1) restricts or thins the shape.
        """
        share = coverage(depth, self.edge) * np.float32(within)
        self._painted.append((self.classes.index(name), share))
        return share

    def shares(self) -> Array:
        """Visible share of each class in each pixel: float32 (classes, rows, columns), with sum 1 over the classes."""
        left = np.ones_like(self._painted[0][1])
        out = np.zeros((len(self.classes), *left.shape), np.float32)
        for index, share in reversed(self._painted):
            visible = share * left
            out[index] += visible
            left -= visible
        out[0] += left
        return out


def plane(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels, in [-1, 1]."""
    axis = np.linspace(-1, 1, size)
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def outline_distance(
    generator: np.random.RandomState,
    size: int,
    center: tuple[float, float],
    radius: float,
    roughness: float = 0.05,
    stretch: float = 1.0,
    harmonics: int = 5,
) -> np.ndarray:
    """Signed distance (along the ray from the center, in half sides) to a random closed outline; negative inside.

    The radius at angle t is ``radius * (1 + sum_k a_k cos(k t + phase_k))``, k from 2, amplitudes falling with k.

    Args:
        center: (row, column) in [-1, 1].
        radius: mean radius.
        roughness: size of the deviations from a circle, relative to the radius.
        stretch: rows over columns of the underlying ellipse.
        harmonics: number of terms; more make the outline more jagged.
    """
    rows, columns = plane(size)
    down, right = (rows - center[0]) / np.sqrt(stretch), (columns - center[1]) * np.sqrt(stretch)
    angle = np.arctan2(down, right)
    deviation = np.zeros_like(angle)
    for order in range(2, harmonics + 2):
        amplitude = 2 * roughness * generator.standard_normal() / order
        deviation += amplitude * np.cos(order * angle + generator.uniform(0, 2 * np.pi))
    return np.hypot(down, right) - radius * (1 + np.clip(deviation, -0.5, 0.5))


def inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 well inside of an outline, 0 well outside, in between over a border of about ``softness`` half sides."""
    return 1 / (1 + np.exp(np.clip(distance / max(softness, 1e-6), -50, 50)))


def smooth_field(generator: np.random.RandomState, size: int, scale: float) -> np.ndarray:
    """Random field with mean 0 and deviation 1 whose features are about ``scale`` half sides large."""
    sigma = max(scale * size / 2, 0.3)
    coarse = max(int(sigma / 3), 1)  # a smooth field is drawn on fewer points
    points = -(-size // coarse)
    field = ndimage.gaussian_filter(generator.standard_normal((points, points)), sigma / coarse, mode="wrap")
    if coarse > 1:
        field = ndimage.zoom(field, coarse, order=2, mode="grid-wrap", grid_mode=True)[:size, :size]
    return (field - field.mean()) / max(float(field.std()), 1e-12)


def line_network(generator: np.random.RandomState, size: int, scale: float, thickness: float = 0.25) -> np.ndarray:
    """Network of thin bright lines in [0, 1]: where one of two smooth fields changes its sign."""
    lines = np.zeros((size, size))
    for _ in range(2):
        lines = np.maximum(lines, np.exp(-np.square(smooth_field(generator, size, scale) / thickness)))
    return lines
