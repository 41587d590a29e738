# SPDX-License-Identifier: Apache-2.0
"""Partial cross entropy by hand, and on batches without a label."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from numerics import assert_within

from fedmonai.errors import ConfigError
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss


def test_mean_over_labeled_pixels_by_hand() -> None:
    # One image of 1x4 pixels with probabilities of class 1: 1/2, 3/4, 1/4, anything.
    odds = torch.tensor([[1.0, 3.0, 1 / 3, 7.0]]).log()
    logits = torch.stack([torch.zeros_like(odds), odds])[None]
    label = torch.tensor([[[[1, 1, 0, 2]]]], dtype=torch.uint8)
    expected = (math.log(2) + math.log(4 / 3) + math.log(4 / 3)) / 3
    assert_within(PartialCrossEntropyLoss(2)(logits, label), expected, 10)  # logarithms of 4 and less, and a mean of 3
    assert float(PartialCrossEntropyLoss(2)(logits, label[:, 0])) == float(PartialCrossEntropyLoss(2)(logits, label))


def test_no_labeled_pixel_is_zero_with_a_warning() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = PartialCrossEntropyLoss(3)
    with pytest.warns(UserWarning, match=r"1 batch\(es\) had no labeled pixel"):
        value = loss(logits, torch.full((2, 1, 4, 4), 3))
    value.backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss.warn_if_empty() == 0  # said once
        loss(logits, torch.zeros(2, 1, 4, 4))
    assert not loss.state_dict()


def test_unlabeled_pixels_get_no_gradient() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    label = torch.full((1, 1, 3, 3), 2)
    label[..., 1, 1] = 1
    PartialCrossEntropyLoss(2)(logits, label).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1)[0] > 0
    assert touched.nonzero().tolist() == [[1, 1]]


def test_wrong_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"does not fit logits of shape \(1, 2, 3, 3\)"):
        PartialCrossEntropyLoss(2)(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 6, 6))
