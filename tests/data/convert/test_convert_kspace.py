# SPDX-License-Identifier: Apache-2.0
"""Padding, reduction and the Fourier transform of the converter, with their geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import assert_within

from fedmonai.data.convert.readers import PlaneSize, image_to_kspace, kspace_to_image, sampled
from fedmonai.data.convert.volume import Volume
from fedmonai.data.damage import InputError
from fedmonai.transforms.kspace import center_crop, ifft2c


@pytest.mark.parametrize(
    ("original", "pad", "max_size", "reduced", "final"),
    [
        ((191, 256), 256, 0, (191, 256), (256, 256)),
        ((512, 460), 256, 0, (512, 460), (512, 460)),  # larger than pad: kept
        ((512, 460), 256, 256, (256, 230), (256, 256)),
        ((100, 80), 0, 256, (100, 80), (100, 80)),
        ((300, 100), 200, 0, (300, 100), (300, 200)),
    ],
)
def test_plan(original, pad, max_size, reduced, final):
    assert PlaneSize.plan(original, pad, max_size) == PlaneSize(original, reduced, final)


def test_padding_is_undone_by_the_center_crop_and_kspace_gives_the_image_back():
    image = np.random.RandomState(0).rand(5, 7).astype(np.float32)
    kspace, target = image_to_kspace(image, PlaneSize.plan((5, 7), 10, 0))
    assert kspace.shape == target.shape == (10, 10) and kspace.dtype == torch.complex64
    assert torch.equal(center_crop(target, (5, 7)), torch.from_numpy(image))
    assert_within(target.sum(), image.sum(), 5 * 7)
    assert_within(ifft2c(kspace).abs(), target, 2 * (10 + 10))


def test_orthonormal_and_centered():
    """A constant image v of n pixels has one k-space value v * sqrt(n), in the middle."""
    kspace, _ = image_to_kspace(np.full((6, 8), 2.0, np.float32), PlaneSize.plan((6, 8), 0, 0))
    assert_within(kspace[3, 4].real, 2 * np.sqrt(48), 6 + 8)
    assert_within(kspace.abs().sum(), 2 * np.sqrt(48), 48 * (6 + 8))  # each of the others is zero up to its roundings


def test_reduction_keeps_intensity_and_field_of_view():
    """A wave of 2 periods over the field of view stays one of 2 periods on half the pixels."""
    x = np.arange(64)
    wave = (3 + np.cos(2 * np.pi * 2 * (x - 32) / 64))[None].repeat(64, 0).astype(np.float32)
    _, target = image_to_kspace(wave, PlaneSize.plan((64, 64), 0, 32))
    y = np.arange(32)
    expected = 3 + np.cos(2 * np.pi * 2 * (y - 16) / 32)
    assert_within(target[5], expected, 2 * (64 + 32))


def test_complex_coil_images_combine_by_root_sum_of_squares():
    coils = (np.random.RandomState(0).randn(3, 4, 4) + 1j).astype(np.complex64)
    kspace, target = image_to_kspace(coils, PlaneSize.plan((4, 4), 0, 0))
    assert kspace.shape == (3, 4, 4)
    assert_within(target, np.sqrt((np.abs(coils) ** 2).sum(0)), 2 * (4 + 4) + 3)
    assert_within(kspace_to_image(kspace.numpy()), target, 2 * (4 + 4) + 3)


@pytest.mark.parametrize(("pad", "max_size"), [(0, 0), (12, 0), (0, 4), (10, 4)])
def test_affine_follows_a_point(pad, max_size):
    """A Gaussian spot is at the same place in mm before and after padding and reduction."""
    affine = np.array([[0, 0, 2.0, -5], [0, 3.0, 0, 7], [4.0, 0, 0, 1], [0, 0, 0, 1]])
    rows, columns = np.mgrid[:8, :8]
    image = np.exp(-((rows - 3.0) ** 2 + (columns - 5.0) ** 2) / 4).astype(np.float32)
    size = PlaneSize.plan((8, 8), pad, max_size)
    _, target = image_to_kspace(image, size)
    weights = target.numpy() ** 4  # the centroid of a high power is hardly moved by ringing
    center = [(np.indices(size.final)[k] * weights).sum() / weights.sum() for k in (0, 1)]
    place = size.affine(affine) @ [0, *center, 1]
    np.testing.assert_allclose(place, affine @ [0, 3, 5, 1], atol=0.15 if max_size else 1e-3)


def test_what_is_sampled():
    data = np.ones((2, 3, 8, 10), np.complex64)
    assert sampled(Volume(data, domain="kspace")) == (None, 1.0)
    data[..., ::2] = 0
    mask, share = sampled(Volume(data, domain="kspace"))
    assert mask.tolist() == [0, 1] * 5 and share == 0.5
    data[1, 2, 0, 0] = 1  # one sample in one coil of one slice counts
    assert sampled(Volume(data, domain="kspace"))[0][0] == 1
    with pytest.raises(InputError, match="zero everywhere"):
        sampled(Volume(np.zeros((1, 4, 4), np.complex64), domain="kspace"))
