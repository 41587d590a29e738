# SPDX-License-Identifier: Apache-2.0
"""Radial masks: spokes through the middle of k-space, on the Cartesian grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import KspaceMask

__all__ = ["RadialMask"]


class RadialMask(KspaceMask):
    """Equally spaced spokes from edge to edge, rotated by a random angle; as many as come nearest to N / R samples.

    A spoke is the grid points nearest to a straight line through the middle of the plane, which is stretched with the
    image where it is not square. The spokes cover the middle by themselves: there is no central block.

    Args:
        accelerations: R >= 1; each draw picks one first. What is kept differs from N / R by half a spoke at most
            (a spoke has about max(H, W) samples).

    Raises:
        ConfigError: an acceleration below 1, or (when drawing) one that leaves less than one spoke.
    """

    def __init__(self, accelerations: Sequence[float] | float = (4,)) -> None:
        self.accelerations = tuple(float(value) for value in ensure_tuple(accelerations))
        for acceleration in self.accelerations or (0.0,):
            if not 1.0 <= acceleration < float("inf"):
                raise ConfigError(f"acceleration {acceleration:g} is not allowed: it must be 1 (all samples) or more")

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """Draw the acceleration, then the angle; returns float32 (H, W)."""
        if isinstance(shape, int) or len(shape) < 2:
            raise ConfigError(f"a radial mask needs rows and columns, not {shape}")
        plane = int(shape[-2]), int(shape[-1])
        acceleration = self.accelerations[rng.randint(0, len(self.accelerations))]
        if acceleration == 1.0:
            return torch.ones(plane)
        spokes = _number_of_spokes(plane, acceleration)
        return torch.from_numpy(_spokes(plane, spokes, rng.uniform()).astype(np.float32))


@lru_cache(maxsize=64)
def _number_of_spokes(plane: tuple[int, int], acceleration: float) -> int:
    wanted = plane[0] * plane[1] / acceleration
    if wanted < max(plane) / 2:
        raise ConfigError(f"acceleration {acceleration:g} keeps {wanted:.0f} of {plane} samples, less than one spoke")
    low, high = 1, 4 * max(plane)
    while high - low > 1:
        middle = (low + high) // 2
        if _spokes(plane, middle).sum() <= wanted:
            low = middle
        else:
            high = middle
    return min(low, high, key=lambda number: abs(_spokes(plane, number).sum() - wanted))


def _spokes(plane: tuple[int, int], number: int, turn: float = 0.0) -> np.ndarray:
    """A boolean plane with ``number`` spokes, rotated by ``turn`` of their spacing."""
    angle = (np.arange(number) + turn) * np.pi / number
    # half steps of the longer side leave no gaps; beyond the plane's corners nothing is cut off too early
    reach = np.arange(-max(plane), max(plane) + 1) / max(plane) / np.sqrt(2)
    inside = np.zeros(plane, dtype=bool)
    rows = np.rint(plane[0] // 2 + np.outer(np.sin(angle), reach) * plane[0]).astype(int)
    columns = np.rint(plane[1] // 2 + np.outer(np.cos(angle), reach) * plane[1]).astype(int)
    kept = (rows >= 0) & (rows < plane[0]) & (columns >= 0) & (columns < plane[1])
    inside[rows[kept], columns[kept]] = True
    return inside
