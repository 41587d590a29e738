# SPDX-License-Identifier: Apache-2.0
"""Dense pairwise regularizer: neighbors of similar color should have similar class probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedmonai.errors import ConfigError
from fedmonai.losses.precision import widened, without_autocast

__all__ = ["GatedCRFLoss"]


class GatedCRFLoss(nn.Module):
    r"""Gated CRF loss with one Gaussian kernel over position and color (Obukhov et al., arXiv 1906.04651).

    With ``p = softmax(logits)`` and pairs of pixels of the image at most ``radius`` apart in the maximum norm,

        k(x, y) = exp(-|x - y|^2 / (2 sigma_xy^2) - |I(x) - I(y)|^2 / (2 sigma_rgb^2))
        L = 1 / (B H W) * sum over x, y of k(x, y) * (1 - sum_c p_c(x) p_c(y)).

    As in FedICRA's program nothing is gated: labeled pixels take part too. It is not normalized by the number of
    neighbors: in a flat region the kernels of a pixel add up to 92, so two equally probable classes give 46 (times
    the usual weight of 0.1 that is 7 times the cross entropy of the same prediction). A constant one-hot prediction
    gives 0.

    The program copies all ``(2 radius + 1)^2`` neighbors of every pixel into one tensor (1.1 GB for 12 x 256 x 256).
    Here half of the offsets are visited one after the other on shifted views, in memory of the size of the
    prediction, and the gradient ``-2 / (B H W) * sum_y k(x, y) p(y)`` is gathered on the way. The program also counts
    neighbors outside of the image as black pixels without a class, which adds a constant without a gradient; it is
    left out.

    >>> edge = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    >>> logits = 100 * torch.cat([1 - edge, edge], dim=1)
    >>> loss = GatedCRFLoss(radius=1)
    >>> bool(loss(logits, edge) < loss(logits, torch.zeros_like(edge)))  # an edge that the image has costs less
    True

    Args:
        radius: largest offset in pixels, >= 1.
        sigma_xy: width of the kernel in pixels, > 0.
        sigma_rgb: width of the kernel in units of the image, > 0; 0.1 is for images in [0, 1].
    """

    def __init__(self, radius: int = 5, sigma_xy: float = 6.0, sigma_rgb: float = 0.1) -> None:
        super().__init__()
        if radius < 1 or not sigma_xy > 0 or not sigma_rgb > 0:
            raise ConfigError(
                f"GatedCRFLoss: radius {radius}, sigma_xy {sigma_xy}, sigma_rgb {sigma_rgb}; "
                "radius must be at least 1 and both sigmas greater than 0"
            )
        self.radius = radius
        self.sigma_xy = sigma_xy
        self.sigma_rgb = sigma_rgb

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Loss (scalar >= 0) of logits ``(B, K, H, W)`` on images ``(B, C, H, W)``; float32 also inside autocast.

        No gradient flows into the image.

        Raises:
            ConfigError: logits and image differ in batch or size.
        """
        if logits.shape[:1] + logits.shape[2:] != image.shape[:1] + image.shape[2:]:
            raise ConfigError(
                f"GatedCRFLoss: logits {tuple(logits.shape)} and image {tuple(image.shape)} differ in batch or size"
            )
        with without_autocast(logits.device):
            wide = widened(logits)
            scaled = image.detach().to(wide.dtype) / (math.sqrt(2) * self.sigma_rgb)
            return _PairwiseEnergy.apply(wide.softmax(1), scaled, self.radius, self.sigma_xy)


class _PairwiseEnergy(torch.autograd.Function):
    """Energy of probabilities; the forward pass computes the gradient, which is all that is kept for backward."""

    @staticmethod
    def forward(ctx: Any, probability: Tensor, scaled: Tensor, radius: int, sigma_xy: float) -> Tensor:
        # One channel of ones gathers the sum of the kernels in the same order as the probabilities are gathered, so
        # that a constant one-hot prediction gives 0 and not a rounding error.
        states = torch.cat([probability, torch.ones_like(probability[:, :1])], 1)
        message = torch.zeros_like(states)
        # On a CPU one image at a time stays in the cache; an accelerator is faster with the whole batch in one launch.
        step = 1 if states.device.type == "cpu" else max(len(states), 1)
        for begin in range(0, len(states), step):
            part = slice(begin, begin + step)
            _send_messages(states[part], scaled[part], message[part], radius, sigma_xy)
        pixels = probability[:, 0].numel()
        energy = (message[:, -1] - (probability * message[:, :-1]).sum(1)).sum() / pixels
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(message[:, :-1] * (-2.0 / pixels))
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None


def _send_messages(states: Tensor, scaled: Tensor, message: Tensor, radius: int, sigma_xy: float) -> None:
    """Add ``sum_y k(x, y) states(y)`` to ``message(x)``, each pair of pixels being visited once for both."""
    height, width = states.shape[-2:]
    for here, there, squared_distance in _half_window(height, width, radius):
        difference = scaled[here] - scaled[there]
        difference *= difference
        kernel = difference if difference.shape[1] == 1 else difference.sum(1, keepdim=True)
        kernel = kernel.neg_().exp_()
        spatial = math.exp(-squared_distance / (2 * sigma_xy**2))
        message[here].addcmul_(kernel, states[there], value=spatial)
        message[there].addcmul_(kernel, states[here], value=spatial)


Window = tuple[slice, slice, slice, slice]


def _half_window(height: int, width: int, radius: int) -> Iterator[tuple[Window, Window, int]]:
    """Views of the pixels that have a neighbor at an offset, and of those neighbors, for one of each pair ``+-d``."""
    everything = slice(None)
    for down in range(min(radius, height - 1) + 1):
        for right in range(-min(radius, width - 1), min(radius, width - 1) + 1):
            if down == 0 and right <= 0:
                continue
            rows_here, rows_there = slice(0, height - down), slice(down, height)
            columns_here = slice(max(-right, 0), width - max(right, 0))
            columns_there = slice(max(right, 0), width - max(-right, 0))
            here = (everything, everything, rows_here, columns_here)
            yield here, (everything, everything, rows_there, columns_there), down * down + right * right
