# SPDX-License-Identifier: Apache-2.0
"""The loss that IOP-FL's bundle trains with is the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from numerics import assert_within

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "iop_fl_losses.npz"


def batch_dice() -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / "iop_fl" / "configs" / "train.json"))
    return parser.get_parsed_content("loss")


def test_equals_the_published_loss_and_its_gradient():
    golden = np.load(GOLDEN)
    logits = torch.from_numpy(golden["logits"]).double().requires_grad_()
    loss = batch_dice()(logits, torch.from_numpy(golden["label"]))
    rounded = 3 * (24 + 24)  # only the reference is float32: sums over rows, columns and images
    assert_within(loss, golden["dice_loss"].astype(np.float32), rounded)
    loss.backward()
    assert_within(logits.grad, golden["dice_loss_grad"], rounded)


def test_by_hand():
    # two examples of two pixels; p(foreground) = 0.8, 0.5 | 0.5, 0.5; label 1, 0 | 0, 1
    probability = torch.tensor([[0.8, 0.5], [0.5, 0.5]], dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(probability), torch.logit(probability)], dim=1)[:, :, None]
    label = torch.tensor([[1, 0], [0, 1]])[:, None, None]
    # foreground: overlap 1.3, sum p 2.3, sum y 2; background: overlap 1.0, sum p 1.7, sum y 2
    expected = 1 - (2 * 1.3 / 4.3 + 2 * 1.0 / 3.7) / 2
    assert batch_dice()(logits, label).item() == pytest.approx(
        expected, rel=1e-5
    )  # smoothing adds 1e-5 to sums of about 4


def test_an_absent_class_costs_nothing():
    logits = torch.tensor([60.0, -60.0, -60.0]).reshape(1, 3, 1, 1).repeat(1, 1, 4, 4)
    assert_within(batch_dice()(logits, torch.zeros(1, 1, 4, 4)), 0.0, 3 * 16, scale=1.0)


def test_refuses_a_label_that_does_not_fit():
    with pytest.raises(AssertionError, match="different shape"):
        batch_dice()(torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 5))
