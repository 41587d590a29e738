# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad update is refused with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import weights_message
from fedmonai.federated.scan import scan
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator, UsualNorm

REFERENCE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def good(**changes: object) -> object:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    statistics: dict = {"num_samples": 3, "num_steps": 2, "num_batches": 2, "round": 5, "loss": 0.5}
    for key, value in changes.items():
        (weights if key in weights else statistics)[key] = value
    return weights_message(weights, **statistics)


def without_b() -> object:
    message = good()
    del message.weights["b"]
    return message


def with_extra() -> object:
    message = good()
    message.weights["c"] = torch.ones(1)
    return message


def with_attachment() -> object:
    message = good()
    message["secret"] = {"x": torch.ones(1)}
    return message


BAD: list[tuple[str, Callable[[], object]]] = [
    ("NaN or infinite", lambda: good(a=torch.full((2, 3), float("nan")))),
    ("NaN or infinite", lambda: good(b=torch.tensor([1.0, float("inf"), 0.0, 0.0]))),
    ("NaN or infinite", lambda: good(b=torch.tensor([1.0, float("nan"), -float("inf"), 0.0]))),
    ("max_abs", lambda: good(b=torch.full((4,), 1e9))),
    ("'b' reaches 2e\\+09", lambda: good(b=torch.tensor([0.0, -2e9, 1.0, 0.0]))),
    ("missing, for example 'b'", without_b),
    ("not shared, for example 'c'", with_extra),
    (r"shape \(3, 2\), not \(2, 3\)", lambda: good(a=torch.ones(3, 2))),
    ("float16", lambda: good(a=torch.ones(2, 3, dtype=torch.float16))),
    ("int64", lambda: good(a=torch.ones(2, 3, dtype=torch.int64))),
    ("not a tensor", lambda: good(a=[1.0])),
    ("num_samples is 0", lambda: good(num_samples=0)),
    ("num_steps is -1", lambda: good(num_steps=-1)),
    ("num_batches is -5", lambda: good(num_batches=-5)),
    ("num_batches is '1e3', not a positive", lambda: good(num_batches="1e3")),
    ("num_samples is a number of", lambda: good(num_samples=10**5000)),
    ("train_psnr is 'x', not a number", lambda: good(train_psnr="x")),
    ("train_psnr is None, not a number", lambda: good(train_psnr=None)),
    ("has the name 'two.*lines', not up to 100 letters", lambda: good(**{"two\nlines": 1})),
    ("name privacy_epsilon, but not privacy_clip_norm", lambda: good(privacy_epsilon=1.0)),
    ("belongs to round True, not", lambda: good(round=True)),
    ("num_samples is 2.5", lambda: good(num_samples=2.5)),
    ("num_samples is True", lambda: good(num_samples=True)),
    ("round 4, not to 5", lambda: good(round=4)),
    ("loss is nan", lambda: good(loss=math.nan)),
    ("loss is None", lambda: good(loss=None)),
    ("loss is 'low'", lambda: good(loss="low")),
    ("sparse_coo", lambda: good(a=torch.ones(2, 3).to_sparse())),
    ("list, not a message", lambda: [torch.ones(2, 3)]),
    ("list, not tensors by name", lambda: ExchangeObject(weights=[torch.ones(2, 3)])),
    ("2 tensors are missing", lambda: weights_message({}, num_samples=1, num_steps=1, round=5, loss=0.0)),
    ("undeclared attachment 'secret'", with_attachment),
]


@pytest.mark.parametrize(("reason", "make"), BAD, ids=[reason for reason, _ in BAD])
def test_bad_update_is_refused(reason: str, make: Callable[[], object]) -> None:
    with pytest.raises(InvalidUpdate, match=reason):
        UpdateValidator().check_update(make(), REFERENCE, 5)


def test_good_update_passes_and_declared_attachments_too() -> None:
    UpdateValidator().check_update(good(), REFERENCE, 5)
    UpdateValidator().check_update(with_attachment(), REFERENCE, 5, attachments=("secret",))


def test_norm_bound_is_on_the_difference() -> None:
    # ten ones against zeros: norm sqrt(10) = 3.162
    UpdateValidator(max_norm=3.17).check_update(good(), REFERENCE, 5)
    with pytest.raises(InvalidUpdate, match=r"norm 3\.16, more than max_norm = 3"):
        UpdateValidator(max_norm=3.0).check_update(good(), REFERENCE, 5)


def test_complex_values_are_checked_like_real_ones() -> None:
    reference = {"k": torch.zeros(3, dtype=torch.complex64)}
    UpdateValidator().check_weights({"k": torch.ones(3, dtype=torch.complex64)}, reference)
    with pytest.raises(InvalidUpdate, match="NaN or infinite"):
        UpdateValidator().check_weights({"k": torch.tensor([1.0, complex(0, math.nan), 0.0])}, reference)
    with pytest.raises(InvalidUpdate, match="max_abs"):
        UpdateValidator().check_weights({"k": torch.tensor([1.0, 1e9j, 0.0])}, reference)


@pytest.mark.parametrize("count", [2**40, -(2**63)])
def test_integer_buffers_have_the_same_bound(count: int) -> None:
    """A mean takes the batch counter of one site: a hostile one must not set it to whatever it likes."""
    reference = {"n": torch.tensor(7), "w": torch.zeros(2)}
    UpdateValidator(max_norm=1.0).check_weights({"n": torch.tensor(70_000), "w": torch.zeros(2)}, reference)
    with pytest.raises(InvalidUpdate, match=r"'n' reaches .* more than max_abs"):
        UpdateValidator().check_weights({"n": torch.tensor(count), "w": torch.zeros(2)}, reference)


def test_bounds_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_abs is 0"):
        UpdateValidator(max_abs=0)


def test_what_all_sites_are_sent_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per tensor and until it is written to, whoever receives it; keys and shapes are compared every time."""
    read: list[int] = []
    ends = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda tensor: read.append(tensor.numel()) or ends(tensor))
    weights, validator = {"a": torch.ones(2, 3), "b": torch.ones(4)}, UpdateValidator().once()
    for _ in range(3):
        validator.check_weights(dict(weights), REFERENCE)
    assert read == [6, 4]
    with pytest.raises(InvalidUpdate, match="missing, for example 'b'"):
        validator.check_weights({"a": weights["a"]}, REFERENCE)
    weights["a"][0] = math.nan
    for _ in range(2):
        with pytest.raises(InvalidUpdate, match="'a' holds NaN"):
            validator.check_weights(weights, REFERENCE)
    other = UpdateValidator()
    read.clear()
    for _ in range(2):
        other.check_weights({"a": torch.ones(2, 3), "b": weights["b"]}, REFERENCE)
    assert read == [6, 4, 6, 4]


def test_bound_of_the_norm_is_held_against_every_receiver() -> None:
    validator = UpdateValidator(max_norm=1.0).once()
    weights = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    validator.check_weights(weights, weights)
    with pytest.raises(InvalidUpdate, match=r"norm 3\.16"):
        validator.check_weights(weights, REFERENCE)


def test_norm_of_an_update_is_that_of_all_its_float_tensors_together() -> None:
    weights = {"a": torch.full((2, 2), 3.0), "b": torch.tensor([3 + 4j, 0]), "steps": torch.tensor(900)}
    weights["empty"] = torch.ones(0)
    reference = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    assert scan(weights, reference).norm == pytest.approx(math.sqrt(4 * 9 + 25), rel=1e-12)
    assert scan({}, {}).norm == 0.0
    assert UpdateValidator().check_update(good(), REFERENCE, 5) == pytest.approx(math.sqrt(10), rel=1e-12)


def norms(*values: float) -> dict[str, float]:
    return {f"s{index}": value for index, value in enumerate(values)}


def test_from_four_updates_on_the_median_of_the_round_bounds_them() -> None:
    usual = UsualNorm(10)
    refused = usual.outliers(norms(1.0, 2.0, 3.0, 25.1))  # the median is 2.5
    assert list(refused) == ["s3"]
    assert "norm 25.1, more than guard::max_norm_ratio = 10 times the median of the round, 2.5" in str(refused["s3"])
    assert not usual.outliers(norms(1.0, 2.0, 3.0, 24.9)), "in the bound, whatever was accepted before"
    assert not UsualNorm(None).outliers(norms(1.0, 1.0, 1.0, 1e30))


def test_a_minority_cannot_move_what_is_usual() -> None:
    assert set(UsualNorm(10).outliers(norms(1e7, 1e7, 1.0, 1.2, 1.1))) == {"s0", "s1"}
    assert not UsualNorm(10).outliers(norms(1e-30, 1e-30, 1.0, 1.2, 1.1)), "nor have the others refused"


@pytest.mark.parametrize("few", [1, 2, 3])
def test_fewer_updates_are_bounded_by_the_largest_accepted_lately(few: int) -> None:
    usual = UsualNorm(10)
    assert not usual.outliers(norms(*[1e7] * few)), "without weights the first round has no measure"
    usual = UsualNorm(10)
    usual.outliers(norms(2.0, 1.0, *[1.0] * (few - 1)))
    others = norms(20.1, *[1.0] * (few - 1))
    assert list(usual.outliers(others)) == ["s0"]
    assert usual.largest[-1] <= 2.0, "what was refused is no measure"
    for _ in range(UsualNorm.ROUNDS):
        usual.outliers(norms(0.1))
    assert list(usual.outliers(norms(1.1))) == ["s0"], "lately, not ever"


def test_the_first_round_of_few_sites_is_bounded_by_the_weights_it_starts_from() -> None:
    """One update of 1e7 in every weight would leave nothing to go back to."""
    start = {"weight": torch.full((100, 100), 0.1), "bias": torch.zeros(3), "count": torch.tensor(10**6)}  # norm 10
    usual = UsualNorm(10)
    refused = usual.outliers(norms(1e9, 9.0), start)
    assert list(refused) == ["s0"] and "times the norm of the weights to start from, 10; raise" in str(refused["s0"])
    assert list(usual.outliers(norms(1000.0), start)) == ["s0"], "then by what was accepted"
    assert not UsualNorm(10).outliers(norms(700.0, 698.0), start), "noise for privacy is in all of them"
    assert not UsualNorm(10).outliers(norms(1e9), {"weight": torch.zeros(3)}), "nothing to measure by"
    assert not UsualNorm(None).outliers(norms(1e30), start)


def test_sites_that_do_not_move_say_nothing() -> None:
    usual = UsualNorm(10)
    assert not usual.outliers(norms(0.0, 0.0, 0.0, 0.0))
    assert not usual.outliers(norms(0.0, 0.0, 0.0, 0.0, 5.0)), "no median of zeros"
    assert usual.largest == [5.0]


def test_state_of_what_is_usual_is_taken_over() -> None:
    usual, other = UsualNorm(10), UsualNorm(10)
    usual.outliers(norms(2.0, 1.0))
    other.load_state_dict(usual.state_dict())
    assert list(other.outliers(norms(21.0))) == ["s0"]


@pytest.mark.parametrize("ratio", [0.5, 0, -1, math.nan])
def test_a_ratio_that_would_refuse_what_is_usual_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"max_norm_ratio is .*; give 1 or more, or null"):
        UpdateValidator(max_norm_ratio=ratio)
