# SPDX-License-Identifier: Apache-2.0
"""Weights of sites whose networks are stored channels-last."""

from __future__ import annotations

import pytest
import torch

from fedmonai.federated.messages import weights_message
from fedmonai.federated.protocol import Strategy
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.robust import Median, TrimmedMean


@pytest.mark.parametrize("strategy", [WeightedMean(), Median(), TrimmedMean(0.34)], ids=lambda one: type(one).__name__)
def test_the_mean_of_channels_last_weights_is_that_of_contiguous_ones(strategy: Strategy) -> None:
    shape, count = (4, 3, 2, 2), 3
    sent = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        strategy.initialize({"weight": torch.zeros(shape).contiguous(memory_format=layout)})
        updates = {
            name: weights_message({"weight": values.contiguous(memory_format=layout)}, num_samples=1)
            for name, values in zip("ABC", sent, strict=True)
        }
        strategy.aggregate(1, updates)
        found.append(strategy.global_weights["weight"])
    assert torch.equal(*found)
