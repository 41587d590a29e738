# SPDX-License-Identifier: Apache-2.0
"""Site contrast by hand in both modes."""

from __future__ import annotations

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation


@pytest.fixture
def gates() -> torch.Tensor:
    """Three sites, one image, two channels: site 1 differs from site 0 by 0.4, 0 and from site 2 by 0, 0.2."""
    return torch.tensor([[[0.1, 0.5]], [[0.5, 0.5]], [[0.5, 0.7]]], dtype=torch.float64)


def test_released_by_hand(gates: torch.Tensor) -> None:
    gates.requires_grad_()
    loss = SiteContrastLoss("released")(gates, 1)
    assert abs(float(loss) + (0.08 + 0.02) / 2) < 1e-12  # squared differences .16/2 and .04/2
    loss.backward()
    assert gates.grad is not None
    assert not gates.grad[0].any()
    assert not gates.grad[2].any()
    # d/dh1 of -1/2 * sum_j mean((h1 - hj)^2) = -1/2 * (h1 - hj)
    assert torch.allclose(gates.grad[1], torch.tensor([[-0.2, 0.1]], dtype=torch.float64))


def test_intended_by_hand(gates: torch.Tensor) -> None:
    gates.requires_grad_()
    loss = SiteContrastLoss("intended", margin=0.05)(gates, 1)
    assert abs(float(loss) - (0.0 + 0.03) / 2) < 1e-12  # site 0 is beyond the margin
    loss.backward()
    assert gates.grad is not None
    assert not gates.grad[0].any()
    assert torch.allclose(gates.grad[1], torch.tensor([[0.0, 0.1]], dtype=torch.float64))
    assert torch.allclose(gates.grad[2], torch.tensor([[0.0, -0.1]], dtype=torch.float64))


def test_below_the_margin_both_modes_pull_the_own_site_alike(gates: torch.Tensor) -> None:
    slopes = []
    for loss in (SiteContrastLoss("released"), SiteContrastLoss("intended", margin=1.0)):
        own = gates.clone().requires_grad_()
        slopes.append(torch.autograd.grad(loss(own, 0), own)[0][0])
    assert torch.equal(slopes[0], slopes[1])


def test_one_site_and_no_margin_give_zero(gates: torch.Tensor) -> None:
    assert float(SiteContrastLoss()(gates[:1], 0)) == 0.0
    assert float(SiteContrastLoss("released")(gates[:1], 0)) == 0.0
    assert float(SiteContrastLoss(margin=0.0)(gates, 0)) == 0.0


def test_saturation_counts_gates_near_the_ends() -> None:
    assert float(gate_saturation(torch.tensor([0.0, 0.01, 0.5, 0.97, 0.99]))) == pytest.approx(0.6)


def test_wrong_settings_are_named(gates: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="site index 3 is not one of the 3 sites"):
        SiteContrastLoss()(gates, 3)
    with pytest.raises(ConfigError, match="mode 'infonce' is unknown"):
        SiteContrastLoss("infonce")
    with pytest.raises(ConfigError, match="margin 2"):
        SiteContrastLoss(margin=2)
