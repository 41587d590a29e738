# SPDX-License-Identifier: Apache-2.0
"""Instance normalization by hand, against float64, inverted, and where it degenerates."""

from __future__ import annotations

import torch
from monai.engines import SupervisedEvaluator
from numerics import assert_within
from torch import Tensor

from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.intensity import (
    DenormalizeInstanced,
    denormalize_instance,
    normalize_instance,
    standardize_instance_,
)
from fedmonai.transforms.kspace import fft2c


def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    return standardize_instance_(image.clone())


def test_by_hand():
    image = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
    mean, std = statistics(image)
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
    mean, std = statistics(image)
    for index in range(3):
        exact = image[index].double()
        assert_within(mean[index].squeeze(), exact.mean(), 50 + 60)  # sums go by rows and over the rows
        assert_within(std[index].squeeze(), exact.std(), 50 + 60)
    assert statistics(image[0])[0].shape == (1, 1, 1)


def test_in_place_form_gives_the_same():
    image = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    own = image.clone()
    mean, std = standardize_instance_(own, clamp=1.5)
    torch.testing.assert_close(own, normalize_instance(image, mean, std, clamp=1.5), rtol=0, atol=0)
    standardize_instance_(image)
    torch.testing.assert_close(image.std((1, 2, 3)), torch.ones(2))


def test_inverse():
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 1e-5
    mean, std = statistics(image)
    back = denormalize_instance(normalize_instance(image, mean, std), mean, std)
    assert_within(back, image, 6, scale=float(2 * image.max()))  # minus the mean, over the spread, and back
    half = denormalize_instance(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), mean, std)
    assert half.dtype == torch.float32


def test_constant_and_single_pixel_images_become_zero():
    for image in (torch.full((1, 1, 4, 4), 7.0), torch.zeros(1, 1, 4, 4), torch.full((1, 1, 1, 1), 3.0)):
        mean, std = statistics(image)
        assert std.item() == 0
        normalized = normalize_instance(image, mean, std, clamp=6.0)
        assert torch.equal(normalized, torch.zeros_like(image))
        torch.testing.assert_close(denormalize_instance(normalized, mean, std), image)


def test_denormalize_undoes_normalize_for_an_example_and_for_a_batch():
    for shape in ((1, 24, 24), (3, 1, 24, 24)):
        image = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 50
        normalized = image.clone()
        mean, std = standardize_instance_(normalized)
        data = {"image": normalized, "label": None, "mean": mean, "std": std}
        back = DenormalizeInstanced(["image", "label"])(data)
        torch.testing.assert_close(back["image"], image)
        assert back["label"] is None


def test_denormalize_as_postprocessing_of_an_engine():
    image = torch.rand(2, 30, 28, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(image.to(torch.complex64))
    target = image.square().sum(0, keepdim=True).sqrt()
    batch = {
        "kspace": [kspace],
        "hybrid_kspace": torch.tensor([False]),
        "target": target[None, :, 3:-3, 2:-2],
    }
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=torch.nn.Identity(),
        prepare_batch=PrepareKspace(None, 24),
        postprocessing=DenormalizeInstanced(["pred", "label"]),
        decollate=False,
    )
    evaluator.run()
    output = evaluator.state.output
    torch.testing.assert_close(output["label"], target[None, :, 3:-3, 2:-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(output["pred"], output["label"], rtol=0, atol=1e-5)
