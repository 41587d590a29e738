# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.networks.normalization import RunningBatchNorm, StatisticsInferer, adapt_normalization


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    layers[1][0].running_mean.copy_(torch.tensor([1.0, -2.0]))
    layers[1][0].running_var.copy_(torch.tensor([4.0, 0.25]))
    return layers


@pytest.mark.parametrize("statistics", ["batch", "running", "site"])
def test_only_affine_parameters_adapt_and_names_stay(statistics):
    names = set(dict(network().named_parameters()))
    adapting = adapt_normalization(network(), statistics)
    assert set(dict(adapting.named_parameters())) == names
    trained = {name for name, parameter in adapting.named_parameters() if parameter.requires_grad}
    assert trained == {"1.0.weight", "1.0.bias"}


def test_batch_statistics_are_used_in_evaluation_too():
    norm = adapt_normalization(nn.Sequential(nn.BatchNorm2d(1)), "batch").eval()
    image = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 1, 2, 2)  # mean 3, variance (9 + 1 + 1 + 9) / 4 = 5
    torch.testing.assert_close(norm(image), (image - 3) / (5 + 1e-5) ** 0.5)
    assert not norm.state_dict().keys() & {"0.running_mean", "0.running_var"}


def test_running_statistics_are_used_in_training_and_do_not_move():
    plain, kept = network().eval(), adapt_normalization(network(), "running").train()
    image = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(kept(image), plain(image))
    assert isinstance(kept[1][0], RunningBatchNorm)
    for key, value in kept.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
    torch.testing.assert_close(torch.jit.script(kept.eval())(image), plain(image))


def test_statistics_of_the_site_are_the_mean_over_its_batches():
    """Two batches of one channel: means 1 and 4, unbiased variances 2 and 8; before them the old statistics count."""
    norm = nn.Sequential(nn.BatchNorm2d(1))
    norm[0].running_mean.fill_(10.0)
    adapt_normalization(norm, "site")
    assert norm[0].running_mean.item() == 10
    norm.eval()
    for values in ([0.0, 2.0], [2.0, 6.0]):
        StatisticsInferer()(torch.tensor(values).view(2, 1, 1, 1), norm)
    assert not norm.training
    assert norm[0].running_mean.item() == pytest.approx((1 + 4) / 2)
    assert norm[0].running_var.item() == pytest.approx((2 + 8) / 2)


def test_mistakes():
    with pytest.raises(ConfigError, match="statistics is 'bacth'; choose one of batch, running, site"):
        adapt_normalization(network(), "bacth")
    with pytest.raises(ConfigError, match="has no running statistics; choose batch"):
        adapt_normalization(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), "site")
    with pytest.raises(ConfigError, match=r"needs a network .*, not function"):
        StatisticsInferer()(torch.zeros(1, 1, 2, 2), lambda x: x)
