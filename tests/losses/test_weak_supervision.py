# SPDX-License-Identifier: Apache-2.0
"""The local objective of FedICRA is the weighted sum of its terms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.tree_energy import TreeEnergyLoss
from fedmonai.losses.weak_supervision import WeakSupervisionLoss


@pytest.fixture
def output() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 2, n, n, generator=generator) for n in (4, 8, 16)]
    logits = torch.randn(2, 2, 16, 16, generator=generator).requires_grad_()
    return SimpleNamespace(logits=logits, auxiliary=maps, image=torch.rand(2, 1, 16, 16, generator=generator))


@pytest.fixture
def label() -> torch.Tensor:
    return torch.randint(3, (2, 1, 16, 16), generator=torch.Generator().manual_seed(1))


def test_sum_of_three_terms(output: SimpleNamespace, label: torch.Tensor) -> None:
    loss = WeakSupervisionLoss(2, tree_weight=0.3, crf_weight=0.2)
    value = loss(output, label)
    terms = {
        "pce": PartialCrossEntropyLoss(2)(output.logits, label),
        "tree": TreeEnergyLoss(2)(output.logits, label, output.image, output.auxiliary),
        "crf": GatedCRFLoss()(output.logits, output.image),
    }
    assert {name: float(t) for name, t in loss.terms.items()} == pytest.approx({n: float(t) for n, t in terms.items()})
    torch.testing.assert_close(value, terms["pce"] + 0.3 * terms["tree"] + 0.2 * terms["crf"])
    assert loss.weights == {"pce": 1.0, "tree": 0.3, "crf": 0.2}
    assert not any(term.requires_grad for term in loss.terms.values())


def test_weights_of_zero_leave_the_partial_cross_entropy(output: SimpleNamespace, label: torch.Tensor) -> None:
    loss = WeakSupervisionLoss(2, tree_weight=0.0, crf_weight=0.0)
    expected = PartialCrossEntropyLoss(2)(output.logits, label)
    assert torch.equal(loss(output, label), expected)
    assert torch.equal(loss(output.logits, label), expected)  # logits alone will do
    assert set(loss.terms) == {"pce"} and loss.once_per_epoch(output) == {}


def test_reach_of_the_crf_follows_the_size_of_the_image(output: SimpleNamespace, label: torch.Tensor) -> None:
    """5 and 6 pixels of 256 are 1 and 1.125 of 48; a kernel that follows gives the same picture the same borders."""
    small = WeakSupervisionLoss(2, crf_scale=48 / 256).crf
    assert (small.radius, small.sigma_xy) == (1, pytest.approx(1.125))
    assert WeakSupervisionLoss(2, crf_scale=1.5).crf.radius == 8  # of a fundus picture of 384
    released = WeakSupervisionLoss(2).crf
    assert (released.radius, released.sigma_xy) == (5, 6.0)  # pixels of any image
    assert WeakSupervisionLoss(2, crf_scale=1 / 16).crf.radius == 1  # never none
    loss = WeakSupervisionLoss(2, tree_weight=0.0, crf_weight=1.0, crf_scale=0.2)
    loss(output, label)
    torch.testing.assert_close(loss.terms["crf"], GatedCRFLoss(1, 1.2)(output.logits.detach(), output.image))


def test_a_weight_that_is_0_now_computes_nothing(output: SimpleNamespace, label: torch.Tensor) -> None:
    """A ramp changes the weights of the loss between calls."""
    loss = WeakSupervisionLoss(2)
    whole = loss(output, label)
    loss.weights["crf"] = 0.0
    less = loss(output, label)
    assert set(loss.terms) == {"pce", "tree"}
    loss.weights["crf"] = 0.1
    torch.testing.assert_close(loss(output, label), whole)
    torch.testing.assert_close(less + 0.1 * loss.terms["crf"], whole)


def test_support_of_a_constant_image_is_every_pixel(output: SimpleNamespace) -> None:
    output.image = torch.full((1, 1, 16, 16), 0.5)
    support = WeakSupervisionLoss(2).once_per_epoch(output)["median_support"]
    assert float(support) == pytest.approx(256)


def test_wrong_settings_are_named(output: SimpleNamespace, label: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="tree_weight is -1"):
        WeakSupervisionLoss(2, tree_weight=-1)
    with pytest.raises(ConfigError, match="crf_weight is -1"):
        WeakSupervisionLoss(2, crf_weight=-1)
    with pytest.raises(ConfigError, match="crf_scale is 0"):
        WeakSupervisionLoss(2, crf_scale=0)
    with pytest.raises(ConfigError, match="radius 0"):
        WeakSupervisionLoss(2, crf_radius=0)
    with pytest.raises(ConfigError, match="training_outputs"):
        WeakSupervisionLoss(2)(output.logits, label)
