# SPDX-License-Identifier: Apache-2.0
"""The contrastive regularizer on weights of FedMRI: near to the global encoder, far from every previous one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["WeightContrastLoss"]

# Elements worked on at a time by a CPU: longer pieces fall out of its cache, shorter ones cost more calls.
_PIECE = 1 << 19
_EPS = 1e-14


@dataclass
class _Piece:
    """A part of one block of weights, with the same part of everything it is compared with (all of them views)."""

    block: int
    part: slice
    whole: slice
    nearest: Tensor
    near: Tensor
    work: Tensor
    sign: Tensor
    #: where the sums of this piece go: to ``nearest``, then to every pair, then to the single one
    sums: Sequence[Tensor]
    pairs: list[tuple[Tensor, Tensor]]
    single: Tensor | None


class WeightContrastLoss:
    """Contrastive regularizer R on weights (FedMRI: Feng et al., TMI 2023, arXiv 2112.05752).

    R = sum_p |w_p - g_p|_1 / (sum_j sum_p |w_p - r_jp|_1 + 1e-14). w are the weights being trained, g the global ones
    and r_j those of site j after the round before; g and r_j are constants. R lies in [0, inf); it is 0 for w = g, and
    with previous weights equal to g it is 1 / K. With the sums N / D its gradient is sign(w - g) / D - N / D^2 sum_j
    sign(w - r_j), which is what the backward pass returns: the signs are kept by the forward pass, and no graph is
    built over the names.

    The references are laid out once, as flat vectors. Two of the previous ones cost as much as one, since for l <= h
    |w - l| + |w - h| = (h - l) + 2 |w - clamp(w, l, h)|; where w equals l or h exactly this takes another element of
    the subdifferential than a sum of two signs would. Sums over pieces are added up in float64.

    >>> loss = WeightContrastLoss([torch.zeros(2)], previous=[[torch.full((2,), 3.0)]])
    >>> round(float(loss([torch.ones(2)])), 2)  # |1 - 0| / |1 - 3|
    0.5

    Args:
        global_weights: g, tensors of any shapes on one device.
        previous: r_j for every site j; the tensors of each in the order of ``global_weights``.

    Raises:
        ConfigError: there is no previous set, or number, shapes or type of the tensors differ.
    """

    def __init__(self, global_weights: Sequence[Tensor], previous: Sequence[Sequence[Tensor]]) -> None:
        self.shapes = [tuple(tensor.shape) for tensor in global_weights]
        self.lengths = [tensor.numel() for tensor in global_weights]
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
        longest = _PIECE if nearest.device.type == "cpu" else nearest.numel()
        self.groups = _grouped(self.lengths, longest)
        #: sign(w - g) of the newest value, overwritten by the next one: memory that is fresh each time costs page
        #: faults, as much as the arithmetic
        self.near = torch.empty_like(nearest)
        #: a row per piece: the distance to g, then to every pair and to the single set
        self.sums: Tensor
        self.pieces = self._cut(nearest, pairs, single, longest)
        self.values = 0

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """R of ``weights`` (shapes and order of the references), a scalar of their type on their device.

        Its backward pass must come before the next call, and only once: it overwrites the signs with the gradient.
        """
        if [tuple(tensor.shape) for tensor in weights] != self.shapes or weights[0].dtype != self.near.dtype:
            raise ConfigError("the trained weights differ from their references in number, shape or type")
        return _Contrast.apply(self, *weights)

    def blocks(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as flat vectors: on a CPU views of large ones and copies of runs of small ones, on a GPU one."""
        runs = [[tensor.detach().reshape(-1) for tensor in weights[group]] for group in self.groups]
        return [run[0] if len(run) == 1 else torch.cat(run) for run in runs]

    def _cut(
        self, nearest: Tensor, pairs: list[tuple[Tensor, Tensor]], single: Tensor | None, longest: int
    ) -> list[_Piece]:
        parts, begin = [], 0
        for block, group in enumerate(self.groups):
            length = sum(self.lengths[group])
            for start in range(0, length, longest):
                part = slice(start, min(start + longest, length))
                parts.append((block, part, slice(begin + part.start, begin + part.stop)))
            begin += length
        self.sums = nearest.new_empty(len(parts), 1 + len(pairs) + (single is not None))
        work, sign = nearest.new_empty((2, min(longest, nearest.numel())))
        return [
            _Piece(
                block,
                part,
                whole,
                nearest=nearest[whole],
                near=self.near[whole],
                work=work[: part.stop - part.start],
                sign=sign[: part.stop - part.start],
                sums=row.unbind(),
                pairs=[(low[whole], high[whole]) for low, high in pairs],
                single=None if single is None else single[whole],
            )
            for (block, part, whole), row in zip(parts, self.sums, strict=True)
        ]


class _Contrast(torch.autograd.Function):
    """Value and closed-form gradient from one pass over the weights and their references."""

    @staticmethod
    def forward(ctx: Any, references: WeightContrastLoss, *weights: Tensor) -> Tensor:
        blocks = references.blocks(weights)
        far = torch.empty_like(references.near)
        for piece in references.pieces:
            _compare(piece, blocks[piece.block][piece.part], far[piece.whole])
        numerator, *halves = references.sums.sum(0, dtype=torch.float64)
        denominator = 2 * sum(halves) + references.gap + _EPS
        references.values += 1
        ctx.references, ctx.number, ctx.far = references, references.values, far
        ctx.save_for_backward(numerator, denominator)
        return (numerator / denominator).to(weights[0].dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        references: WeightContrastLoss = ctx.references
        if ctx.number != references.values:
            raise RuntimeError("the weight contrast was evaluated again before the backward pass of this value")
        if ctx.far is None:
            raise RuntimeError("the backward pass of this weight contrast was made before; evaluate it again")
        numerator, denominator = ctx.saved_tensors
        scale = outputs[0].double() / denominator
        to_near, to_far = (
            scale.to(references.near.dtype),
            (-2 * scale * numerator / denominator).to(references.near.dtype),
        )
        # the signs' own memory becomes the gradient: a third vector would cost one more pass
        gradient, ctx.far = ctx.far, None
        for piece in references.pieces:
            gradient[piece.whole].mul_(to_far).addcmul_(piece.near, to_near)
        parts = gradient.split(references.lengths)
        return None, *(part.view(shape) for part, shape in zip(parts, references.shapes, strict=True))


def _compare(piece: _Piece, values: Tensor, far: Tensor) -> None:
    """Write sign(w - g) to ``near``, sum_j sign(w - r_j) / 2 to ``far``, and the distances to ``sums`` of a piece.

    The sums are those of |w - g|, and half of |w - r_j| less the constant gaps. A sum of absolute values is the product
    of the values with their signs, which are needed anyway.
    """
    own, *others = piece.sums
    work = torch.sub(values, piece.nearest, out=piece.work)
    torch.sign(work, out=piece.near)
    torch.dot(work, piece.near, out=own)
    sign = far  # the first signs are the sum; further ones are added
    for (low, high), half in zip(piece.pairs, others):  # noqa: B905 (the last one may be that of `single`)
        torch.clamp(values, low, high, out=work)
        torch.sub(values, work, out=work)
        torch.sign(work, out=sign)
        torch.dot(work, sign, out=half)
        sign = _added(piece, sign, far)
    if piece.single is not None:
        torch.sub(values, piece.single, out=work)
        torch.sign(work, out=sign).mul_(0.5)
        torch.dot(work, sign, out=others[-1])
        _added(piece, sign, far)


def _added(piece: _Piece, sign: Tensor, far: Tensor) -> Tensor:
    """Add the signs to the sum, unless they are its first; return where the next ones go."""
    if sign is not far:
        far.add_(sign)
    return piece.sign


def _grouped(lengths: Sequence[int], longest: int) -> list[slice]:
    """Runs of consecutive weights that fit into ``longest`` together; a longer one is a run of its own."""
    groups, begin, total = [], 0, 0
    for index, length in enumerate(lengths):
        if total and total + length > longest:
            groups.append(slice(begin, index))
            begin, total = index, 0
        total += length
    return [*groups, slice(begin, len(lengths))]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all tensors as one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
