# SPDX-License-Identifier: Apache-2.0
"""Undersampling masks: what a mask must offer, and the Cartesian column masks of fastMRI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["CartesianMask", "KspaceMask"]


class KspaceMask(ABC):
    """Base of all masks: draws a float32 mask of 0 and 1 that broadcasts to a k-space plane (H, W).

    A mask holds its settings only; the random numbers come from the generator of whoever draws.
    """

    #: whether whole columns are kept or dropped; only then k-space may be stored in hybrid form
    is_column: bool = False

    @abstractmethod
    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """Draw one mask for k-space of ``shape`` (..., H, W) on the CPU; a column mask also takes W alone."""

    def from_file_name(self, name: str, shape: int | Sequence[int]) -> Tensor:
        """Draw the mask that belongs to a file: the same for all its slices and in every run.

        As in fastMRI the generator is seeded with the character codes of the name (with suffix, without folder).
        """
        return self.sample(shape, np.random.RandomState(tuple(map(ord, name))))


class CartesianMask(KspaceMask):
    """Column masks of fastMRI (Zbontar et al., arXiv 1811.08839), identical to its legacy generators.

    ``round(W * center_fraction)`` central columns are always kept. Of the others, ``random`` keeps each with the
    probability (W / R - n_low) / (W - n_low), so that W / R columns are kept on average; ``equispaced`` keeps them at a
    constant spacing, widened for the central block, from a random offset. Several pairs: each draw picks one first.

    Args:
        kind: ``random`` or ``equispaced``.
        accelerations: R >= 1 of every pair. R = 1 keeps all columns (``equispaced`` drops the last one, as fastMRI).
        center_fractions: in (0, 1], one for each acceleration.

    Raises:
        ConfigError: a value is out of range, or (when drawing) the central block alone exceeds W / R columns.
    """

    is_column = True

    def __init__(
        self,
        kind: str = "random",
        accelerations: Sequence[float] | float = (4,),
        center_fractions: Sequence[float] | float = (0.08,),
    ) -> None:
        self.kind = kind
        self.accelerations = tuple(float(value) for value in ensure_tuple(accelerations))
        self.center_fractions = tuple(float(value) for value in ensure_tuple(center_fractions))
        if kind not in ("random", "equispaced"):
            raise ConfigError(f"mask kind {kind!r} is unknown: use 'random' or 'equispaced'")
        if not self.accelerations or len(self.accelerations) != len(self.center_fractions):
            raise ConfigError(
                f"{len(self.accelerations)} accelerations {self.accelerations} and {len(self.center_fractions)} "
                f"center_fractions {self.center_fractions} do not form pairs: give one fraction for each acceleration"
            )
        for acceleration, fraction in zip(self.accelerations, self.center_fractions, strict=True):
            if not (1.0 <= acceleration < float("inf")):
                raise ConfigError(f"acceleration {acceleration:g} is not allowed: it must be 1 (all columns) or more")
            if not 0.0 < fraction <= 1.0:
                raise ConfigError(f"center_fraction {fraction:g} is not allowed: it must lie in (0, 1], e.g. 0.08")

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """Draw the pair, then the columns; returns float32 (W,)."""
        columns = int(shape if isinstance(shape, int) else shape[-1])
        pair = rng.randint(0, len(self.accelerations))
        acceleration, fraction = self.accelerations[pair], self.center_fractions[pair]
        n_low = round(columns * fraction)
        if n_low * acceleration > columns:
            raise ConfigError(
                f"{n_low} central of {columns} columns (center_fraction {fraction:g}) are more than acceleration "
                f"{acceleration:g} keeps in all ({columns / acceleration:g}): lower one of the two"
            )
        mask = np.ones(columns, dtype=np.float32)
        if n_low < columns:
            draw = self._random if self.kind == "random" else self._equispaced
            start = (columns - n_low + 1) // 2
            mask = draw(columns, n_low, acceleration, rng)
            mask[start : start + n_low] = 1.0
        return torch.from_numpy(mask)

    @staticmethod
    def _random(columns: int, n_low: int, acceleration: float, rng: np.random.RandomState) -> np.ndarray:
        probability = (columns / acceleration - n_low) / (columns - n_low)
        return (rng.uniform(size=columns) < probability).astype(np.float32)

    @staticmethod
    def _equispaced(columns: int, n_low: int, acceleration: float, rng: np.random.RandomState) -> np.ndarray:
        mask = np.zeros(columns, dtype=np.float32)
        budget = columns - n_low * acceleration
        if budget > 0:  # at 0 the central block uses up all columns and the spacing is infinite
            spacing = acceleration * (columns - n_low) / budget
            offset = rng.randint(0, round(spacing))
            mask[np.around(np.arange(offset, columns - 1, spacing)).astype(int)] = 1.0
        return mask
