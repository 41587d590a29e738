# SPDX-License-Identifier: Apache-2.0
"""What holds for every update, not only for the ones somebody thought of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from method_parts import STRATEGIES, examples
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.messages import (
    KeepSharedKeys,
    SharedKeys,
    attachments_of,
    message_bytes,
    pack,
    unpack,
    weights_message,
)
from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator
from fedmonai.methods.averaging import PerSiteMean, WeightedMean
from fedmonai.methods.fl_mrcm import FLMRCMAggregator
from fedmonai.methods.robust import Median, TrimmedMean

# derandomized: the same examples on every machine, so that a red run can be repeated
quick = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FINITE = st.floats(-1e6, 1e6, width=32)
BAD = st.sampled_from([math.nan, math.inf, -math.inf, 1e9, -1e9, 3e38])
NAMES = st.text("abcde", min_size=1, max_size=3)
KEYS = st.text("abn.w_", min_size=1, max_size=6)


@st.composite
def rounds(draw: st.DrawFn) -> dict[str, ExchangeObject]:
    """Updates of one to six sites, four numbers each."""
    sites = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    found = {}
    for site in sites:
        values = torch.tensor(draw(st.lists(FINITE, min_size=4, max_size=4)))
        counts = {f"num_{name}": draw(st.integers(1, 10**6)) for name in ("samples", "steps", "batches")}
        weights = {"encoder.weight": values, "encoder.count": torch.tensor(draw(st.integers(0, 99)))}
        found[site] = weights_message(weights, **counts, round=1)
    return found


#: strategies whose result is a mean of some kind
MEANS = [
    *(WeightedMean(weighting) for weighting in WeightedMean.WEIGHTINGS),
    PerSiteMean(),
    Median(),
    TrimmedMean(0.2),
    TrimmedMean(0.49),
]
START = {"encoder.weight": torch.zeros(4), "encoder.count": torch.tensor(0)}


def aggregated(strategy: Strategy, updates: dict[str, ExchangeObject]) -> dict[str, torch.Tensor]:
    """Global weights after a first round in which the sites whose turn it is send their updates."""
    strategy.initialize(START)
    sites = strategy.participants(1, sorted(updates), 0) or list(updates)
    strategy.configure_round(1, sorted(sites))
    strategy.aggregate(1, {name: updates[name] for name in updates if name in sites})
    return strategy.global_weights


def test_strategies_are_found() -> None:
    assert {WeightedMean, FLMRCMAggregator} <= set(STRATEGIES)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
@quick
@given(updates=rounds(), data=st.data())
def test_result_is_whole_and_the_same_to_the_bit_in_any_order(
    kind: type[Strategy], updates: dict[str, ExchangeObject], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(list(updates)))
    for first, second in zip(examples(kind), examples(kind), strict=True):
        result = aggregated(first, updates)
        other = aggregated(second, {name: updates[name] for name in order})
        assert result.keys() == START.keys()
        for key, tensor in result.items():
            assert torch.equal(tensor, other[key]) and bool(tensor.isfinite().all())
            assert (tensor.shape, tensor.dtype) == (START[key].shape, START[key].dtype)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_where_nobody_has_learned_anything_nothing_moves(kind: type[Strategy]) -> None:
    counts = {"num_samples": 3, "num_steps": 2, "num_batches": 2}
    updates = {name: weights_message(START, **counts, round=1) for name in "ABCDE"}
    for strategy in examples(kind):
        for key, tensor in aggregated(strategy, updates).items():
            torch.testing.assert_close(tensor, START[key])


@pytest.mark.parametrize("strategy", MEANS, ids=lambda one: type(one).__name__)
@quick
@given(updates=rounds())
def test_a_mean_stays_within_the_range_of_the_sites(strategy: Strategy, updates: dict[str, ExchangeObject]) -> None:
    result = aggregated(strategy, updates)
    values = torch.stack([update.weights["encoder.weight"] for update in updates.values()])
    slack = 1e-5 * values.abs().max()
    assert bool((result["encoder.weight"] >= values.min(0).values - slack).all())
    assert bool((result["encoder.weight"] <= values.max(0).values + slack).all())
    assert torch.equal(result["encoder.count"], updates[min(updates)].weights["encoder.count"])


@pytest.mark.parametrize("robust", [Median(), TrimmedMean(0.4)], ids=["median", "trimmed mean"])
@quick
@given(good=st.lists(FINITE, min_size=3, max_size=3), bad=st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2))
def test_a_minority_cannot_leave_the_range_of_the_others(robust: Strategy, good: list, bad: list) -> None:
    messages = {str(i): weights_message({"w": torch.tensor([v])}) for i, v in enumerate([*good, *bad])}
    robust.initialize({"w": torch.zeros(1)})
    robust.aggregate(1, messages)
    slack = 1e-5 * max(abs(v) for v in good)
    assert min(good) - slack <= float(robust.global_weights["w"]) <= max(good) + slack


@quick
@given(updates=rounds())
def test_shares_sum_to_one(updates: dict[str, ExchangeObject]) -> None:
    for weighting in WeightedMean.WEIGHTINGS:
        shares = WeightedMean(weighting).shares({name: u.statistics for name, u in updates.items()})
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(0 < share <= 1 for share in shares.values())


@quick
@given(values=st.lists(FINITE, min_size=6, max_size=6), place=st.integers(0, 5), bad=BAD)
def test_guard_lets_good_values_pass_and_finds_a_bad_one_anywhere(values: list, place: int, bad: float) -> None:
    reference = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    weights = {"a": torch.tensor(values).reshape(2, 3), "b": torch.zeros(4)}
    statistics = {"num_samples": 1, "num_steps": 1, "num_batches": 1, "round": 1, "loss": 0.0}
    UpdateValidator().check_update(weights_message(weights, **statistics), reference, 1)
    weights["a"].view(-1)[place] = bad
    with pytest.raises(InvalidUpdate, match="'a'"):
        UpdateValidator().check_update(weights_message(weights, **statistics), reference, 1)


@quick
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), bound=st.floats(0.1, 300))
def test_norm_bound_is_the_euclidean_norm_of_the_difference(values: list, bound: float) -> None:
    reference = {"w": torch.ones(3)}
    norm = math.sqrt(sum((v - 1.0) ** 2 for v in values))
    weights = {"w": torch.tensor(values)}
    if norm > bound * 1.001:
        with pytest.raises(InvalidUpdate, match="max_norm"):
            UpdateValidator(max_norm=bound).check_weights(weights, reference)
    elif norm < bound * 0.999:
        UpdateValidator(max_norm=bound).check_weights(weights, reference)


@quick
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]),
)
def test_guard_refuses_every_other_shape_and_type(shape: list[int], dtype: torch.dtype) -> None:
    reference = {"w": torch.zeros(2, 2)}
    with pytest.raises(InvalidUpdate, match="has type"):
        UpdateValidator().check_weights({"w": torch.zeros(2, 2).to(dtype)}, reference)
    if shape != [2, 2]:
        with pytest.raises(InvalidUpdate, match="has shape"):
            UpdateValidator().check_weights({"w": torch.zeros(*shape)}, reference)


@quick
@given(step=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6), bound=st.floats(0.01, 50))
def test_privacy_lets_no_step_beyond_its_bound_leave(step: list, bound: float, tmp_path: Path) -> None:
    """With the same seed the noise is the same, so the difference to an update of no step is the clipped step."""
    pytest.importorskip("opacus")
    protect = GaussianPrivacy(str(tmp_path), clip_norm=bound, seed=1)
    received = {"w": torch.zeros(2, 3)}
    sent = []
    for values in (step, [0.0] * 6):
        update = weights_message({"w": torch.tensor(values).reshape(2, 3)})
        sent.append(protect(update, {"site": "A", "round": 1, "received": received}).weights["w"].double())
    (tmp_path / "sites" / "A" / "privacy.json").unlink()
    moved, norm = sent[0] - sent[1], torch.tensor(step).double().norm()
    slack = 1e-5 * (bound + float(sent[1].abs().max()))
    assert float(moved.norm()) <= bound + slack
    if norm < 0.999 * bound:
        assert float((moved - torch.tensor(step).double().reshape(2, 3)).abs().max()) <= slack


@quick
@given(keys=st.lists(KEYS, min_size=1, max_size=6, unique=True), prefix=KEYS)
def test_filter_keeps_exactly_the_shared_keys(keys: list[str], prefix: str) -> None:
    import re

    pattern = re.escape(prefix)
    filter_ = KeepSharedKeys(shared_keys=(pattern,))
    once = filter_(weights_message({key: torch.zeros(1) for key in keys}))
    assert set(once.weights) == {key for key in keys if key.startswith(prefix)}
    assert set(filter_(once).weights) == set(once.weights)
    shared, private = SharedKeys((".*",), local=()).split(keys)
    assert (shared, private) == (keys, [])


@quick
@given(
    weights=st.dictionaries(KEYS, st.lists(FINITE, max_size=3), max_size=3),
    attachments=st.dictionaries(NAMES, st.dictionaries(KEYS, st.lists(FINITE, max_size=3), max_size=2), max_size=2),
    samples=st.integers(-5, 5),
)
def test_wire_form_keeps_every_message(weights: dict, attachments: dict, samples: int) -> None:
    message = weights_message({k: torch.tensor(v) for k, v in weights.items()}, num_samples=samples)
    message.update({name: {k: torch.tensor(v) for k, v in content.items()} for name, content in attachments.items()})
    back = unpack(*pack(message))
    assert back is not None
    assert back.statistics == message.statistics
    assert message_bytes(back) == message_bytes(message)
    pairs = [(message.weights, back.weights)]
    pairs += [(content, attachments_of(back)[name]) for name, content in attachments_of(message).items()]
    for sent, arrived in pairs:
        assert sent.keys() == arrived.keys()
        assert all(torch.equal(sent[key], arrived[key]) for key in sent)
