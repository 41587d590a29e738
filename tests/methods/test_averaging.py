# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, by hand."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_within

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.messages import SharedKeys, message_bytes, weights_message
from fedmonai.methods.averaging import WeightedMean, weighted_mean_


def update(value: float, counter: int, samples: int = 1, steps: int = 1) -> object:
    weights = {"w": torch.full((2, 3), value), "n": torch.tensor(counter)}
    return weights_message(weights, num_samples=samples, num_steps=steps, round=1)


def strategy(weighting: str) -> WeightedMean:
    mean = WeightedMean(weighting)
    mean.initialize({"w": torch.zeros(2, 3), "n": torch.tensor(0)})
    return mean


@pytest.mark.parametrize(
    ("weighting", "expected"),
    # values 1 and 4; shares 1/2 and 1/2, 3/4 and 1/4 (samples 30, 10), 1/5 and 4/5 (steps 2, 8)
    [("uniform", 2.5), ("samples", 1.75), ("steps", 3.4)],
)
def test_weighted_mean_by_hand(weighting: str, expected: float) -> None:
    mean = strategy(weighting)
    mean.aggregate(1, {"B": update(4.0, 7, samples=10, steps=8), "A": update(1.0, 5, samples=30, steps=2)})
    torch.testing.assert_close(mean.global_weights["w"], torch.full((2, 3), expected))
    # integer buffers keep their type and come from the first site in sorted order
    assert mean.global_weights["n"].dtype == torch.int64
    assert int(mean.global_weights["n"]) == 5


def test_one_site_is_its_own_mean_to_the_bit() -> None:
    mean = strategy("samples")
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    mean.aggregate(1, {"A": weights_message({"w": values, "n": torch.tensor(1)}, num_samples=7)})
    assert torch.equal(mean.global_weights["w"], values)


def test_mean_of_equal_updates_is_that_update_to_the_bit() -> None:
    mean = strategy("samples")
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    equal = {
        s: weights_message({"w": values, "n": torch.tensor(1)}, num_samples=n)
        for s, n in zip("ABC", (7, 1, 3), strict=True)
    }
    mean.aggregate(1, equal)
    assert torch.equal(mean.global_weights["w"], values)


def test_mean_of_many_equals_that_in_double_precision() -> None:
    values = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    counts = [3.0, 0.0, 5.0, 1.0, 0.5, 2.0, 4.0]  # a site that counts nothing may even hold NaN
    values[1] = torch.nan
    mean = torch.empty(50)
    weighted_mean_(mean, list(values), counts)
    weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    expected = sum(w * v.double() for w, v in zip(weights, values, strict=True) if w > 0)
    assert_within(mean, expected, 2 * 7)  # seven products and their sum
    with pytest.raises(FederationError, match="above 0"):
        weighted_mean_(mean, list(values), [0.0] * 7)


def test_order_of_arrival_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    updates = {s: weights_message({"w": torch.randn(2, 3, generator=generator), "n": torch.tensor(0)}) for s in "ABCD"}
    first, second = strategy("uniform"), strategy("uniform")
    first.aggregate(1, updates)
    second.aggregate(1, dict(reversed(updates.items())))
    assert torch.equal(first.global_weights["w"], second.global_weights["w"])


def test_large_tensors_are_summed_chunk_by_chunk_without_gaps() -> None:
    size = (1 << 20) * 2 + 3
    mean = WeightedMean()
    mean.initialize({"w": torch.zeros(size)})
    mean.aggregate(1, {s: weights_message({"w": torch.full((size,), v)}) for s, v in (("A", 1.0), ("B", 3.0))})
    assert torch.equal(mean.global_weights["w"], torch.full((size,), 2.0))


def test_unknown_weighting_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'size'.*uniform, samples, steps"):
        WeightedMean("size")


def test_shared_keys_split_and_local_keys_win() -> None:
    keys = SharedKeys((r"encoder\.", r"norm"), local=(r"norm",))
    assert keys.split(["encoder.w", "norm.w", "decoder.w"]) == (["encoder.w"], ["norm.w", "decoder.w"])
    with pytest.raises(ConfigError, match="encodr"):
        SharedKeys(("encodr",)).split(["encoder.w"])


def test_bytes_are_counted_per_item() -> None:
    message = weights_message({"w": torch.zeros(2, 3), "n": torch.tensor(0)})
    message["latents"] = {"z": torch.zeros(5)}
    assert message_bytes(message) == {"weights": 6 * 4 + 8, "latents": 20}
