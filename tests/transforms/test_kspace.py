# SPDX-License-Identifier: Apache-2.0
"""Fourier transforms equal MONAI's and a written-out sum; the column path equals the plain path."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data.fft_utils import fftn_centered, ifftn_centered
from numerics import assert_within

from fedmonai.transforms.kspace import (
    center_crop,
    coil_magnitude,
    column_phase,
    fft2c,
    ifft2c,
    to_hybrid_kspace,
    zero_filled,
)
from fedmonai.transforms.masks import CartesianMask

# A transform rounds no more often than its sums have terms: rows and columns, once for each direction.


def complex_noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("plane", [(8, 8), (7, 10), (9, 5)])
def test_transforms_equal_monai(plane):
    data = complex_noise(2, 3, *plane)
    for ours, monai in ((fft2c, fftn_centered), (ifft2c, ifftn_centered)):
        expected = torch.view_as_complex(monai(torch.view_as_real(data).contiguous(), spatial_dims=2))
        assert_within(ours(data), expected, sum(plane))
    assert_within(ifft2c(fft2c(data)), data, 2 * sum(plane))


@pytest.mark.parametrize("size", [6, 7])
def test_inverse_equals_the_centered_sum(size):
    data = complex_noise(size, size).to(torch.complex128)
    index = torch.arange(size, dtype=torch.float64) - size // 2
    angle = 2 * math.pi / size * index[:, None] * index[None, :]
    matrix = torch.polar(torch.full_like(angle, size**-0.5), angle)
    torch.testing.assert_close(ifft2c(data), matrix @ data @ matrix.T)


def test_transform_keeps_the_energy():
    data = complex_noise(12, 15)
    assert_within(fft2c(data).abs().square().sum(), data.abs().square().sum(), 2 * 12 * 15)


def test_center_crop_by_hand():
    data = torch.arange(35).reshape(5, 7)
    torch.testing.assert_close(center_crop(data, (2, 3)), torch.tensor([[9, 10, 11], [16, 17, 18]]))
    assert center_crop(data, 6).shape == (5, 6)
    assert center_crop(data, 100).shape == (5, 7)
    assert center_crop(data, 2).data_ptr() == data[1:, 2:].data_ptr()  # a view


def test_coil_magnitude_by_hand():
    image = torch.tensor([[[3 + 4j]], [[0 + 12j]]])  # 2 coils, one pixel: sqrt(25 + 144)
    torch.testing.assert_close(coil_magnitude(image), torch.tensor([[13.0]]))
    torch.testing.assert_close(coil_magnitude(image[:1]), torch.tensor([[5.0]]))


@pytest.mark.parametrize(("columns", "dtype"), [(8, torch.float32), (7, torch.complex64)])
def test_column_phase_replaces_the_shifts(columns, dtype):
    data = complex_noise(3, columns)
    phase = column_phase(columns)
    assert phase.dtype == dtype
    shifted = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(data, dim=-1), norm="ortho"), dim=-1)
    assert_within(torch.fft.ifft(data * phase, norm="ortho").abs(), shifted.abs(), 2 * columns)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("plane", [(64, 64), (80, 46), (63, 45), (40, 52)])
def test_column_path_equals_the_plain_path(coils, plane):
    kspace, resolution = complex_noise(2, coils, *plane), 48
    mask = CartesianMask().from_file_name("a.h5", plane[1])
    plain = zero_filled(kspace, resolution, mask)
    hybrid = zero_filled(to_hybrid_kspace(kspace, resolution), resolution, mask, hybrid_kspace=True)
    assert plain.shape == (2, min(48, plane[0]), min(48, plane[1]))
    assert_within(hybrid, plain, 2 * sum(plane) + coils)


def test_without_a_mask_the_image_comes_back():
    image = torch.rand(1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(image.to(torch.complex64))
    for result in (zero_filled(kspace, 24), zero_filled(to_hybrid_kspace(kspace, 24), 24, hybrid_kspace=True)):
        assert_within(result, image[:, 0], 2 * (20 + 24))
