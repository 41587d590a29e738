# SPDX-License-Identifier: Apache-2.0
"""From k-space to a zero-filled magnitude image: Fourier transforms, crop and coil combination on batched tensors.

k-space and complex images are complex tensors (..., coils, H, W); columns run along the last axis, which is the one an
undersampling mask thins out. Everything works on any device and treats leading axes as batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["center_crop", "coil_magnitude", "column_phase", "fft2c", "ifft2c", "to_hybrid_kspace", "zero_filled"]

_PLANE = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Centered orthonormal 2-D Fourier transform of a complex (..., H, W) image.

    The zero frequency and the image center sit at index ``size // 2``. Equal to MONAI's ``fftn_centered`` with two
    spatial dimensions, without its detour over a trailing (real, imaginary) axis.
    """
    shifted = torch.fft.ifftshift(image, dim=_PLANE)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_PLANE)


def ifft2c(kspace: Tensor) -> Tensor:
    """Inverse of :func:`fft2c`; equal to MONAI's ``ifftn_centered`` with two spatial dimensions."""
    shifted = torch.fft.ifftshift(kspace, dim=_PLANE)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_PLANE)


def center_crop(data: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return a view of the central ``size`` rows and columns of (..., H, W); a larger ``size`` leaves an axis whole.

    The crop starts at ``(H - h) // 2``, as in the fastMRI code. ``monai.transforms.CenterSpatialCrop`` starts one
    later where H is even and h is odd.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = data.shape[-2:]
    rows, columns = min(rows, height), min(columns, width)
    return data.narrow(-2, (height - rows) // 2, rows).narrow(-1, (width - columns) // 2, columns)


def coil_magnitude(image: Tensor, out: Tensor | None = None) -> Tensor:
    """Root-sum-of-squares over the coils, ``sqrt(sum_c |x_c|^2)``: complex (..., coils, H, W) to real (..., H, W).

    With one coil this is the magnitude. The result is written to ``out`` if given. Squaring limits float32 to
    magnitudes between about 1e-18 and 1e18.
    """
    power = torch.view_as_real(image).square()
    power = power[..., 0] + power[..., 1]
    power = power.squeeze(-3) if power.shape[-3] == 1 else power.sum(-3)
    return torch.sqrt(power, out=power if out is None else out)


def to_hybrid_kspace(kspace: Tensor, resolution: int) -> Tensor:
    """Transform the fully sampled axis once: centered orthonormal inverse FFT along the rows' axis (-2), then crop it.

    A mask over columns commutes with both, so a cache can hold this (..., coils, min(resolution, H), W) form and leave
    one 1-D FFT to every training step. It must not be used with a mask that varies along the rows.
    """
    shifted = torch.fft.ifftshift(kspace, dim=-2)
    rows = torch.fft.fftshift(torch.fft.ifft(shifted, dim=-2, norm="ortho"), dim=-2)
    return center_crop(rows, (resolution, kspace.shape[-1])).contiguous()


@lru_cache(maxsize=64)
def column_phase(columns: int) -> Tensor:
    """The factor per k-space column that replaces both shifts of a centered inverse FFT whose magnitude is wanted.

    With c = W // 2 the centered transform is x[n] = W^(-1/2) sum_k X[k] exp(2 pi i (k - c)(n - c) / W). Of the shift
    terms, exp(-2 pi i k c / W) acts on the input; the one in n is a phase of the output and drops out of the
    magnitude. For even W the factor is (-1)^k (real float32), for odd W it is complex64. The tensor lies on the CPU
    and is shared: do not write to it.
    """
    index = torch.arange(columns)
    if columns % 2 == 0:
        return (1 - 2 * (index % 2)).to(torch.float32)
    angle = index.to(torch.float64) * (-2.0 * math.pi * (columns // 2) / columns)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def hybrid_magnitude(phased: Tensor, resolution: int | Sequence[int], out: Tensor | None = None) -> Tensor:
    """Finish the column path: (..., coils, h, W) hybrid k-space, masked and times :func:`column_phase`, to (..., h, w).

    One 1-D FFT per row, without any shift.
    """
    return coil_magnitude(center_crop(torch.fft.ifft(phased, norm="ortho"), resolution), out)


def zero_filled(
    kspace: Tensor, resolution: int | Sequence[int], mask: Tensor | None = None, hybrid_kspace: bool = False
) -> Tensor:
    """Zero-filled reconstruction ``sqrt(sum_c |crop(IFFT(mask * kspace_c))|^2)``.

    >>> kspace = fft2c(torch.full((2, 6, 6), 3.0, dtype=torch.complex64))  # two coils
    >>> zero_filled(kspace, 2).round(decimals=3)
    tensor([[4.2430, 4.2430],
            [4.2430, 4.2430]])

    Args:
        kspace: complex (..., coils, H, W), or the output of :func:`to_hybrid_kspace` if ``hybrid_kspace``.
        resolution: the image is cropped to min(resolution, H) x min(resolution, W); or a pair (rows, columns).
        mask: float, broadcastable to ``kspace``; None = all samples as they are. With ``hybrid_kspace`` a column mask
            (W,).
        hybrid_kspace: whether the rows' axis is transformed already.

    Returns:
        Real (..., h, w). Both forms of the same k-space agree to about 1e-6 of the maximum.
    """
    if hybrid_kspace:
        phase = column_phase(kspace.shape[-1]).to(kspace.device)
        return hybrid_magnitude(kspace * (phase if mask is None else mask * phase), resolution)
    return coil_magnitude(center_crop(ifft2c(kspace if mask is None else kspace * mask), resolution))
