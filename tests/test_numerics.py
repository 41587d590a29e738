# SPDX-License-Identifier: Apache-2.0
"""The bound for roundings is far below what a fault makes."""

from __future__ import annotations

import copy

import pytest
import torch
from numerics import assert_within, roundings_of

from fedmonai.networks.reconstruction_unet import ReconstructionUNet


def test_three_percent_in_any_one_tensor_of_a_network_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 32, 32, generator=generator)
    torch.manual_seed(0)
    network = ReconstructionUNet(base_channels=2).eval()
    roundings = roundings_of(network)
    with torch.no_grad():
        expected = network(image)
        assert_within(copy.deepcopy(network).double()(image.double()), expected, roundings)
        for name in dict(network.named_parameters()):
            wrong = copy.deepcopy(network)
            parameter = wrong.get_parameter(name)
            parameter.add_(0.03 * parameter.abs().max() * torch.randn(parameter.shape, generator=generator))
            with pytest.raises(AssertionError, match="apart"):
                assert_within(wrong(image), expected, roundings)
    with pytest.raises(AssertionError, match="use float64"):
        assert_within(torch.ones(1), torch.ones(1), 10_000)
