# SPDX-License-Identifier: Apache-2.0
"""The weight contrast of FedMRI: its reference vectors, its definition in float64, and exact small numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.losses.weight_contrast import WeightContrastLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "fedmri_contrastive.npz"
# two short ones that are worked on together, and one that takes two pieces
SHAPES = ((4, 3, 3, 3), (4,), (600_001,))


def definition(weights: list[Tensor], nearest: list[Tensor], previous: list[list[Tensor]]) -> Tensor:
    """R by the letter, a loop over names, with autograd's derivative of the absolute value (0 at 0)."""
    near = sum((w - g).abs().sum() for w, g in zip(weights, nearest, strict=True))
    far = sum((w - r).abs().sum() for own in previous for w, r in zip(weights, own, strict=True))
    return near / (far + 1e-14)


def drawn(sites: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    sets = [[torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES] for _ in range(sites + 2)]
    return [t.requires_grad_() for t in sets[0]], sets[1], sets[2:]


def test_reference_vectors() -> None:
    with np.load(GOLDEN) as file:
        data = {key: torch.from_numpy(file[key]).double() for key in file.files}  # only the reference rounds
    current = [data[f"current{i}"].requires_grad_() for i in range(3)]
    previous = [[data[f"previous{j}_{i}"] for i in range(3)] for j in range(int(data["sites"]))]
    value = WeightContrastLoss([data[f"global{i}"] for i in range(3)], previous)(current)
    value.backward()
    terms = sum(tensor.numel() for tensor in current) * (len(previous) + 1)
    assert_within(value, data["value"].float(), terms)
    for index, tensor in enumerate(current):
        assert_within(tensor.grad, data[f"grad{index}"].float(), terms)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5])
def test_equals_the_definition_in_float64(sites: int) -> None:
    weights, nearest, previous = drawn(sites, torch.float64)
    value = WeightContrastLoss(nearest, previous)(weights)
    (3.0 * value).backward()
    found = [t.grad.clone() for t in weights]
    for tensor in weights:
        tensor.grad = None
    expected = definition(weights, nearest, previous)
    (3.0 * expected).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for gradient, tensor in zip(found, weights, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-9, atol=1e-15)


def test_float32_sums_of_millions_stay_exact() -> None:
    """4.7 million differences of exactly 2^-10 from g and 2^-9 from both previous: R = 1/4, to the last bit."""
    weights = torch.zeros(4_700_000)
    value = WeightContrastLoss([weights + 2**-10], [[weights + 2**-9]] * 2)([weights])
    assert value.item() == 0.25


def test_small_numbers_by_hand() -> None:
    """w = (1, -2), g = 0: N = 3. r_1 = (0, 0), r_2 = (2, 1): D = (1 + 2) + (1 + 3) = 7, R = 3/7.

    dR/dw = sign(w - g) / D - N / D^2 sum_j sign(w - r_j) = (1/7 - 3/49 * (1 - 1), -1/7 - 3/49 * (-2)).
    """
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    value = WeightContrastLoss([zero], [[zero], [torch.tensor([2.0, 1.0])]])([weights])
    value.backward()
    assert value.item() == pytest.approx(3 / 7, rel=1e-12)
    torch.testing.assert_close(weights.grad, torch.tensor([1 / 7, -1 / 49], dtype=torch.float64))


def test_degenerate_values() -> None:
    weights, zero = torch.full((5,), 3.0), torch.zeros(5)
    assert float(WeightContrastLoss([weights], [[zero]])([weights])) == 0  # at the global weights
    assert float(WeightContrastLoss([zero], [[zero]] * 4)([weights])) == pytest.approx(1 / 4)
    assert float(WeightContrastLoss([zero], [[zero]])([zero])) == 0  # 0 / 1e-14


def test_references_are_constants() -> None:
    weights = torch.ones(3, requires_grad=True)
    loss = WeightContrastLoss([weights], [[weights - 1]])
    with torch.no_grad():
        weights += 1
    assert loss([weights]).item() == pytest.approx(3 / 6)


def test_a_value_that_was_overwritten_has_no_gradient() -> None:
    weights = torch.ones(3, requires_grad=True)
    loss = WeightContrastLoss([torch.zeros(3)], [[torch.full((3,), 2.0)]])
    first, second = loss([weights]), loss([weights])
    second.backward()
    with pytest.raises(RuntimeError, match="evaluated again"):
        first.backward()


def test_a_gradient_is_made_once() -> None:
    weights = torch.ones(3, requires_grad=True)
    value = WeightContrastLoss([torch.zeros(3)], [[torch.full((3,), 2.0)]])([weights])
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was made before"):
        value.backward()


def test_misfits_are_refused() -> None:
    tensor = torch.zeros(3)
    with pytest.raises(ConfigError, match="at least one set"):
        WeightContrastLoss([tensor], [])
    with pytest.raises(ConfigError, match="previous weights 1 differ"):
        WeightContrastLoss([tensor], [[tensor], [torch.zeros(4)]])
    with pytest.raises(ConfigError, match="trained weights differ"):
        WeightContrastLoss([tensor], [[tensor]])([torch.zeros(3, 1)])
    with pytest.raises(ConfigError, match="or type"):
        WeightContrastLoss([tensor], [[tensor]])([tensor.double()])
