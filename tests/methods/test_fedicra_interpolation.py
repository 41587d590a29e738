# SPDX-License-Identifier: Apache-2.0
"""m = b + (o - b) W: both orders, the gradient of W, its bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.methods.fedicra import ElementwiseInterpolation

OWN = {"w": torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)}
RECEIVED = {"w": torch.tensor([1.0, 1.0, 0.0, 7.0], dtype=torch.float64)}


def mix(order: str, eta: float = 1.0) -> ElementwiseInterpolation:
    made = ElementwiseInterpolation(eta, order)
    made.begin(OWN)
    return made


@pytest.mark.parametrize(("order", "start"), [("fedala", RECEIVED), ("released", OWN)])
def test_weights_of_one_give_the_start_of_each_order_to_the_bit(order: str, start: dict[str, Tensor]) -> None:
    assert torch.equal(mix(order).blend({"w": "w"}, OWN, RECEIVED)["w"], start["w"])


def test_blend_by_hand() -> None:
    made = mix("fedala")
    made.weights["w"] = torch.tensor([0.0, 0.5, 0.25, 0.75], dtype=torch.float64)
    blended = made.blend({"w": "w"}, OWN, RECEIVED)["w"]
    assert blended.tolist() == [0.0, 1.0, 1.5, 6.0]  # own + (received - own) W


@pytest.mark.parametrize("order", ["fedala", "released"])
def test_step_follows_the_finite_difference_of_the_loss(order: str) -> None:
    """L(m) = sum (m - 0.4)^2 / 2 has the gradient m - 0.4 at m; dL/dW is that times (o - b)."""
    made = mix(order, eta=1e-3)
    start = torch.tensor([0.3, 0.5, 0.6, 0.7], dtype=torch.float64)

    def loss(weights: Tensor) -> Tensor:
        made.weights["w"] = weights
        return (made.blend({"w": "w"}, OWN, RECEIVED)["w"] - 0.4).square().sum() / 2

    step = 1e-6
    slopes = torch.stack([(loss(start + d) - loss(start - d)) / (2 * step) for d in step * torch.eye(4).double()])
    made.weights["w"] = start.clone()
    gradient = made.blend({"w": "w"}, OWN, RECEIVED)["w"] - 0.4
    made.learn(["w"], [gradient], OWN, RECEIVED)
    torch.testing.assert_close((start - made.weights["w"]) / 1e-3, slopes, rtol=1e-7, atol=1e-8)


def test_weights_stay_within_bounds() -> None:
    made = mix("fedala")
    made.learn(["w"], [torch.tensor([9.0, 9.0, 9.0, -9.0], dtype=torch.float64)], OWN, RECEIVED)
    # slopes g (o - b) = 9, 0, -18, -36: W = 1 - slope, clipped
    assert made.weights["w"].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_weights_are_kept_until_told_to_forget() -> None:
    made = mix("fedala")
    made.weights["w"] = torch.full((4,), 0.5, dtype=torch.float64)
    made.begin(OWN)
    assert made.weights["w"].tolist() == [0.5] * 4
    made.begin(OWN, forget=True)
    assert made.weights["w"].tolist() == [1.0] * 4


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="mixing_eta is -1"):
        ElementwiseInterpolation(-1)
    with pytest.raises(ConfigError, match="'swapped'; choose one of fedala, released"):
        ElementwiseInterpolation(1, "swapped")
