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


def test_support_of_a_constant_image_is_every_pixel(output: SimpleNamespace) -> None:
    output.image = torch.full((1, 1, 16, 16), 0.5)
    support = WeakSupervisionLoss(2).once_per_epoch(output)["median_support"]
    assert float(support) == pytest.approx(256)


def test_wrong_settings_are_named(output: SimpleNamespace, label: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="tree_weight is -1"):
        WeakSupervisionLoss(2, tree_weight=-1)
    with pytest.raises(ConfigError, match="crf_weight is -1"):
        WeakSupervisionLoss(2, crf_weight=-1)
    with pytest.raises(ConfigError, match="training_outputs"):
        WeakSupervisionLoss(2)(output.logits, label)
