# SPDX-License-Identifier: Apache-2.0
"""Scan of tensors by name: the largest value of each and the norm of their difference to others, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Scan", "scan"]

#: elements looked at together on a CPU: two such pieces and their difference stay in the cache for all operations
CHUNK = 1 << 17


@dataclass(frozen=True)
class Scan:
    """Result of a scan.

    Args:
        peaks: largest absolute value by name, NaN where a value is NaN; empty tensors have none.
        norm: Euclidean norm of the difference over all but integer tensors; 0 without a reference.
    """

    peaks: dict[str, float]
    norm: float


@torch.no_grad()
def scan(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None = None) -> Scan:
    """Look through tensors once, with one read-back from their device.

    Args:
        tensors: what is looked through; complex values count as pairs of real ones.
        reference: tensors of the same names and shapes, for the norm of the difference.

    Example:
        >>> found = scan({"weight": torch.tensor([3.0, -4.0])}, {"weight": torch.zeros(2)})
        >>> found.peaks, found.norm
        ({'weight': 4.0}, 5.0)
    """
    names: list[str] = []
    ends: list[Tensor] = []
    norms: list[Tensor] = []
    for name, tensor in tensors.items():
        other = None if reference is None else reference[name].to(tensor.device)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            other = None  # a count does not measure how far weights have moved
        for piece, against in _pieces(_real(tensor), None if other is None else _real(other)):
            names.append(name)
            # a NaN makes both ends NaN, and they cost a twentieth of the maximum norm on a CPU
            ends += [end.double() for end in torch.aminmax(piece)]
            if against is not None:
                norms.append(torch.linalg.vector_norm(piece - against, dtype=torch.float64))
    if not names:
        return Scan({}, 0.0)
    found = torch.stack([*(end.abs() for end in ends), *(norm.to(ends[0].device) for norm in norms)]).tolist()
    peaks: dict[str, float] = {}
    for name, low, high in zip(names, found[: len(ends) : 2], found[1 : len(ends) : 2], strict=True):
        before = peaks.get(name, 0.0)
        peaks[name] = math.nan if math.isnan(low) or math.isnan(before) else max(before, low, high)
    return Scan(peaks, math.hypot(*found[len(ends) :]))


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _pieces(tensor: Tensor, other: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Split a tensor and the other one into parts; they stay whole on a device or if not contiguous in memory."""
    if not tensor.numel():
        return
    flat = tensor.device.type == "cpu" and tensor.is_contiguous() and (other is None or other.is_contiguous())
    if not flat or tensor.numel() <= CHUNK:
        yield tensor, other
        return
    pieces = tensor.view(-1).split(CHUNK)
    yield from zip(pieces, other.view(-1).split(CHUNK) if other is not None else [None] * len(pieces), strict=True)
