# SPDX-License-Identifier: Apache-2.0
"""Median and trimmed mean: by hand, as FedAvg where nothing is left out, and against a hostile minority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import weights_message
from fedmonai.federated.protocol import Strategy
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.robust import Median, TrimmedMean


def updates(*values: float) -> dict[str, ExchangeObject]:
    """Sites A, B, ... that send these values in every coordinate, and their place as a counter."""
    return {
        chr(ord("A") + i): weights_message(
            {"w": torch.full((2, 3), value), "n": torch.tensor(i + 5)}, num_samples=10**i
        )
        for i, value in enumerate(values)
    }


def aggregated(strategy: Strategy, *values: float) -> float:
    strategy.initialize({"w": torch.zeros(2, 3), "n": torch.tensor(0)})
    strategy.aggregate(1, updates(*values))
    assert strategy.global_weights["n"].dtype == torch.int64
    assert int(strategy.global_weights["n"]) == 5
    result = strategy.global_weights["w"]
    assert bool((result == result[0, 0]).all())
    return float(result[0, 0])


@pytest.mark.parametrize(
    ("strategy", "values", "expected"),
    [
        (Median(), (3.0, 1.0, 100.0), 3.0),
        (Median(), (3.0, 1.0, 100.0, 4.0), 3.5),
        (Median(), (7.0,), 7.0),
        (Median(), (7.0, 9.0), 8.0),
        (TrimmedMean(0.25), (3.0, 1.0, 100.0, 4.0), 3.5),
        # five sites, one left out at either end: (2 + 3 + 4) / 3
        (TrimmedMean(0.2), (-50.0, 2.0, 3.0, 4.0, 1000.0), 3.0),
        # floor(0.2 * 4) = 0 leaves out nothing
        (TrimmedMean(0.2), (1.0, 2.0, 3.0, 10.0), 4.0),
        (TrimmedMean(0.1), (-90.0, *[1.0] * 8, 90.0), 1.0),
        (Median(), (3e38, 3e38, -3e38, 3e38), 3e38),
    ],
)
def test_by_hand(strategy: Strategy, values: tuple[float, ...], expected: float) -> None:
    assert aggregated(strategy, *values) == pytest.approx(expected, rel=1e-6)


def test_against_numpy_over_more_than_one_chunk() -> None:
    size = (1 << 17) + 11
    values = np.random.RandomState(0).randn(5, size).astype(np.float32)
    messages = {str(i): weights_message({"w": torch.from_numpy(v)}) for i, v in enumerate(values)}
    strategy = Median()
    strategy.initialize({"w": torch.zeros(size)})
    strategy.aggregate(1, messages)
    np.testing.assert_array_equal(strategy.global_weights["w"].numpy(), np.median(values, axis=0))


def test_nothing_left_out_is_fedavg_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    messages = {s: weights_message({"w": torch.randn(50, generator=generator)}) for s in "CABD"}
    robust, plain = TrimmedMean(0), WeightedMean("uniform")
    for strategy in (robust, plain):
        strategy.initialize({"w": torch.zeros(50)})
        strategy.aggregate(1, messages)
    assert torch.equal(robust.global_weights["w"], plain.global_weights["w"])


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan")])
def test_trim_outside_its_range(trim: float) -> None:
    with pytest.raises(ConfigError, match="trim is"):
        TrimmedMean(trim)


class Poisoned(LocalPool):
    """Site C answers with the opposite of what it learned, enlarged; no guard can know that it is wrong."""

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        update = super().train(name, message)
        if name == "C":
            update.weights = {key: -50.0 * tensor for key, tensor in (update.weights or {}).items()}
        return update


def test_a_hostile_minority_moves_the_mean_but_not_the_median(
    tmp_path: Path, tiny_federation: Callable[..., Federation]
) -> None:
    losses = {}
    for strategy in (WeightedMean(), Median(), TrimmedMean(0.34)):
        engine = tiny_federation(tmp_path / type(strategy).__name__, strategy=strategy, kind=Poisoned, num_rounds=1)
        engine.usual_norm.ratio = None  # the bound on norms would leave the hostile site out before the mean
        engine.run()
        losses[type(strategy).__name__] = engine.state.metrics["val_mse_A"]
    assert losses["Median"] < 0.5 and losses["TrimmedMean"] < 0.5
    assert losses["WeightedMean"] > 5 * losses["Median"]
