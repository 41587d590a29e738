# SPDX-License-Identifier: Apache-2.0
"""Masks made of others: read from a file, drawn once, or one of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import KspaceMask

__all__ = ["ArrayMask", "FixedMask", "MixedMask"]


class ArrayMask(KspaceMask):
    """The mask in a file, the same in training, validation and test.

    Args:
        file: ``.npy``, or ``.mat`` (up to version 7) with the variable ``key``. 0 and 1, (W,) or (1, W) for columns,
            (H, W) for single samples, with the zero frequency at index ``size // 2`` as in the k-space files. A plane
            whose rows are all alike is a mask over columns.
        key: name of the variable in a ``.mat`` file.

    Raises:
        ConfigError: the file cannot be read or holds something else; when drawing, if mask and k-space differ in shape.
    """

    def __init__(self, file: str, key: str = "mask") -> None:
        self.file = str(file)
        self.mask = _checked(_read(Path(file), key), self.file)
        self.is_column = self.mask.ndim == 1

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """The mask, (W,) or (H, W); nothing is drawn."""
        plane = (shape,) if isinstance(shape, int) else tuple(shape)[-2:]
        own = tuple(self.mask.shape)
        if own != plane[-len(own) :]:
            raise ConfigError(
                f"mask_file '{self.file}' has shape {own}, the k-space {plane}: give a mask of the same size, or "
                "bring the k-space to the mask's size when it is converted"
            )
        return self.mask


class FixedMask(KspaceMask):
    """Draws another mask once per k-space shape, from one seed: a site's own sampling pattern.

    Args:
        mask: what is drawn.
        seed: of the pattern, 0 or more.
    """

    def __init__(self, mask: KspaceMask, seed: int = 0) -> None:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"mask_seed {seed} is not allowed: give a whole number from 0, or null for fresh masks")
        self.mask, self.seed = mask, seed
        self.is_column = mask.is_column
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """The pattern for this shape; ``rng`` is not used."""
        plane = (shape,) if isinstance(shape, int) else tuple(shape)[-2:]
        if plane not in self._drawn:
            self._drawn[plane] = self.mask.sample(plane, np.random.RandomState(self.seed))
        return self._drawn[plane]


class MixedMask(KspaceMask):
    """Draws one of several masks first: the sampling patterns of all sites in pooled data.

    Args:
        masks: one or more, equally likely.
    """

    def __init__(self, masks: Sequence[KspaceMask]) -> None:
        if not masks:
            raise ConfigError("mask_kind is empty: name one kind or more")
        self.masks = tuple(masks)
        self.is_column = all(mask.is_column for mask in self.masks)

    def sample(self, shape: int | Sequence[int], rng: np.random.RandomState) -> Tensor:
        """The chosen mask's draw, (W,) or (H, W)."""
        return self.masks[rng.randint(0, len(self.masks))].sample(shape, rng)


def _read(path: Path, key: str) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".mat"):
        raise ConfigError(f"mask_file '{path}' is neither .npy nor .mat")
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        found = scipy.io.loadmat(str(path))
    except Exception as error:  # SciPy's and NumPy's readers end in anything from OSError to their own types
        raise ConfigError(
            f"mask_file '{path}' cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:100]}); give a "
            ".npy array of numbers, or a .mat file saved with -v7 or older."
        ) from error
    if key not in found:
        names = ", ".join(name for name in found if not name.startswith("__")) or "nothing"
        raise ConfigError(f"mask_file '{path}' has no variable '{key}'; it holds {names}.")
    return np.asarray(found[key])


def _checked(array: np.ndarray, file: str) -> Tensor:
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not np.isin(array, (0, 1)).all():
        raise ConfigError(
            f"mask_file '{file}' holds {array.dtype} {array.shape}, not 0 and 1 of shape (W,), (1, W) or (H, W)."
        )
    if not array.any():
        raise ConfigError(f"mask_file '{file}' keeps no sample at all.")
    plane = np.atleast_2d(array).astype(np.float32)
    return torch.from_numpy(plane[0].copy() if (plane == plane[:1]).all() else plane.copy())
