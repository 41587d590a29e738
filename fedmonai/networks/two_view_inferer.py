# SPDX-License-Identifier: Apache-2.0
"""Two predictions of every image, for losses that compare them instead of asking for a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["TwoViewInferer", "View"]


class View(Protocol):
    """A change of images whose geometry can be undone in a prediction: ``fedmonai.losses.PerturbedView``."""

    def apply(self, images: Tensor) -> Tensor:
        """Another view of (B, C, H, W)."""

    def undo(self, pred: Tensor) -> Tensor:
        """What was predicted on the last view, in the geometry of its images."""


class TwoViewInferer(Inferer):
    """Stack what the network makes of the images and of another view of them: (2, B, K, H, W).

    The two forward passes are separate, so batch normalization sees one view at a time, as in the authors' program of
    IOP-FL.

    Args:
        view: the second view.
    """

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Map (B, C, H, W) to the two predictions, the second one mapped back to the geometry of the first."""
        first = network(inputs, *args, **kwargs)
        second = network(self.view.apply(inputs), *args, **kwargs)
        return torch.stack([first, self.view.undo(second)])
