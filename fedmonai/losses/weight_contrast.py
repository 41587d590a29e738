# SPDX-License-Identifier: Apache-2.0
"""The contrastive regularizer on weights of FedMRI: near to the global encoder, far from every previous one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["WeightContrastLoss"]

# Elements worked on at a time by a CPU: longer pieces fall out of its cache, shorter ones cost more calls.
_PIECE = 1 << 18
_EPS = 1e-14


@dataclass
class _Piece:
    """A part of one block of weights, with the same part of everything it is compared with (all of them views)."""

    block: int
    part: slice
    nearest: Tensor
    near: Tensor
    far: Tensor
    work: Tensor
    sign: Tensor
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    single: Tensor | None = None


class WeightContrastLoss:
    """R = sum_p |w_p - g_p|_1 / (sum_j sum_p |w_p - r_jp|_1 + 1e-14) (Feng et al., TMI 2023, arXiv 2112.05752).

    w are the weights being trained, g the global ones and r_j those of site j after the round before; g and r_j are
    constants. R lies in [0, inf); it is 0 for w = g, and with previous weights equal to g it is 1 / K. With the sums
    N / D its gradient is sign(w - g) / D - N / D^2 sum_j sign(w - r_j), which is what the backward pass returns: the
    signs are kept by the forward pass, and no graph is built over the names.

    The references are laid out once, as flat vectors. Two of the previous ones cost as much as one, since for l <= h
    |w - l| + |w - h| = (h - l) + 2 |w - clamp(w, l, h)|; where w equals l or h exactly this takes another element of
    the subdifferential than a sum of two signs would. Sums over pieces are added up in float64.

    Args:
        global_weights: g, tensors of any shapes on one device.
        previous: r_j for every site j; the tensors of each in the order of ``global_weights``.

    Raises:
        ConfigError: there is no previous set, or number, shapes or type of the tensors differ.
    """

    def __init__(self, global_weights: Sequence[Tensor], previous: Sequence[Sequence[Tensor]]) -> None:
        self.shapes = [tuple(tensor.shape) for tensor in global_weights]
        if not previous or not self.shapes:
            raise ConfigError("the weight contrast needs the global and at least one set of previous weights")
        for number, tensors in enumerate(previous):
            if [tuple(tensor.shape) for tensor in tensors] != self.shapes:
                raise ConfigError(f"previous weights {number} differ from the global ones in number or shape")
        nearest = _flat(global_weights)
        sets = [_flat(tensors).to(nearest) for tensors in previous]
        single = sets.pop() if len(sets) % 2 else None
        pairs = [
            (torch.minimum(one, other), torch.maximum(one, other))
            for one, other in zip(sets[::2], sets[1::2], strict=True)
        ]
        gaps = [(high - low).sum(dtype=torch.float64) for low, high in pairs]
        self.gap = torch.stack(gaps).sum() if gaps else nearest.new_zeros((), dtype=torch.float64)
        self.on_cpu = nearest.device.type == "cpu"
        #: sign(w - g) and sum_j sign(w - r_j) / 2 of the newest value, overwritten by the next one: memory that is
        #: fresh each time costs page faults, as much as the arithmetic
        self.near, self.far = torch.empty_like(nearest), torch.empty_like(nearest)
        length = min(_PIECE, nearest.numel()) if self.on_cpu else nearest.numel()
        self.buffers = nearest.new_empty(length), nearest.new_empty(length)
        self.values = 0
        self.pieces = self._cut(nearest, pairs, single)

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """R of ``weights`` (shapes and order of the references), a scalar of their type on their device.

        Its backward pass must come before the next call.
        """
        if [tuple(tensor.shape) for tensor in weights] != self.shapes or weights[0].dtype != self.near.dtype:
            raise ConfigError("the trained weights differ from their references in number, shape or type")
        return _Contrast.apply(self, *weights)

    def blocks(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as flat vectors: on a CPU views of each, on a GPU one for all, to launch few kernels."""
        return [tensor.detach().reshape(-1) for tensor in weights] if self.on_cpu else [_flat(weights)]

    def _cut(self, nearest: Tensor, pairs: list[tuple[Tensor, Tensor]], single: Tensor | None) -> list[_Piece]:
        total, pieces, begin = nearest.numel(), [], 0
        lengths = [torch.Size(shape).numel() for shape in self.shapes] if self.on_cpu else [total]
        longest = _PIECE if self.on_cpu else max(total, 1)
        for block, length in enumerate(lengths):
            for start in range(0, length, longest):
                part = slice(start, min(start + longest, length))
                whole = slice(begin + part.start, begin + part.stop)
                work, sign = (buffer[: part.stop - part.start] for buffer in self.buffers)
                piece = _Piece(block, part, nearest[whole], self.near[whole], self.far[whole], work, sign)
                piece.pairs = [(low[whole], high[whole]) for low, high in pairs]
                piece.single = None if single is None else single[whole]
                pieces.append(piece)
            begin += length
        return pieces


class _Contrast(torch.autograd.Function):
    """Value and closed-form gradient from one pass over the weights and their references."""

    @staticmethod
    def forward(ctx: Any, references: WeightContrastLoss, *weights: Tensor) -> Tensor:
        blocks = references.blocks(weights)
        sums = [_distances(piece, blocks[piece.block][piece.part]) for piece in references.pieces]
        numerator, half = torch.stack([torch.stack(pair) for pair in sums]).sum(0, dtype=torch.float64)
        denominator = 2 * half + references.gap + _EPS
        references.values += 1
        ctx.references, ctx.number = references, references.values
        ctx.save_for_backward(numerator, denominator)
        return (numerator / denominator).to(weights[0].dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        references: WeightContrastLoss = ctx.references
        if ctx.number != references.values:
            raise RuntimeError("the weight contrast was evaluated again before the backward pass of this value")
        numerator, denominator = ctx.saved_tensors
        scale = outputs[0].double() / denominator
        to_near, to_far = (
            scale.to(references.near.dtype),
            (-2 * scale * numerator / denominator).to(references.near.dtype),
        )
        gradient = torch.empty_like(references.near)
        begin = 0
        for piece in references.pieces:
            part = gradient[begin : begin + piece.near.numel()]
            torch.mul(piece.far, to_far, out=part)
            part.addcmul_(piece.near, to_near)
            begin += piece.near.numel()
        parts = gradient.split([torch.Size(shape).numel() for shape in references.shapes])
        return None, *(part.view(shape) for part, shape in zip(parts, references.shapes, strict=True))


def _distances(piece: _Piece, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of |w - g| and half of all |w - r_j| (less the constant gaps) of a piece; writes ``near`` and ``far``.

    A sum of absolute values is the product of the values with their signs, which are needed anyway.
    """
    work = torch.sub(values, piece.nearest, out=piece.work)
    torch.sign(work, out=piece.near)
    numerator, halves = torch.dot(work, piece.near), []
    sign = piece.far  # the first signs are the sum; further ones are added
    for low, high in piece.pairs:
        torch.clamp(values, low, high, out=work)
        torch.sub(values, work, out=work)
        torch.sign(work, out=sign)
        halves.append(torch.dot(work, sign))
        sign = _added(piece, sign)
    if piece.single is not None:
        torch.sub(values, piece.single, out=work)
        torch.sign(work, out=sign).mul_(0.5)
        halves.append(torch.dot(work, sign))
        _added(piece, sign)
    return numerator, torch.stack(halves).sum()


def _added(piece: _Piece, sign: Tensor) -> Tensor:
    """Add the signs to the sum, unless they are its first; return where the next ones go."""
    if sign is not piece.far:
        piece.far.add_(sign)
    return piece.sign


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
