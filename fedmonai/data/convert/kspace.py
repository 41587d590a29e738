# SPDX-License-Identifier: Apache-2.0
"""Image slices to k-space slices of the wanted size, and what is sampled in given k-space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from fedmonai.data.convert.volume import InputError, Volume
from fedmonai.transforms.kspace import center_crop, coil_magnitude, fft2c, ifft2c

_FULLY_SAMPLED = 0.99  # scanners leave a few exact zeros in fully sampled k-space


@dataclass(frozen=True)
class PlaneSize:
    """Size of a slice before and after: reduced to ``reduced`` pixels, then zero-padded to ``final``.

    Args:
        original: (rows, columns) of the input.
        pad: smallest rows and columns; smaller images are zero-padded around the center, 0 = never.
        max_size: largest side; larger images lose resolution, not field of view, 0 = keep every size.
    """

    original: tuple[int, int]
    reduced: tuple[int, int]
    final: tuple[int, int]

    @classmethod
    def plan(cls, original: tuple[int, int], pad: int, max_size: int) -> PlaneSize:
        factor = min(1.0, max_size / max(original)) if max_size else 1.0
        reduced = round(original[0] * factor), round(original[1] * factor)
        return cls(original, reduced, (max(pad, reduced[0]), max(pad, reduced[1])))

    def affine(self, affine: np.ndarray) -> np.ndarray:
        """The affine of the resized slices; the central pixel ``size // 2`` stays in place under the reduction."""
        change = np.eye(4)
        for axis, (n, m, p) in enumerate(zip(self.original, self.reduced, self.final, strict=True), start=1):
            change[axis, axis] = n / m
            change[axis, 3] = n // 2 - ((p - m) // 2 + m // 2) * n / m
        return affine @ change


def image_to_kspace(image: np.ndarray, size: PlaneSize) -> tuple[Tensor, Tensor]:
    """One image slice to k-space, by the centered orthonormal 2-D FFT.

    A magnitude image gets a zero imaginary part. The reduction keeps the central part of k-space, which is what a scan
    of lower resolution would have measured, and keeps the intensities.

    Args:
        image: real or complex (rows, columns) or (coils, rows, columns).

    Returns:
        complex64 k-space of the same rank and the float32 magnitude, root-sum-of-squares over coils: (rows, columns).
    """
    data = torch.from_numpy(np.array(image, dtype=np.complex64))
    if size.reduced != size.original:
        scale = float(np.sqrt(np.prod(size.reduced) / np.prod(size.original)))
        data = ifft2c(center_crop(fft2c(data), size.reduced)) * scale
    if size.final != size.reduced:
        (rows, columns), (h, w) = size.final, size.reduced
        top, left = (rows - h) // 2, (columns - w) // 2
        data = pad_tensor(data, (left, columns - w - left, top, rows - h - top))
    return fft2c(data), coil_magnitude(data if data.ndim == 3 else data[None])


def kspace_to_image(kspace: np.ndarray) -> Tensor:
    """Root-sum-of-squares magnitude (rows, columns) of one k-space slice."""
    data = torch.from_numpy(np.array(kspace, dtype=np.complex64))
    return coil_magnitude(ifft2c(data if data.ndim == 3 else data[None]))


def sampled(volume: Volume) -> tuple[np.ndarray | None, float]:
    """What a k-space volume holds: (column mask or None if fully sampled, share of samples that are not zero).

    A column counts as sampled if any of its samples in any slice and coil is not zero. k-space counts as fully sampled
    if no column is empty and at least 99 % of the samples are there. The mask is exact for Cartesian column sampling;
    for 2-D patterns it only bounds the pattern, whose zeros stay in the k-space itself.
    """
    seen: Any = None
    for plane in volume.planes():
        present = (plane != 0).any(axis=0) if plane.ndim == 3 else plane != 0
        seen = present if seen is None else seen | present
    if seen is None or not seen.any():
        raise InputError("k-space is zero everywhere")
    columns, share = seen.any(axis=0), float(seen.mean())
    if columns.all() and share >= _FULLY_SAMPLED:
        return None, share
    return columns.astype(np.float32), share
