# SPDX-License-Identifier: Apache-2.0
"""Placement of a network on its device."""

from __future__ import annotations

import torch
from torch import nn

from fedmonai.errors import ConfigError

__all__ = ["place_network"]


def place_network(
    network: nn.Module,
    device: torch.device | str,
    channels_last: bool = False,
    compile: bool = False,
    amp: bool = False,
) -> nn.Module:
    """Move a network to its device and prepare it for speed; names of its tensors stay as they are.

    Args:
        network: the network; changed in place.
        device: where it runs.
        channels_last: store weights for channels-last convolutions (pays on GPUs with tensor cores only).
        compile: compile the forward pass in place. MONAI's own switch wraps the network, which renames every tensor in
            its state dict.
        amp: what the trainer's ``amp`` is set to, for the check only.

    Returns:
        the same network.

    Raises:
        ConfigError: when ``amp`` is set on a CPU, where MONAI's trainer would silently ignore it.
    """
    if amp and torch.device(device).type != "cuda":
        raise ConfigError(f"amp is true but the device is '{device}'; mixed precision needs a GPU: set amp to false.")
    network = network.to(device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        network.compile()
    return network
