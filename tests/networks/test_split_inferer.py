# SPDX-License-Identifier: Apache-2.0
"""A volume in parts equals the volume at once; no call is larger than asked for."""

from __future__ import annotations

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.networks.inferers import SplitInferer


def test_parts_equal_the_whole():
    image, sizes = torch.rand(7, 1, 4, 4), []

    def network(part, factor):
        sizes.append(len(part))
        return part * factor

    assert torch.equal(SplitInferer(3)(image, network, 2.0), image * 2)
    assert sizes == [3, 3, 1]


def test_further_tensors_of_the_examples_are_split_with_them():
    image, offset, scalar = torch.rand(5, 1, 4, 4), torch.arange(5.0).view(5, 1, 1, 1), torch.tensor(2.0)
    result = SplitInferer(2)(image, lambda part, added, factor: (part + added) * factor, offset, scalar)
    assert torch.equal(result, (image + offset) * 2)


def test_no_slices_at_a_time_is_refused():
    with pytest.raises(ConfigError, match="batch_size 0"):
        SplitInferer(0)
