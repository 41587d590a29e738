# SPDX-License-Identifier: Apache-2.0
"""The contrastive regularizer on weights of FedMRI: near to the global encoder, far from every previous one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["WeightContrastLoss"]

# Elements worked on at a time: on a CPU the intermediate results of one chunk stay in its cache. A GPU takes all.
_CHUNK = 1 << 16
_EPS = 1e-14


class WeightContrastLoss:
    """R = sum_p |w_p - g_p|_1 / (sum_j sum_p |w_p - r_jp|_1 + 1e-14) (Feng et al., TMI 2023, arXiv 2112.05752).

    w are the weights being trained, g the global ones and r_j those of site j after the round before; g and r_j are
    constants. R lies in [0, inf); it is 0 for w = g, and with previous weights equal to g it is 1 / K. With the sums
    N / D its gradient is sign(w - g) / D - N / D^2 sum_j sign(w - r_j), which is what the backward pass returns.

    The references are laid out once, as flat vectors. Two of the previous ones cost as much as one, since for l <= h
    |w - l| + |w - h| = (h - l) + 2 |w - clamp(w, l, h)|; where w equals l or h exactly this takes another element of
    the subdifferential than a sum of two signs would. Sums are added up in float64.

    Args:
        global_weights: g, tensors of any shapes.
        previous: r_j for every site j; the tensors of each in the order of ``global_weights``.

    Raises:
        ConfigError: there is no previous set, or the number or the shapes of the tensors differ.
    """

    def __init__(self, global_weights: Sequence[Tensor], previous: Sequence[Sequence[Tensor]]) -> None:
        self.shapes = [tuple(tensor.shape) for tensor in global_weights]
        if not previous or not self.shapes:
            raise ConfigError("the weight contrast needs the global and at least one set of previous weights")
        for number, tensors in enumerate(previous):
            if [tuple(tensor.shape) for tensor in tensors] != self.shapes:
                raise ConfigError(f"previous weights {number} differ from the global ones in number or shape")
        self.nearest = _flat(global_weights)
        sets = [_flat(tensors).to(self.nearest) for tensors in previous]
        self.single = sets.pop() if len(sets) % 2 else None
        self.pairs = [
            (torch.minimum(one, other), torch.maximum(one, other))
            for one, other in zip(sets[::2], sets[1::2], strict=True)
        ]
        gaps = [(high - low).sum(dtype=torch.float64) for low, high in self.pairs]
        self.gap = torch.stack(gaps).sum() if gaps else self.nearest.new_zeros((), dtype=torch.float64)

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """R of ``weights`` (shapes and order of the references), a scalar of their type on their device."""
        if [tuple(tensor.shape) for tensor in weights] != self.shapes:
            raise ConfigError("the trained weights differ from their references in number or shape")
        return _Contrast.apply(self, *weights)


class _Contrast(torch.autograd.Function):
    """Value and closed-form gradient from one pass over the weights and their references."""

    @staticmethod
    def forward(ctx: Any, references: WeightContrastLoss, *weights: Tensor) -> Tensor:
        flat = _flat(weights)
        near, far = torch.empty_like(flat), torch.empty_like(flat)
        step = _CHUNK if flat.device.type == "cpu" else flat.numel()
        sums = [
            _distances(references, slice(start, start + step), flat, near, far)
            for start in range(0, flat.numel(), step)
        ]
        numerator, denominator = torch.stack([torch.stack(pair) for pair in sums]).sum(0, dtype=torch.float64)
        denominator = denominator + references.gap + _EPS
        ctx.save_for_backward(near, far, numerator, denominator)
        ctx.shapes = references.shapes
        return (numerator / denominator).to(flat.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        near, far, numerator, denominator = ctx.saved_tensors
        scale = outputs[0].double() / denominator
        gradient = torch.mul(far, (-scale * numerator / denominator).to(far.dtype))
        gradient.addcmul_(near, scale.to(near.dtype))
        parts = gradient.split([torch.Size(shape).numel() for shape in ctx.shapes])
        return None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


def _distances(
    references: WeightContrastLoss, part: slice, flat: Tensor, near: Tensor, far: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of |w - g| and all |w - r_j| (less the constant gaps) of a chunk; writes sign(w - g), sum_j sign(w - r_j).

    Every line works in place on memory of one chunk.
    """
    values, signs = flat[part], far[part]
    work = torch.sub(values, references.nearest[part])
    torch.sign(work, out=near[part])
    numerator = work.abs_().sum()
    denominator = torch.zeros_like(numerator)
    signs.zero_()
    sign = torch.empty_like(work)
    for low, high in references.pairs:
        torch.clamp(values, low[part], high[part], out=work)
        torch.sub(values, work, out=work)
        signs.add_(torch.sign(work, out=sign), alpha=2)
        denominator += work.abs_().sum().mul_(2)
    if references.single is not None:
        torch.sub(values, references.single[part], out=work)
        signs.add_(torch.sign(work, out=sign))
        denominator += work.abs_().sum()
    return numerator, denominator


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
