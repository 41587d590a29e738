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
        """Map (N, C, H, W) to what the network makes of it, (N, ...)."""
        return torch.cat([network(part, *args, **kwargs) for part in inputs.split(self.batch_size)])
