# SPDX-License-Identifier: Apache-2.0
"""Choosing a mask for every example of a batch, and applying it to k-space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import KspaceMask

__all__ = ["check_kspace", "choose_mask", "stack_masked"]


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


def stack_masked(
    slices: Sequence[tuple[Tensor, Tensor | None, bool, str]], device: torch.device, non_blocking: bool = False
) -> tuple[Tensor, Tensor]:
    """Masked k-space, complex64 (B, coils, H, W), and the masks, float32 (B, 1, H, W), on ``device``.

    Args:
        slices: k-space (coils, H, W), mask (W,) or (H, W) or None (all samples), whether k-space is hybrid, file.
        device: where the results lie.
        non_blocking: copy without waiting.

    Raises:
        ConfigError: hybrid k-space, or k-space of different shapes; the message names the files.
    """
    first, _, hybrid, file = slices[0]
    if hybrid:
        raise ConfigError(f"{file}: k-space is in hybrid form, a dual-domain network needs it whole: set lean: false")
    for kspace, _, _, other in slices:
        if kspace.shape != first.shape:
            raise ConfigError(
                f"k-space of {file} {tuple(first.shape)} and {other} {tuple(kspace.shape)} differ and cannot share a "
                "batch of a dual-domain network: set batch_size to 1"
            )
    plane = first.shape[-2:]
    full = torch.ones(plane)
    masks = [full if mask is None else mask.cpu().expand(plane) for _, mask, _, _ in slices]
    mask = torch.stack(masks).unsqueeze(1).to(device, non_blocking=True)
    kspace = torch.stack([item[0].to(device, non_blocking=non_blocking) for item in slices])
    return kspace.mul_(mask), mask
