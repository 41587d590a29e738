# SPDX-License-Identifier: Apache-2.0
"""A whole volume through a 2-D network, a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["SplitInferer"]


class SplitInferer(Inferer):
    """Call the network on parts of the batch and join the results; the whole never lies on the device's feature maps.

    Args:
        batch_size: largest number of examples per call.

    Raises:
        ConfigError: when ``batch_size`` is not positive.
    """

    def __init__(self, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is not allowed: the network takes 1 example or more at a time")
        self.batch_size = batch_size

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Map (N, C, H, W) to the network's output (N, ...); tensors of N examples among ``args`` are split as well."""
        parts = []
        for start in range(0, len(inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            own = [a[part] if isinstance(a, Tensor) and a.ndim and len(a) == len(inputs) else a for a in args]
            parts.append(network(inputs[part], *own, **kwargs))
        return torch.cat(parts)
