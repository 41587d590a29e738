# SPDX-License-Identifier: Apache-2.0
"""Inferers: the identity (zero-filled reference), a volume split into batches of slices, two views of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from monai.inferers import Inferer
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["IdentityInferer", "SplitInferer", "TwoViewInferer", "View"]


class IdentityInferer(Inferer):
    """Identity: the input is the prediction, for the zero-filled baseline of a reconstruction.

    An evaluator with it scores the undersampled image by the same metrics and postprocessing as a network's output.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return ``inputs``; the network is not called."""
        return inputs


class SplitInferer(Inferer):
    """Inference on parts of a batch, joined afterwards; the device holds the feature maps of one part at a time.

    >>> sizes = []
    >>> network = lambda images: sizes.append(len(images)) or images
    >>> SplitInferer(batch_size=4)(torch.zeros(10, 1, 8, 8), network).shape, sizes
    (torch.Size([10, 1, 8, 8]), [4, 4, 2])

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


class View(Protocol):
    """A change of images whose geometry can be undone in a prediction: ``fedmonai.losses.adaptation.PerturbedView``."""

    def apply(self, images: Tensor) -> Tensor:
        """Another view of (B, C, H, W)."""

    def undo(self, pred: Tensor) -> Tensor:
        """What was predicted on the last view, in the geometry of its images."""


class TwoViewInferer(Inferer):
    """Predictions of the images and of another view of them, stacked: (2, B, K, H, W).

    The two forward passes are separate, so batch normalization sees one view at a time, as in the authors' program of
    IOP-FL.

    >>> from types import SimpleNamespace
    >>> mirror = SimpleNamespace(apply=lambda images: images.flip(-1), undo=lambda pred: pred.flip(-1))
    >>> views = TwoViewInferer(mirror)(torch.rand(3, 1, 4, 4), torch.nn.Identity())
    >>> views.shape, torch.equal(views[0], views[1])
    (torch.Size([2, 3, 1, 4, 4]), True)

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
