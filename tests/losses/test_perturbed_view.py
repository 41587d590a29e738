# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.losses.adaptation import PerturbedView


@pytest.mark.parametrize("size", [(4, 4), (4, 6)])
def test_undo_returns_the_images_exactly(size):
    images = torch.arange(64.0 * size[0] * size[1]).reshape(32, 2, *size)
    view = PerturbedView(noise_std=0.0, seed=3)
    seen = view.apply(images)
    assert seen.shape == images.shape
    assert not torch.equal(seen, images)
    assert torch.equal(view.undo(seen), images)


def test_all_eight_views_of_a_square_are_drawn():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(200, 1, 1, 1)
    views = PerturbedView(noise_std=0.0).apply(image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


def test_noise_has_the_asked_spread_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    view = PerturbedView(noise_std=0.5)
    noise = view.undo(view.apply(torch.zeros(4, 3, 64, 64)))
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(torch.rand(1), expected)


def test_the_same_seed_and_a_restored_state_give_the_same_view():
    images = torch.zeros(3, 1, 4, 4)
    first, second = PerturbedView(seed=5), PerturbedView(seed=5)
    assert torch.equal(first.apply(images), second.apply(images))
    second = PerturbedView(seed=9)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.apply(images), second.apply(images))


def test_refuses_negative_noise_and_a_foreign_batch():
    with pytest.raises(ConfigError, match="noise_std is -1"):
        PerturbedView(noise_std=-1)
    view = PerturbedView()
    view.apply(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="3 predictions for a view of 2 images"):
        view.undo(torch.zeros(3, 1, 4, 4))
