# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from fedmonai.losses.adaptation import PerturbedView
from fedmonai.networks.inferers import TwoViewInferer


def test_views_of_a_pointwise_network_agree_in_the_geometry_of_the_images() -> None:
    """A network that works pixel by pixel commutes with flips and turns, so without noise both views are equal."""
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    views = TwoViewInferer(PerturbedView(noise_std=0.0))(images, lambda x: x[:, :2] * 3)
    assert views.shape == (2, 6, 2, 8, 8)
    assert torch.equal(views[0], images[:, :2] * 3) and torch.equal(views[1], views[0])


def test_second_view_is_another_one() -> None:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    TwoViewInferer(PerturbedView(noise_std=0.5))(images, lambda x: seen.append(x) or x[:, :2])
    assert torch.equal(seen[0], images)
    assert 0.3 < (seen[1].std() ** 2 - images.std() ** 2).abs().sqrt() < 0.7  # noise was added: variances add up
