# SPDX-License-Identifier: Apache-2.0
"""The linear probe: certain where a direction tells the sites, guessing where nothing does."""

from __future__ import annotations

import math

import pytest
import torch

from fedmonai.metrics.site_probe import linear_probe_accuracy


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 20, generator=torch.Generator().manual_seed(seed))


def test_a_shift_along_one_direction_is_found() -> None:
    """Apart by 6 standard deviations in one of 20 dimensions: 0.13 % of a Gaussian lies beyond the middle."""
    shift = torch.zeros(20)
    shift[7] = 6.0
    assert linear_probe_accuracy(drawn(100, 1), drawn(100, 2) + shift) > 0.97


def test_vectors_of_one_distribution_are_guessed() -> None:
    """Of 400 vectors guessed one by one the share has a standard deviation of 0.025; four of them are 0.1."""
    assert linear_probe_accuracy(drawn(200, 1), drawn(200, 2)) == pytest.approx(0.5, abs=0.1)


def test_scale_and_order_of_sites_do_not_matter() -> None:
    one, other = drawn(50, 1), drawn(50, 2) + 1.0
    found = linear_probe_accuracy(one, other)
    assert linear_probe_accuracy(1e3 * one, 1e3 * other) == pytest.approx(found)
    assert linear_probe_accuracy(other, one) == pytest.approx(found)


def test_both_sites_count_alike_and_constant_values_do_no_harm() -> None:
    """A rule that always says the larger site would be right for 90 of 100."""
    one, other = drawn(90, 1), drawn(10, 2)
    one[:, 0] = other[:, 0] = 3.0
    assert linear_probe_accuracy(one, other) < 0.85


def test_a_single_vector_leaves_nothing_to_fit() -> None:
    assert math.isnan(linear_probe_accuracy(drawn(1, 1), drawn(5, 2)))
