# SPDX-License-Identifier: Apache-2.0
"""Running a network in training mode without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(network: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Training mode with plain logits; mode, buffers and the global random numbers are as before afterwards.

    Args:
        network: the network; one with an attribute ``training_outputs`` gives logits alone inside.
        device: whose random numbers are kept.
        seed: of the random numbers inside.
    """
    buffers = list(network.buffers())
    kept = [buffer.clone() for buffer in buffers]
    outputs, mode = getattr(network, "training_outputs", None), network.training
    if outputs:
        network.training_outputs = False  # type: ignore[assignment]
    try:
        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(seed)
            network.train()
            yield
    finally:
        network.train(mode)
        if outputs:
            network.training_outputs = outputs
        for buffer, old in zip(buffers, kept, strict=True):
            buffer.copy_(old)
