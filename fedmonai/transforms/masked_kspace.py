# SPDX-License-Identifier: Apache-2.0
"""Undersampled k-space of a batch with its masks, for networks that work in both domains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["stack_masked"]


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
