# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, by hand."""

from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize("weighting", WeightedMean.WEIGHTINGS)
@pytest.mark.parametrize("sites", [1, 2, 3, 7, 12])
def test_updates_one_by_one_give_the_mean_of_all_to_the_bit(weighting: str, sites: int) -> None:
    generator = torch.Generator().manual_seed(sites)
    start = {"w": torch.zeros(1_300_007), "h": torch.zeros(33, dtype=torch.float16), "n": torch.tensor(0)}
    start |= {"c": torch.zeros(5, 3, dtype=torch.complex64), "scalar": torch.zeros(())}
    together, one_by_one = WeightedMean(weighting), WeightedMean(weighting)
    together.initialize(start)
    one_by_one.initialize(start)
    for number in (1, 2):  # the second round writes over the memory of the first
        updates = {}
        for index in range(sites):
            weights = {k: torch.randn(t.shape, generator=generator).to(t.dtype) for k, t in start.items() if k != "n"}
            counts = {
                f"num_{what}": int(torch.randint(1, 900, (), generator=generator)) for what in ("samples", "steps")
            }
            update = weights_message({**weights, "n": torch.tensor(index)}, **counts, num_batches=1 + 3 * index)
            updates[f"{index:02d}"] = update
        together.aggregate(number, updates)
        mean = one_by_one.accumulator()
        assert mean is not None
        for name in sorted(updates):
            mean.add(updates[name])
        mean.finish()
        for key, expected in together.global_weights.items():
            assert torch.equal(one_by_one.global_weights[key], expected), key


def test_a_strategy_with_an_aggregate_of_its_own_gets_all_updates_together() -> None:
    class Own(WeightedMean):
        def aggregate(self, round_number: int, updates: Any) -> None:
            super().aggregate(round_number, updates)

    assert Own().accumulator() is None and WeightedMean().accumulator() is not None


def test_a_mean_of_no_update_is_an_error() -> None:
    mean = WeightedMean().accumulator()
    assert mean is not None
    with pytest.raises(FederationError, match="no update"):
        mean.finish()


@pytest.mark.parametrize("counts", [[1] * 64, [3, 1, 4, 1, 5, 9, 2, 6], [1000, 1, 1, 7]])
def test_counts_move_no_bit_of_what_shares_of_one_gave(counts: list[int]) -> None:
    """The weight of the running mean is rounded to the tensors' type, where both are the same number."""
    total, share = 0, 0.0
    for count in counts:
        total += count
        share += count / sum(counts)
        assert torch.tensor(count / total) == torch.tensor(count / sum(counts) / share)
