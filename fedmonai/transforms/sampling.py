# SPDX-License-Identifier: Apache-2.0
"""Which mask a slice of k-space gets, and whether the two fit together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import KspaceMask

__all__ = ["check_kspace", "choose_mask"]


def check_kspace(kspace: Tensor, file: str) -> None:
    """Refuse anything but a complex64 tensor (coils, H, W).

    Raises:
        ConfigError: names the file, what was found and what is needed.
    """
    if not isinstance(kspace, Tensor) or kspace.ndim != 3 or 0 in kspace.shape or kspace.dtype != torch.complex64:
        found = f"{kspace.dtype} {tuple(kspace.shape)}" if isinstance(kspace, Tensor) else type(kspace).__name__
        raise ConfigError(
            f"k-space of {file} is {found}, not complex64 (coils, H, W): store kspace as complex64, "
            "(slices, H, W) or (slices, coils, H, W)"
        )


def choose_mask(
    kspace: Tensor,
    sampler: KspaceMask | None,
    rng: np.random.RandomState | None,
    file: str,
    own: Tensor | None = None,
    hybrid: bool = False,
) -> Tensor | None:
    """Return the mask for one slice, float32 on the CPU or wherever ``own`` lies, or None for k-space as it is.

    A mask that comes with the file (``own``) describes what the scanner measured and goes before ``sampler``. With
    ``rng`` the sampler draws from it, without it draws the file's fixed mask.

    Raises:
        ConfigError: k-space is not as :func:`check_kspace` wants it, the file's mask has another width, or k-space is
            hybrid and the mask not one over columns.
    """
    check_kspace(kspace, file)
    plane = tuple(kspace.shape[-2:])
    if own is not None:
        if (
            own.ndim not in (1, 2)
            or own.shape[-1] != plane[-1]
            or (own.ndim == 2 and own.shape[0] not in (1, plane[0]))
        ):
            raise ConfigError(
                f"the mask in {file} has shape {tuple(own.shape)}, its k-space {plane}: the mask needs one value per "
                f"column ({plane[-1]})"
            )
        mask = own.to(torch.float32)
    elif sampler is None:
        return None
    elif rng is None:
        mask = sampler.from_file_name(file, plane)
    else:
        mask = sampler.sample(plane, rng)
    if hybrid and ((own is None and sampler is not None and not sampler.is_column) or mask.numel() != plane[-1]):
        name = "its own mask" if own is not None else type(sampler).__name__
        raise ConfigError(
            f"{file}: {name} is not a mask over whole columns, but its k-space is cached in hybrid form: "
            "set lean (hybrid) to false for this dataset"
        )
    return mask
