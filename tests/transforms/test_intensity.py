# SPDX-License-Identifier: Apache-2.0
"""Instance normalization by hand, against float64, inverted, and where it degenerates."""

from __future__ import annotations

import torch
from numerics import assert_within

from fedmonai.transforms.intensity import (
    denormalize_instance,
    instance_statistics,
    normalize_instance,
    standardize_instance_,
)


def test_by_hand():
    image = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
    mean, std = instance_statistics(image)
    assert mean.shape == std.shape == (1, 1, 1, 1)
    assert mean.item() == 3.0
    # (4 + 1 + 0 + 9) / (4 - 1)
    assert_within(std.square().squeeze(), 14 / 3, 10)  # four squares, their sum, a root, a factor, a square
    limited = normalize_instance(image, mean, std, clamp=0.8).flatten()
    torch.testing.assert_close(limited, torch.tensor([-0.8, -((3 / 14) ** 0.5), 0.0, 0.8]))


def test_each_image_of_a_batch_has_its_own_statistics_even_with_a_large_offset():
    image = torch.rand(3, 1, 50, 60, generator=torch.Generator().manual_seed(0)) + torch.tensor([0, 10, 1000.0]).view(
        3, 1, 1, 1
    )
    mean, std = instance_statistics(image)
    for index in range(3):
        exact = image[index].double()
        assert_within(mean[index].squeeze(), exact.mean(), 50 + 60)  # sums go by rows and over the rows
        assert_within(std[index].squeeze(), exact.std(), 50 + 60)
    assert instance_statistics(image[0])[0].shape == (1, 1, 1)


def test_in_place_form_gives_the_same():
    image = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    mean, std = instance_statistics(image)
    expected = normalize_instance(image, mean, std, clamp=1.5)
    own = image.clone()
    own_mean, own_std = standardize_instance_(own, clamp=1.5)
    torch.testing.assert_close((own, own_mean, own_std), (expected, mean, std), rtol=0, atol=0)
    standardize_instance_(image)
    torch.testing.assert_close(image.std((1, 2, 3)), torch.ones(2))


def test_inverse():
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 1e-5
    mean, std = instance_statistics(image)
    back = denormalize_instance(normalize_instance(image, mean, std), mean, std)
    assert_within(back, image, 6, scale=float(2 * image.max()))  # minus the mean, over the spread, and back
    half = denormalize_instance(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), mean, std)
    assert half.dtype == torch.float32


def test_constant_and_single_pixel_images_become_zero():
    for image in (torch.full((1, 1, 4, 4), 7.0), torch.zeros(1, 1, 4, 4), torch.full((1, 1, 1, 1), 3.0)):
        mean, std = instance_statistics(image)
        assert std.item() == 0
        normalized = normalize_instance(image, mean, std, clamp=6.0)
        assert torch.equal(normalized, torch.zeros_like(image))
        torch.testing.assert_close(denormalize_instance(normalized, mean, std), image)
