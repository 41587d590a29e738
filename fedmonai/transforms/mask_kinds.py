# SPDX-License-Identifier: Apache-2.0
"""The sampling pattern of a site by its name, as configs give it."""

from __future__ import annotations

from collections.abc import Sequence

from monai.utils import ensure_tuple

from fedmonai.errors import ConfigError
from fedmonai.transforms.density_mask import VariableDensityMask
from fedmonai.transforms.fixed_mask import ArrayMask, FixedMask, MixedMask
from fedmonai.transforms.masks import CartesianMask, KspaceMask
from fedmonai.transforms.radial_mask import RadialMask

__all__ = ["MASK_KINDS", "sampling_mask"]

MASK_KINDS = ("random", "equispaced", "variable_density", "random_2d", "radial", "file")


def sampling_mask(
    kind: str | Sequence[str],
    accelerations: Sequence[float] | float = (4,),
    center_fractions: Sequence[float] | float = (0.08,),
    density_power: float = 2.0,
    file: str | None = None,
    seed: int | None = None,
) -> KspaceMask:
    """The mask of a kind: over columns ``random``, ``equispaced``, ``variable_density``; over the plane ``random_2d``
    and ``radial``; from a ``file`` either.

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
