# SPDX-License-Identifier: Apache-2.0
"""InTEnt against values that are worked out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.networks.integrated_inferer import IntegratedInferer, balanced_entropy, weights_of


def bits(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_foreground_and_background_count_alike():
    """Three pixels of background at 0.1, one of foreground at 0.75."""
    foreground = torch.tensor([0.1, 0.1, 0.1, 0.75]).view(1, 2, 2)
    pred = torch.stack([1 - foreground, foreground], 1)
    assert balanced_entropy(pred).item() == pytest.approx((bits(0.1) + bits(0.75)) / 2, rel=1e-5)
    nothing = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.1)], 1)
    assert balanced_entropy(nothing).item() == pytest.approx(bits(0.1), rel=1e-5)
    sure = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)], 1)
    assert balanced_entropy(sure).item() == 0


def test_weights_are_a_softmax_of_the_scaled_entropies():
    """0.2, 0.4, 0.6 become 0, 1/2, 1."""
    expected = torch.softmax(torch.tensor([0.0, -0.5, -1.0]), 0)
    torch.testing.assert_close(weights_of(torch.tensor([0.2, 0.4, 0.6])), expected)
    torch.testing.assert_close(weights_of(torch.full((4,), 0.3)), torch.full((4,), 0.25))


class OneNorm(nn.Module):
    """Logits (0, normalized pixel)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False, eps=1e-12)
        self.norm.running_mean.fill_(1.0)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return torch.cat([torch.zeros_like(y), y], 1)


def test_equals_the_formula_with_the_statistics_of_each_image():
    network = OneNorm().train()
    images = torch.tensor([[0.0, 2.0, 4.0, 6.0], [1.0, 1.0, 3.0, 9.0]]).view(2, 1, 2, 2)
    result = IntegratedInferer(3)(images, network).softmax(1)[:, 1]
    for image, found in zip(images, result, strict=True):
        mean, variance = image.mean(), image.var()  # unbiased, as running statistics are
        predictions = []
        for rate in (0.0, 0.5, 1.0):
            scale = ((1 - rate) * 4 + rate * variance).sqrt()
            predictions.append(torch.sigmoid((image - (1 - rate) * 1 - rate * mean) / scale))
        stacked = torch.stack(predictions)
        entropies = balanced_entropy(torch.cat([1 - stacked, stacked], 1))
        torch.testing.assert_close(found, (weights_of(entropies)[:, None, None, None] * stacked).sum(0)[0])
    assert network.training and network.norm.momentum == 0.1
    assert network.norm.running_mean.item() == 1 and network.norm.num_batches_tracked.item() == 0


def test_mistakes():
    with pytest.raises(ConfigError, match="num_predictions is 1"):
        IntegratedInferer(1)
    with pytest.raises(ConfigError, match="the network has none"):
        IntegratedInferer()(torch.zeros(1, 1, 2, 2), nn.Sequential(nn.Conv2d(1, 2, 1)))
    with pytest.raises(ConfigError, match="not function"):
        IntegratedInferer()(torch.zeros(1, 1, 2, 2), lambda x: x)
