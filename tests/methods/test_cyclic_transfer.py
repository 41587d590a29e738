# SPDX-License-Identifier: Apache-2.0
"""Transfer in random order: who is visited when, and what becomes of the model."""

from __future__ import annotations

import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.messages import weights_message
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.cyclic_transfer import CyclicWeightTransfer

SITES = ["A", "B", "C", "D"]


def visits(seed: int, rounds: int = 40) -> list[str]:
    strategy = CyclicWeightTransfer()
    found = []
    for number in range(1, rounds + 1):
        [site] = strategy.participants(number, SITES, seed) or []
        found.append(site)
    return found


def test_every_pass_visits_every_site_once_in_an_order_of_its_own() -> None:
    passes = [visits(0)[n : n + 4] for n in range(0, 40, 4)]
    assert all(sorted(one) == SITES for one in passes)
    assert len({tuple(one) for one in passes}) > 3


def test_the_order_is_a_function_of_seed_and_round() -> None:
    assert visits(3) == visits(3)
    assert visits(3) != visits(4)
    assert visits(3)[7] == CyclicWeightTransfer().participants(8, list(reversed(SITES)), 3)[0]  # type: ignore[index]


def update(value: float) -> ExchangeObject:
    weights = {"w": torch.full((3,), value), "n": torch.tensor(int(10 * value))}
    return weights_message(weights, num_samples=7, num_steps=2, round=1)


def test_the_model_is_what_the_last_site_sent() -> None:
    strategy, mean = CyclicWeightTransfer(), WeightedMean("samples")
    for one in (strategy, mean):
        one.initialize({"w": torch.zeros(3), "n": torch.tensor(0)})
        one.aggregate(1, {"B": update(0.1)})
    assert torch.equal(strategy.global_weights["w"], torch.full((3,), 0.1))
    assert all(torch.equal(strategy.global_weights[key], mean.global_weights[key]) for key in ("w", "n"))
    sent = update(0.3)
    strategy.aggregate(2, {"A": sent})
    sent.weights["w"].zero_()  # type: ignore[index]
    assert torch.equal(strategy.global_weights["w"], torch.full((3,), 0.3))


def test_two_updates_are_no_transfer() -> None:
    strategy = CyclicWeightTransfer()
    strategy.initialize({"w": torch.zeros(3), "n": torch.tensor(0)})
    with pytest.raises(ValueError, match="unpack"):
        strategy.aggregate(1, {"A": update(0.1), "B": update(0.2)})
