# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within
from torch.nn import functional

from fedmonai.errors import ConfigError
from fedmonai.losses.adaptation import AdaptationLoss, consistency_term, entropy_term, shape_term

GOLDEN = Path(__file__).parents[1] / "golden" / "iop_fl_losses.npz"


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    """In double precision, so that only the reference rounds."""
    return {name: torch.from_numpy(value).double() for name, value in np.load(GOLDEN).items()}


#: of the reference: sums over rows, columns and classes of three images
ROUNDINGS = 3 * (24 + 24) * 2


def test_terms_equal_the_published_ones(golden):
    logits, other = golden["logits"], golden["other_view_logits"]
    for value, name in (
        (entropy_term(logits), "entropy_class_axis"),
        (entropy_term(logits, "batch"), "entropy_batch_axis_release"),
        (consistency_term(logits, other), "consistency_mean"),
        (shape_term(logits), "shape_term"),
    ):
        assert_within(value, golden[name].float(), ROUNDINGS)


def test_loss_is_the_weighted_sum(golden):
    logits, other = golden["logits"], golden["other_view_logits"]
    expected = 10 * golden["entropy_class_axis"] + 0.1 * golden["consistency_mean"] + golden["shape_term"]
    assert_within(AdaptationLoss()(torch.stack([logits, other])), expected.float(), ROUNDINGS)
    only = AdaptationLoss(entropy_weight=0.0, consistency_weight=2.0, shape_weight=0.0)
    assert_within(only(torch.stack([logits, other])), 2 * golden["consistency_mean"].float(), ROUNDINGS)


def test_entropy_by_hand():
    uniform, certain = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    certain[:, 1] = 100.0
    assert entropy_term(uniform).item() == pytest.approx(1.0, abs=1e-5)
    assert entropy_term(certain).item() == pytest.approx(0.0, abs=1e-5)
    # summed over a batch of two instead of four classes: 2 * 0.25 * log 4 / log 4
    assert entropy_term(uniform, "batch").item() == pytest.approx(0.5, abs=1e-5)


def test_shape_term_and_its_gradient_equal_the_square_window():
    logits = torch.randn(2, 3, 13, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    foreground = logits.softmax(1)[:, 1:].sum(1, keepdim=True)
    extent = functional.max_pool2d(foreground, 5, 1, 2) + functional.max_pool2d(-foreground, 5, 1, 2)
    expected = (1e-6 * extent).norm()
    value = shape_term(logits, window=5)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits))


def test_a_constant_prediction_has_no_shape_and_a_finite_gradient():
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    value = shape_term(logits)
    value.backward()
    assert value.item() == 0.0 and bool(torch.isfinite(logits.grad).all())


def test_refuses_wrong_settings():
    with pytest.raises(ConfigError, match="entropy_axis is 'pixel'"):
        AdaptationLoss(entropy_axis="pixel")
    with pytest.raises(ConfigError, match="entropy_axis is 'pixel'"):
        entropy_term(torch.zeros(1, 2, 2, 2), "pixel")
    with pytest.raises(ConfigError, match="two views"):
        AdaptationLoss()(torch.zeros(2, 2, 8, 8))
    with pytest.raises(ConfigError, match="window of the shape term is 4"):
        shape_term(torch.zeros(1, 2, 8, 8), window=4)


def test_refuses_a_label(golden):
    views = torch.stack([golden["logits"], golden["other_view_logits"]])
    with pytest.raises(ConfigError, match="was given a label"):
        AdaptationLoss()(views, torch.zeros(len(views[0]), 1, *views.shape[-2:]))
