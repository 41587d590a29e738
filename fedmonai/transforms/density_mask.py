# SPDX-License-Identifier: Apache-2.0
"""Random masks that are denser in the middle of k-space: of whole columns, or of single samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import KspaceMask

__all__ = ["VariableDensityMask"]


class VariableDensityMask(KspaceMask):
    """Exactly round(N / R) of the N columns (or samples), more of them near the middle of k-space.

    A central block is always kept: ``round(W * center_fraction)`` columns, and in two dimensions as large a share of
    the rows. The others are drawn without replacement with weights (1 - r)^power, r being the distance from the middle
    over that of the farthest sample (Efraimidis and Spirakis, 2006, by exponential keys). power = 0 is uniform.

    Args:
        dimensions: 1 for columns (Cartesian), 2 for single samples.
        accelerations: R >= 1; each draw picks one (with its fraction) first.
        center_fractions: in [0, 1), one for each acceleration.
        power: how fast the density falls, 0 or more.

    Raises:
        ConfigError: a value is out of range, or (when drawing) the central block alone exceeds N / R.
    """

    def __init__(
        self,
        dimensions: int = 1,
        accelerations: Sequence[float] | float = (4,),
        center_fractions: Sequence[float] | float = (0.08,),
        power: float = 2.0,
    ) -> None:
        self.accelerations = tuple(float(value) for value in ensure_tuple(accelerations))
        self.center_fractions = tuple(float(value) for value in ensure_tuple(center_fractions))
        self.dimensions, self.power = dimensions, power
        self.is_column = dimensions == 1
        if dimensions not in (1, 2):
            raise ConfigError(f"a mask of {dimensions} dimensions is not possible: use 1 (columns) or 2")
        if not self.accelerations or len(self.accelerations) != len(self.center_fractions):
            raise ConfigError(
                f"accelerations {self.accelerations} and center_fractions {self.center_fractions} do not form pairs: "
                "give one fraction for each acceleration"
            )
        for acceleration, fraction in zip(self.accelerations, self.center_fractions, strict=True):
            if not 1.0 <= acceleration < float("inf"):
                raise ConfigError(f"acceleration {acceleration:g} is not allowed: it must be 1 (all samples) or more")
            if not 0.0 <= fraction < 1.0:
                raise ConfigError(f"center_fraction {fraction:g} is not allowed: it must lie in [0, 1), e.g. 0.08")
        if not 0.0 <= power < float("inf"):
            raise ConfigError(f"density_power {power} is not allowed: it must be 0 (uniform) or more")

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """Draw the pair, then the samples; returns float32 (W,) or (H, W)."""
        full = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(full) < self.dimensions:
            raise ConfigError(f"a mask over rows and columns needs both sizes, not {full}")
        plane = full[-self.dimensions :]
        pair = rng.randint(0, len(self.accelerations))
        acceleration, fraction = self.accelerations[pair], self.center_fractions[pair]
        total = round(int(np.prod(plane)) / acceleration)
        center = _center(plane, fraction)
        left = total - int(center.sum())
        if left < 0:
            raise ConfigError(
                f"the center of {int(center.sum())} samples (center_fraction {fraction:g}) is more than acceleration "
                f"{acceleration:g} keeps of {plane} in all ({total}): lower one of the two"
            )
        weight = (1.0 - _distance(plane)) ** self.power
        keys = rng.exponential(size=plane) / weight
        keys[center] = np.inf
        mask = center.astype(np.float32)
        if left:
            mask.reshape(-1)[np.argpartition(keys, left - 1, axis=None)[:left]] = 1.0
        return torch.from_numpy(mask)


def _distance(plane: tuple[int, ...]) -> np.ndarray:
    """Distance from the middle of k-space, 0 there and just below 1 at the farthest sample."""
    axes = [np.abs(np.arange(length) - length // 2) / max(length / 2, 1) for length in plane]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return np.asarray(radius / (radius.max() * (1 + 1e-3) or 1.0))


def _center(plane: tuple[int, ...], fraction: float) -> np.ndarray:
    inside = np.ones(plane, dtype=bool)
    for axis, length in enumerate(plane):
        kept = round(length * fraction)
        start = (length - kept + 1) // 2
        along = np.zeros(length, dtype=bool)
        along[start : start + kept] = True
        inside &= along.reshape([-1 if other == axis else 1 for other in range(len(plane))])
    return inside
