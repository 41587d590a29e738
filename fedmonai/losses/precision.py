# SPDX-License-Identifier: Apache-2.0
"""Float32 losses for networks of any precision."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off inside the block, on devices that have it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def widened(values: Tensor) -> Tensor:
    """Cast to float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
