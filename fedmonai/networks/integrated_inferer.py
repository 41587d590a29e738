# SPDX-License-Identifier: Apache-2.0
"""InTEnt: predictions with statistics between those of training and those of the image, weighted by their entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmonai.errors import ConfigError

__all__ = ["IntegratedInferer", "balanced_entropy"]


def balanced_entropy(pred: Tensor) -> Tensor:
    r"""Entropy of a prediction in which foreground and background count alike, 0 (certain) to 1, one per image.

    The mean of two means of the pixels' entropies in bits per :math:`\log_2 K`: over the pixels that are predicted as
    foreground, and over the others. Without one of the two kinds it is the mean over all pixels.

    Args:
        pred: probabilities (B, K, H, W), class 0 = background.
    """
    entropy = -torch.special.xlogy(pred, pred).sum(1).flatten(1) / torch.tensor(float(pred.shape[1])).log()
    foreground = (pred.argmax(1) > 0).flatten(1).to(entropy)
    inside = (entropy * foreground).sum(1) / foreground.sum(1)
    outside = (entropy * (1 - foreground)).sum(1) / (1 - foreground).sum(1)
    return torch.where((inside + outside).isfinite(), (inside + outside) / 2, entropy.mean(1))


class IntegratedInferer(Inferer):
    r"""Inference that averages predictions with several statistics of batch normalization; nothing is trained.

    Dong et al., Medical Image Segmentation with InTEnt (CVPR 2024 workshops, arXiv 2402.09604). The i-th of n
    predictions of an image normalizes with :math:`(1 - r) s_{train} + r s_{image}`, r = i / (n - 1): the network's
    running statistics and those of the image alone, from one pass in which every layer normalizes with them. With
    entropies :math:`h_i` (:func:`balanced_entropy`) scaled to the range 0 to 1 over the n predictions, the result is

    .. math:: \sum_i p_i \, \mathrm{softmax}_i(-h_i).

    Equal entropies give equal weights. The paper's weights by sharpness and its ensembles of networks are left out.

    >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1)).eval()
    >>> pred = IntegratedInferer(num_predictions=3)(torch.rand(4, 1, 8, 8), network)
    >>> pred.shape, torch.allclose(pred.exp().sum(1), torch.ones(4, 8, 8))
    (torch.Size([4, 2, 8, 8]), True)

    Shape: (B, C, H, W) to the logarithm of the averaged probabilities (B, K, H, W); a softmax restores these.

    Args:
        num_predictions: n, at least 2; the authors' program takes 6.

    Raises:
        ConfigError: fewer predictions, or a network without running statistics.
    """

    def __init__(self, num_predictions: int = 6) -> None:
        if num_predictions < 2:
            raise ConfigError(f"num_predictions is {num_predictions}; integration takes at least 2 predictions.")
        self.num_predictions = num_predictions

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predict every image of a batch by itself; mode and statistics of the network are restored."""
        if not isinstance(network, nn.Module):
            raise ConfigError(f"InTEnt needs a network with batch normalization, not {type(network).__name__}.")
        with _borrowed_statistics(network) as layers:
            images = [self._integrated(image[None], network, layers, *args, **kwargs) for image in inputs]
        return torch.cat(images).clamp_min(torch.finfo(inputs.dtype).tiny).log()

    def _integrated(
        self, image: Tensor, network: nn.Module, layers: list[_BatchNorm], *args: Any, **kwargs: Any
    ) -> Tensor:
        trained = [_copied(layer) for layer in layers]
        for layer in layers:
            layer.momentum = 1.0  # the running statistics become those of the image
        network.train()
        network(image, *args, **kwargs)
        own = [_copied(layer) for layer in layers]
        network.eval()
        predictions = []
        for step in range(self.num_predictions):
            rate = step / (self.num_predictions - 1)
            for layer, old, new in zip(layers, trained, own, strict=True):
                _set(layer, *(torch.lerp(a, b, rate) for a, b in zip(old, new, strict=True)))
            predictions.append(network(image, *args, **kwargs).softmax(1))
        for layer, old in zip(layers, trained, strict=True):
            _set(layer, *old)
        stacked = torch.cat(predictions)
        return (weights_of(balanced_entropy(stacked))[:, None, None, None] * stacked).sum(0, keepdim=True)


def weights_of(entropies: Tensor) -> Tensor:
    """Softmax of the negative entropies, first scaled to the range 0 to 1; equal entropies get equal weights."""
    spread = entropies.max() - entropies.min()
    scaled = (entropies - entropies.min()) / spread if float(spread) > 0 else torch.zeros_like(entropies)
    return torch.softmax(-scaled, 0)


@contextmanager
def _borrowed_statistics(network: nn.Module) -> Iterator[list[_BatchNorm]]:
    """The layers with running statistics; their statistics, momentum and mode are restored afterwards."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ConfigError("InTEnt mixes running statistics, but the network has none; take one that keeps them.")
    training, momenta, before = network.training, [m.momentum for m in layers], [_copied(m) for m in layers]
    counts = [m.num_batches_tracked.clone() for m in layers if m.num_batches_tracked is not None]
    try:
        yield layers
    finally:
        for layer, momentum, old in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            _set(layer, *old)
        for layer, count in zip((m for m in layers if m.num_batches_tracked is not None), counts, strict=True):
            layer.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
        network.train(training)


def _copied(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()  # type: ignore[union-attr]


def _set(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    layer.running_mean.copy_(mean)  # type: ignore[union-attr]
    layer.running_var.copy_(variance)  # type: ignore[union-attr]
