# SPDX-License-Identifier: Apache-2.0
"""Scores of named targets: the disc is cup or rim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import assert_within
from scipy.ndimage import binary_erosion

from fedmonai.errors import ConfigError
from fedmonai.metrics.segmentation import CaseHD95, TargetDice, target_metrics
from fedmonai.metrics.volume import VolumeMetric

TARGETS = {"disc": None, "cup": 1}


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth: disc of 8 x 8 with a cup of 4 x 4; found: the disc exactly, the cup with half of its pixels."""
    truth = torch.zeros(1, 16, 16)
    truth[0, 4:12, 4:12] = 2
    truth[0, 6:10, 6:10] = 1
    found = truth.clone()
    found[0, 6:8, 6:10] = 2
    return found, truth


def result(metric: VolumeMetric, found: torch.Tensor, truth: torch.Tensor) -> float:
    """Score of a case of one slice."""
    planes = (mask[None] for mask in metric.prepare(found, truth))
    return metric.score(*planes, {"volume": "a"})


def test_disc_is_cup_or_rim_and_the_mean_is_over_targets() -> None:
    found, truth = masks()
    metrics = target_metrics(TARGETS, [1, 1, 1])
    assert set(metrics) == {f"{kind}_{name}" for kind in ("dice", "hd95", "assd") for name in TARGETS}
    assert result(metrics["dice_disc"], found, truth) == 1.0
    assert result(metrics["hd95_disc"], found, truth) == 0.0
    # cup: 8 of 16 pixels found, 2 * 8 / (8 + 16)
    assert result(metrics["dice_cup"], found, truth) == pytest.approx(2 / 3)
    assert result(TargetDice(TARGETS), found, truth) == pytest.approx((1 + 2 / 3) / 2)


def test_empty_masks_are_defined() -> None:
    _, truth = masks()
    nothing = torch.zeros_like(truth)
    metrics = target_metrics({"cup": 1}, [1, 1, 1])
    with pytest.warns(UserWarning, match="prediction of case a is empty"):
        assert result(metrics["dice_cup"], nothing, truth) == 0.0
        assert result(metrics["hd95_cup"], nothing, truth) == pytest.approx(np.hypot(np.hypot(16, 16), 1))
    assert result(metrics["dice_cup"], nothing, nothing) == 1.0
    assert result(metrics["hd95_cup"], nothing, nothing) == 0.0


def blobs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    for mask in (first, second):
        row, column = torch.randint(2, 8, (2,), generator=generator).tolist()
        mask[0, row : row + 6, column : column + 5] = 1
    return first, second


def brute_force(first: torch.Tensor, second: torch.Tensor) -> float:
    """95th percentile of the distances between the outlines, as point sets, the larger of both directions."""
    outlines = []
    for mask in (first, second):
        plane = mask[0].numpy() > 0
        outlines.append(np.argwhere(plane & ~binary_erosion(plane)))
    distances = np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=-1)
    return max(float(np.percentile(distances.min(axis), 95)) for axis in (0, 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hd95_equals_the_point_sets_and_does_not_turn_with_the_picture(seed: int) -> None:
    found, truth = blobs(seed)
    metric = CaseHD95(1, [1, 1, 1])
    value = result(metric, found, truth)
    assert_within(np.float32(value), brute_force(found, truth), 10)
    turned = [m.rot90(1, (1, 2)) for m in (found, truth)]
    assert_within(np.float32(result(metric, *turned)), value, 10)
    dice = TargetDice({"it": 1})
    assert result(dice, *turned) == pytest.approx(result(dice, found, truth), abs=1e-12)


def test_no_target_is_named() -> None:
    with pytest.raises(ConfigError, match="targets is empty"):
        TargetDice({})
    with pytest.raises(ConfigError, match="targets is empty"):
        target_metrics({})
