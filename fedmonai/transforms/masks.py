# SPDX-License-Identifier: Apache-2.0
"""Sampling masks of k-space: Cartesian, variable density, radial, from arrays and files, and a choice by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch import Tensor

from fedmonai.errors import ConfigError, first_line
from fedmonai.io import InputPath
from fedmonai.matlab import mat_arrays

__all__ = [
    "MASK_KINDS",
    "ArrayMask",
    "CartesianMask",
    "FixedMask",
    "KspaceMask",
    "MixedMask",
    "RadialMask",
    "VariableDensityMask",
    "sampling_mask",
]


class KspaceMask(ABC):
    """Base of all masks: draws a float32 mask of 0 and 1 that broadcasts to a k-space plane (H, W).

    A mask holds its settings only; the random numbers come from the caller's generator.

    >>> class EverySample(KspaceMask):
    ...     def sample(self, shape, rng):
    ...         return torch.ones(shape[-2:])
    >>> EverySample().from_file_name("a.h5", (4, 16, 12)).shape
    torch.Size([16, 12])
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("is_column",)
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


def _accelerations(values: Sequence[float] | float) -> tuple[float, ...]:
    given = tuple(float(value) for value in ensure_tuple(values))
    for acceleration in given or (0.0,):
        if not 1.0 <= acceleration < float("inf"):
            raise ConfigError(f"acceleration {acceleration:g} is not allowed: it must be 1 (all samples) or more")
    return given


def _pairs(
    accelerations: Sequence[float] | float, center_fractions: Sequence[float] | float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    fractions = tuple(float(value) for value in ensure_tuple(center_fractions))
    if not fractions or len(ensure_tuple(accelerations)) != len(fractions):
        raise ConfigError(
            f"accelerations {ensure_tuple(accelerations)} and center_fractions {fractions} do not form pairs: give one "
            "fraction for each acceleration"
        )
    return _accelerations(accelerations), fractions


class CartesianMask(KspaceMask):
    """Column masks of fastMRI (Zbontar et al., arXiv 1811.08839), identical to its legacy generators.

    ``round(W * center_fraction)`` central columns are always kept. Of the others, ``random`` keeps each with the
    probability (W / R - n_low) / (W - n_low), so that W / R columns are kept on average; ``equispaced`` keeps them at a
    constant spacing, widened for the central block, from a random offset. Several pairs: each draw picks one first.

    >>> mask = CartesianMask("equispaced", accelerations=4, center_fractions=0.25).from_file_name("a.h5", 16)
    >>> mask.shape, mask[6:10].tolist()
    (torch.Size([16]), [1.0, 1.0, 1.0, 1.0])

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
        if kind not in ("random", "equispaced"):
            raise ConfigError(f"mask kind {kind!r} is unknown: use 'random' or 'equispaced'")
        self.accelerations, self.center_fractions = _pairs(accelerations, center_fractions)
        for fraction in self.center_fractions:
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


class VariableDensityMask(KspaceMask):
    """Masks of exactly round(N / R) of the N columns (or samples), more of them near the middle of k-space.

    A central block is always kept: ``round(W * center_fraction)`` columns, and in two dimensions as large a share of
    the rows. The others are drawn without replacement with weights (1 - r)^power, r being the distance from the middle
    over that of the farthest sample (Efraimidis and Spirakis, 2006, by exponential keys). power = 0 is uniform.

    >>> mask = VariableDensityMask(dimensions=2, accelerations=4).sample((16, 16), np.random.RandomState(0))
    >>> mask.shape, int(mask.sum())
    (torch.Size([16, 16]), 64)

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
        self.accelerations, self.center_fractions = _pairs(accelerations, center_fractions)
        self.dimensions, self.power = dimensions, power
        self.is_column = dimensions == 1
        if dimensions not in (1, 2):
            raise ConfigError(f"a mask of {dimensions} dimensions is not possible: use 1 (columns) or 2")
        for fraction in self.center_fractions:
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


class RadialMask(KspaceMask):
    """Masks of equally spaced spokes, rotated by a random angle; as many as come nearest to N / R samples.

    A spoke is the grid points nearest to a straight line through the middle of the plane, which is stretched with the
    image where it is not square. The spokes cover the middle by themselves: there is no central block.

    >>> mask = RadialMask(accelerations=4).sample((64, 64), np.random.RandomState(0))
    >>> mask.shape, bool(0.23 < mask.mean() < 0.27)
    (torch.Size([64, 64]), True)

    Args:
        accelerations: R >= 1; each draw picks one first. What is kept differs from N / R by half a spoke at most
            (a spoke has about max(H, W) samples).

    Raises:
        ConfigError: an acceleration below 1, or (when drawing) one that leaves less than one spoke.
    """

    def __init__(self, accelerations: Sequence[float] | float = (4,)) -> None:
        self.accelerations = _accelerations(accelerations)

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


class ArrayMask(KspaceMask):
    """Mask read from a file, the same in training, validation and test.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mask.npy", np.array([0, 1, 1, 0]))
    ...     mask = ArrayMask(f"{folder}/mask.npy")
    >>> mask.is_column, mask.from_file_name("a.h5", (8, 4)).tolist()
    (True, [0.0, 1.0, 1.0, 0.0])

    Args:
        file: ``.npy``, or ``.mat`` (up to version 7) with the variable ``key``. 0 and 1, (W,) or (1, W) for columns,
            (H, W) for single samples, with the zero frequency at index ``size // 2`` as in the k-space files. A plane
            whose rows are all alike is a mask over columns.
        key: name of the variable in a ``.mat`` file.

    Raises:
        ConfigError: the file cannot be read or holds something else; when drawing, if mask and k-space differ in shape.
    """

    def __init__(self, file: InputPath, key: str = "mask") -> None:
        self.file = str(file)
        self.mask = _checked_mask(_read_mask(Path(file), key), self.file)
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
    """Mask drawn once per k-space shape from one seed: a site's own sampling pattern.

    >>> mask = FixedMask(CartesianMask(), seed=3)
    >>> torch.equal(mask.from_file_name("a.h5", 32), mask.from_file_name("b.h5", 32))
    True

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
    """Choice among several masks at every draw: the sampling patterns of all sites in pooled data.

    >>> over_columns = [CartesianMask("random"), CartesianMask("equispaced")]
    >>> MixedMask(over_columns).is_column, MixedMask([*over_columns, RadialMask()]).is_column
    (True, False)

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


def _read_mask(path: Path, key: str) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".mat"):
        raise ConfigError(f"mask_file '{path}' is neither .npy nor .mat")
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        found = {array.name: array for array in mat_arrays(path)}
        if key in found:
            return found[key].read()
    except Exception as error:  # these readers end in anything from OSError to NumPy's own types
        raise ConfigError(
            f"mask_file '{path}' cannot be read ({type(error).__name__}: {first_line(error, 100)}); give a "
            ".npy array of numbers, or a .mat file saved with -v7 or older."
        ) from error
    raise ConfigError(f"mask_file '{path}' has no variable '{key}'; it holds {', '.join(found) or 'no array'}.")


def _checked_mask(array: np.ndarray, file: str) -> Tensor:
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not np.isin(array, (0, 1)).all():
        raise ConfigError(
            f"mask_file '{file}' holds {array.dtype} {array.shape}, not 0 and 1 of shape (W,), (1, W) or (H, W)."
        )
    if not array.any():
        raise ConfigError(f"mask_file '{file}' keeps no sample at all.")
    plane = np.atleast_2d(array).astype(np.float32)
    return torch.from_numpy(plane[0].copy() if (plane == plane[:1]).all() else plane.copy())


MASK_KINDS = ("random", "equispaced", "variable_density", "random_2d", "radial", "file")


def sampling_mask(
    kind: str | Sequence[str],
    accelerations: Sequence[float] | float = (4,),
    center_fractions: Sequence[float] | float = (0.08,),
    density_power: float = 2.0,
    file: InputPath | None = None,
    seed: int | None = None,
) -> KspaceMask:
    """Make the mask of a kind: over columns ``random``, ``equispaced``, ``variable_density``; over the plane
    ``random_2d`` and ``radial``; from a ``file`` either.

    >>> sampling_mask("radial").is_column, sampling_mask("random", accelerations=8, center_fractions=0.04).is_column
    (False, True)

    Args:
        kind: one of the six; ``random`` and ``equispaced`` are fastMRI's, see :class:`CartesianMask`. A list of them
            (for pooled data): each draw takes one of them with the acceleration (and fraction) at its place.
        accelerations: R >= 1, any number of them; unused by ``file``.
        center_fractions: one for each acceleration; unused by ``radial`` and ``file``.
        density_power: of ``variable_density`` and ``random_2d``; 0 = uniform.
        file: ``.npy`` or ``.mat`` of ``file``.
        seed: draw the pattern once, from this seed; None for a fresh one per example in training and a fixed one per
            volume in validation and test.

    Raises:
        ConfigError: another kind, ``file`` without a file or a file without ``file``; and as the masks themselves.
    """
    if not isinstance(kind, str):
        return _mixed(kind, ensure_tuple(accelerations), ensure_tuple(center_fractions), density_power, seed)
    if kind not in MASK_KINDS:
        raise ConfigError(f"mask_kind '{kind}' is unknown: use one of {', '.join(MASK_KINDS)}")
    if (kind == "file") != (file is not None):
        raise ConfigError(f"mask_kind is '{kind}' and mask_file is {file!r}: a file and the kind 'file' go together")
    if file is not None:
        return ArrayMask(file)
    mask: KspaceMask
    if kind == "radial":
        mask = RadialMask(accelerations)
    elif kind in ("random", "equispaced"):
        mask = CartesianMask(kind, accelerations, center_fractions)
    else:
        mask = VariableDensityMask(2 if kind == "random_2d" else 1, accelerations, center_fractions, density_power)
    return mask if seed is None else FixedMask(mask, seed)


def _mixed(
    kinds: Sequence[str], accelerations: Sequence[float], fractions: Sequence[float], power: float, seed: int | None
) -> KspaceMask:
    if not len(kinds) == len(accelerations) == len(fractions):
        raise ConfigError(
            f"mask_kind {list(kinds)}, accelerations {list(accelerations)} and center_fractions {list(fractions)} "
            "differ in length: a list of kinds needs one of each for every kind"
        )
    settings = zip(kinds, accelerations, fractions, strict=True)
    return MixedMask([sampling_mask(kind, a, f, power, seed=seed) for kind, a, f in settings])
