# SPDX-License-Identifier: Apache-2.0
"""Masks equal fastMRI's legacy generators column by column, and impossible settings are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.transforms.masks import CartesianMask

GOLDEN = Path(__file__).parents[1] / "golden" / "cartesian_masks.npz"


def test_golden_masks_are_reproduced_exactly():
    checked = 0
    with np.load(GOLDEN) as golden:
        for key in [name for name in golden.files if name.endswith("_spec")]:
            spec = json.loads(str(golden[key]))
            mask = CartesianMask(spec["kind"], spec["accelerations"], spec["center_fractions"])
            drawn = mask.from_file_name(spec["seed_from_name"], spec["columns"])
            assert drawn.dtype == torch.float32
            np.testing.assert_array_equal(drawn.numpy(), golden[key.removesuffix("_spec")])
            checked += 1
    assert checked == 24


def test_random_mask_keeps_the_center_and_w_over_r_columns_on_average():
    rng = np.random.RandomState(0)
    masks = torch.stack([CartesianMask().sample((640, 256), rng) for _ in range(400)])
    # round(256 * 0.08) = 20 columns, from (256 - 20 + 1) // 2 = 118
    assert masks[:, 118:138].min() == 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    # 44 of 236 columns with probability 44/236: the mean of 400 draws has a standard error of 0.3 columns
    assert abs(masks.sum(1).mean().item() - 64) < 1.2


def test_equispaced_spacing_by_hand():
    # W = 20, round(20 * 0.1) = 2 central columns from (20 - 2 + 1) // 2 = 9; spacing 4 * 18 / (20 - 8) = 6;
    # the generator of the legacy code draws the pair, then the offset
    rng = np.random.RandomState(3)
    rng.randint(0, 1)
    offset = rng.randint(0, 6)
    expected = np.zeros(20)
    expected[9:11] = 1
    expected[offset:19:6] = 1
    mask = CartesianMask("equispaced", 4, 0.1).sample(20, np.random.RandomState(3))
    np.testing.assert_array_equal(mask.numpy(), expected)


def test_acceleration_one_keeps_everything_and_a_full_center_too():
    rng = np.random.RandomState(0)
    assert CartesianMask("random", 1.0, 0.08).sample(64, rng).sum() == 64
    assert CartesianMask("random", 1.0, 1.0).sample(64, rng).sum() == 64
    assert CartesianMask("equispaced", 1.0, 1.0).sample(64, rng).sum() == 64


@pytest.mark.parametrize("kind", ["random", "equispaced"])
def test_a_center_that_uses_up_all_columns_leaves_only_the_center(kind):
    mask = CartesianMask(kind, 4, 0.25).sample(64, np.random.RandomState(0))  # 16 = 64 / 4
    assert mask.sum() == 16
    assert mask[24:40].min() == 1


def test_all_pairs_are_drawn():
    mask, rng = CartesianMask("random", (4, 8), (0.08, 0.04)), np.random.RandomState(0)
    low = {mask.sample(400, rng)[184:216].sum().item() == 32 for _ in range(40)}  # 32 central columns or 16
    assert low == {True, False}


def test_same_name_same_mask_and_other_name_other_mask():
    mask = CartesianMask()
    one, again, other = (mask.from_file_name(name, 256) for name in ("a.h5", "a.h5", "b.h5"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("spiral",), "spiral"),
        (("random", 0.5), "0.5"),
        (("random", float("nan")), "nan"),
        (("random", 4, 0.0), "center_fraction 0 "),
        (("random", 4, 1.5), "1.5"),
        (("random", (4, 8), (0.08,)), "pairs"),
        (("random", (), ()), "pairs"),
    ],
)
def test_wrong_settings_are_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        CartesianMask(*arguments)


@pytest.mark.parametrize("kind", ["random", "equispaced"])
def test_a_center_larger_than_the_acceleration_allows_is_refused(kind):
    with pytest.raises(ConfigError, match="13 central of 64 columns"):
        CartesianMask(kind, 8, 0.2).sample(64, np.random.RandomState(0))
