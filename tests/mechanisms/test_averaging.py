# SPDX-License-Identifier: Apache-2.0
"""FedAvg, FedProx, median and trimmed mean: each where it must win, and where it must cost nothing.

A site has numbers x and labels y = a x; the model is y = w x, so that every optimum can be written down.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from rounds_by_hand import hand_site, run_rounds
from torch import nn

from fedmonai.federated.protocol import Strategy
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.fedprox import ProximalTerm
from fedmonai.methods.robust import Median, TrimmedMean


def slope(
    strategy: Strategy,
    factors: Sequence[float],
    scales: Sequence[float] | None = None,
    mu: float = 0.0,
    rounds: int = 12,
) -> float:
    """w after some rounds of many local steps, at sites with labels ``factors`` times x, and x of size ``scales``."""
    sites = {}
    for number, factor in enumerate(factors):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        x = (scales[number] if scales else 1.0) * torch.ones(16, 1)
        handler = ProximalTerm(mu)
        sites[f"s{number}"] = hand_site(model, x, factor * x, [handler], nn.MSELoss(), torch.optim.SGD, lr=0.05)
    run_rounds(strategy, sites, rounds, epochs=40)
    return float(strategy.global_weights["weight"])


def test_averaging_finds_what_the_sites_have_in_common_and_one_of_equal_sites_is_enough() -> None:
    assert slope(WeightedMean(), [1.0, 3.0]) == pytest.approx(2.0, abs=0.05)
    assert slope(WeightedMean(), [2.0, 2.0, 2.0]) == pytest.approx(slope(WeightedMean(), [2.0]), abs=1e-5)


def test_fedprox_wins_where_sites_run_to_their_own_optimum() -> None:
    """x = 3 and y = x at one site, x = 1 and y = -x at the other: the best common w is (9 - 1) / (9 + 1) = 0.8.

    After many local steps FedAvg has the mean of the sites' own optima, which is 0. With mu the sites stop at
    (2 x^2 a + mu w) / (2 x^2 + mu); for mu = 10 the mean of both is w for w = 0.588.
    """
    settings = {"factors": [1.0, -1.0], "scales": [3.0, 1.0]}
    averaged = slope(WeightedMean(), **settings)
    held = slope(WeightedMean(), **settings, mu=10.0)
    assert averaged == pytest.approx(0.0, abs=0.1)
    assert held == pytest.approx(0.588, abs=0.05)


def test_fedprox_costs_nothing_at_equal_sites() -> None:
    assert slope(WeightedMean(), [2.0, 2.0], mu=1.0) == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("strategy", [Median, lambda: TrimmedMean(trim=0.25)], ids=["median", "trimmed mean"])
def test_robust_means_win_with_a_site_of_wrong_labels_and_cost_nothing_without(strategy: type[Strategy]) -> None:
    wrong = [1.0, 1.0, 1.0, 1.0, -100.0]
    assert abs(slope(WeightedMean(), wrong, rounds=4) - 1.0) > 5
    assert slope(strategy(), wrong, rounds=4) == pytest.approx(1.0, abs=0.05)
    alike = [1.0] * 5
    assert slope(strategy(), alike, rounds=4) == pytest.approx(slope(WeightedMean(), alike, rounds=4), abs=1e-5)
