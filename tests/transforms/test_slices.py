# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.slices import (
    labeled_slices,
    merge_labels,
    neighbor_indices,
    normalize_volume,
    stack_neighbors,
)


def numbered(num_slices: int) -> torch.Tensor:
    """A volume (1, 2, 2, slices) whose slices hold their position."""
    return torch.arange(float(num_slices)).expand(1, 2, 2, num_slices)


def test_merge_makes_every_zone_prostate():
    label = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    assert merge_labels(label).tolist() == [0, 1, 1, 1] and merge_labels(label).dtype == torch.uint8


def test_labeled_slices_are_found():
    label = torch.zeros(1, 3, 3, 5)
    label[0, 1, 1, 1] = 1
    label[0, 2, 0, 3] = 2
    assert labeled_slices(label) == [1, 3]
    assert labeled_slices(torch.zeros(1, 3, 3, 5)) == []


@pytest.mark.parametrize(
    ("index", "count", "expected"), [(0, 4, [0, 0, 1]), (2, 4, [1, 2, 3]), (3, 4, [2, 3, 3]), (0, 1, [0, 0, 0])]
)
def test_neighbors_repeat_at_both_edges(index, count, expected):
    assert neighbor_indices(index, count) == expected
    assert stack_neighbors(numbered(count))[:, 0, 0, index].tolist() == expected


def test_stacking_a_metatensor_keeps_its_affine():
    affine = torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0], dtype=torch.float64))
    stacked = stack_neighbors(MetaTensor(numbered(3), affine=affine), context_slices=2)
    assert stacked.shape == (5, 2, 2, 3)
    assert torch.equal(stacked.affine, affine)


def test_zscore_minmax_and_none():
    volume = torch.tensor([1.0, 3.0, 5.0, 7.0])  # mean 4, population variance 5
    torch.testing.assert_close(normalize_volume(volume), (volume - 4) / 5**0.5)
    torch.testing.assert_close(normalize_volume(volume, "minmax"), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert torch.equal(normalize_volume(volume.short(), "none"), volume)


@pytest.mark.parametrize("mode", ["zscore", "minmax"])
def test_a_constant_volume_becomes_zero(mode):
    assert torch.equal(normalize_volume(torch.full((2, 2), 7.0), mode), torch.zeros(2, 2))


def test_refuses_what_cannot_be_used():
    with pytest.raises(ConfigError, match="'range' is not known: use one of none, zscore, minmax"):
        normalize_volume(torch.zeros(2), "range")
    with pytest.raises(ConfigError, match="NaN or infinite"):
        normalize_volume(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ConfigError, match="one channel"):
        stack_neighbors(torch.zeros(2, 4, 4, 3))
