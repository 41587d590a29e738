# SPDX-License-Identifier: Apache-2.0
"""SAR's step against its equations, with the gradient taken by autograd on a function written here."""

from __future__ import annotations

import math

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.losses.adaptation import EntropyLoss, reliable_entropy
from fedmonai.methods.sar import SharpnessAwareStep

#: one pixel each: sure, less sure, unsure (entropy above 0.4 log 2)
PIXELS = torch.tensor([3.0, 2.0, 0.2]).view(3, 1, 1, 1)


class OneWeight(nn.Module):
    """Logits (0, w x + v)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.v = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.w * x.double() + self.v
        return torch.cat([torch.zeros_like(y), y], 1)


def entropy(logit: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(logit)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def reliable_mean(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels whose entropy is below 0.4 log 2, by hand."""
    values = [entropy(w * x + v) for x in PIXELS.flatten().double()]
    return torch.stack([value for value in values if float(value) < 0.4 * math.log(2)]).mean()


def trained(handler: SharpnessAwareStep, steps: int = 1) -> OneWeight:
    network = OneWeight()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=steps,
        train_data_loader=[{"image": PIXELS}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=EntropyLoss(handler.threshold),
        inferer=SimpleInferer(),
        train_handlers=[handler],
        decollate=False,
    )
    trainer.run()
    return network


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.2])
def test_a_step_descends_the_gradient_of_the_worst_place_nearby(rho):
    w, v = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, 0.5))
    gradient = torch.autograd.grad(reliable_mean(w, v), (w, v))
    norm = math.hypot(*map(float, gradient))
    nearby = [(p + rho * g / norm).detach().requires_grad_() for p, g in zip((w, v), gradient, strict=True)]
    # the third pixel is unsure at both places; the others are reliable at both
    expected = torch.autograd.grad(reliable_mean(*nearby), nearby)
    network = trained(SharpnessAwareStep(rho=rho, recovery=0.0))
    # the sum is taken in single precision by the loss of the first pass only, which gives the direction
    torch.testing.assert_close(network.w.detach(), w.detach() - 0.1 * expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network.v.detach(), v.detach() - 0.1 * expected[1], atol=1e-6, rtol=1e-5)


def test_unreliable_pixels_count_nothing():
    logits = torch.tensor([[0.0, 3.5], [0.0, 0.1]]).view(2, 2, 1, 1)
    sure = float(entropy(torch.tensor(3.5)))
    assert float(reliable_entropy(logits, 0.4)) == pytest.approx(sure, rel=1e-5)
    assert float(reliable_entropy(logits)) == pytest.approx((sure + float(entropy(torch.tensor(0.1)))) / 2, rel=1e-5)
    assert float(reliable_entropy(logits, 0.4, among=logits.flip(0))) == 0
    nothing = torch.zeros(1, 2, 1, 1, requires_grad=True)
    loss = EntropyLoss(0.4)(nothing)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(nothing.grad, torch.zeros_like(nothing))


def test_a_collapse_is_put_back():
    """Every mean entropy is below 0.9 log 2, so that the model returns to its start after each step."""
    handler = SharpnessAwareStep(recovery=0.9)
    network = trained(handler, steps=3)
    assert handler.recoveries == 3 and float(network.w) == 1.0 and float(network.v) == 0.5
    assert trained(SharpnessAwareStep(recovery=0.0), steps=3).w.item() > 1.0


@pytest.mark.parametrize("values", [{"threshold": 0.0}, {"rho": -1.0}, {"recovery": 1.0}])
def test_mistakes(values):
    with pytest.raises(ConfigError, match="give 0 < threshold <= 1, rho >= 0 and 0 <= recovery < 1"):
        SharpnessAwareStep(**values)
    with pytest.raises(ConfigError, match="threshold is 2"):
        EntropyLoss(2.0)
    with pytest.raises(ConfigError, match="EntropyLoss was given a label"):
        EntropyLoss()(torch.zeros(1, 2, 1, 1), torch.zeros(1))
