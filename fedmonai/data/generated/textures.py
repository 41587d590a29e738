# SPDX-License-Identifier: Apache-2.0
"""Smooth outlines and random fields that generated images are made of."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["inside", "line_network", "outline_distance", "plane", "smooth_field"]


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
