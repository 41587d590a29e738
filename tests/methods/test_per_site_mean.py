# SPDX-License-Identifier: Apache-2.0
"""Tensors with an owner come from their owner alone."""

from __future__ import annotations

import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import weights_message
from fedmonai.methods.averaging import PerSiteMean, WeightedMean

START = {"body": torch.zeros(2), "row.0": torch.zeros(2), "row.1": torch.zeros(2), "count": torch.tensor(0)}
OWNERS = {"A": r"row\.0", "B": [r"row\.1"]}


def update(value: float, samples: int = 1, batches: int = 1) -> ExchangeObject:
    weights = {key: torch.full_like(tensor, value) for key, tensor in START.items()}
    return weights_message(weights, num_samples=samples, num_steps=1, num_batches=batches, round=1)


def mean(owners: dict | None = OWNERS, weighting: str = "uniform") -> PerSiteMean:
    made = PerSiteMean(owners, weighting)
    made.initialize(START)
    return made


def test_rows_come_from_their_owners_the_rest_is_the_mean() -> None:
    strategy = mean(weighting="samples")
    strategy.aggregate(1, {"A": update(1.0, 30), "B": update(5.0, 10)})
    values = {key: float(tensor.flatten()[0]) for key, tensor in strategy.global_weights.items()}
    assert values == {"body": 2.0, "row.0": 1.0, "row.1": 5.0, "count": 1}
    assert strategy.global_weights["count"].dtype == torch.int64


def test_without_its_owner_a_row_keeps_its_value() -> None:
    strategy = mean()
    strategy.aggregate(1, {"A": update(1.0), "B": update(5.0)})
    strategy.aggregate(2, {"A": update(9.0)})
    assert float(strategy.global_weights["row.1"][0]) == 5.0
    assert float(strategy.global_weights["row.0"][0]) == 9.0


def test_without_owners_it_is_the_weighted_mean_to_the_bit() -> None:
    owned, plain = mean({}, "batches"), WeightedMean("batches")
    plain.initialize(START)
    for strategy in (owned, plain):
        strategy.aggregate(1, {"A": update(0.1, batches=3), "B": update(0.7, batches=7)})
    assert all(torch.equal(owned.global_weights[k], plain.global_weights[k]) for k in START)
    assert float(plain.global_weights["body"][0]) == pytest.approx(0.1 * 0.3 + 0.7 * 0.7)


def test_owners_are_known_after_a_resume() -> None:
    strategy = PerSiteMean(OWNERS)
    first = mean()
    strategy.load_state_dict(first.state_dict())
    strategy.aggregate(1, {"A": update(1.0), "B": update(5.0)})
    assert float(strategy.global_weights["row.0"][0]) == 1.0


@pytest.mark.parametrize(
    ("owners", "text"),
    [
        ({"A": "rows"}, "owners of site 'A': the pattern 'rows' matches none"),
        ({"A": "("}, "not a regular expression"),
        ({"A": r"row\.0", "B": r"row\..*"}, "'row.0' belongs to sites 'A' and 'B'"),
    ],
    ids=["misspelt", "no pattern", "two owners"],
)
def test_mistakes_are_named(owners: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        mean(owners)
