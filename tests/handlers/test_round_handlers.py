# SPDX-License-Identifier: Apache-2.0
"""Handlers that act at the borders of a round."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.handlers.rates import OptimizerReset, RoundLR


def engine_for(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> Engine:
    def step(engine: Engine, batch: int) -> dict:
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
        return {"loss": 0.0}

    return Engine(step)


def test_every_round_starts_with_a_fresh_rmsprop() -> None:
    """RMSprop with a fresh state moves by lr * g / (sqrt(0.01 g^2) + eps) = 10 lr in its first step, whatever g is."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RMSprop([weight], lr=0.001)
    engine = engine_for(optimizer, weight)
    OptimizerReset(optimizer).attach(engine)
    for number in (1, 2, 3):
        engine.run([0], max_epochs=1)
        assert float(weight) == pytest.approx(-0.01 * number, rel=1e-5)
        assert not optimizer.state  # nothing is held between rounds


def test_without_reset_moments_stay() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RMSprop([weight], lr=0.001)
    engine = engine_for(optimizer, weight)
    OptimizerReset(optimizer, enabled=False).attach(engine)
    engine.run([0], max_epochs=1)
    assert optimizer.state


@pytest.mark.parametrize(("number", "rate"), [(1, 0.1), (40, 0.1), (41, 0.01), (60, 0.01), (61, 0.001)])
def test_rate_by_round(number: int, rate: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    engine = engine_for(optimizer, weight)
    RoundLR(optimizer, milestones=[60, 40], gamma=0.1).attach(engine)
    engine.state.round_context = RoundContext(number, "A", {}, [])
    engine.run([0], max_epochs=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_where_nobody_counts_rounds_every_epoch_is_one() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    engine = engine_for(optimizer, torch.nn.Parameter(torch.zeros(1)))
    RoundLR(optimizer, milestones=[1], gamma=0.1).attach(engine)
    rates: list[float] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    engine.run([0], max_epochs=3)
    assert rates == pytest.approx([0.1, 0.01, 0.01])


def test_bad_schedules_are_named() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigError, match="lr_gamma is 0"):
        RoundLR(optimizer, gamma=0)
    with pytest.raises(ConfigError, match="lr_milestones"):
        RoundLR(optimizer, milestones=[0])


@pytest.mark.parametrize(("number", "rate"), [(1, 0.1), (40, 0.1), (41, 0.01), (80, 0.01), (81, 0.001)])
def test_rate_falls_after_every_step_of_rounds(number: int, rate: float) -> None:
    """StepLR once per round: lr * gamma^floor((r - 1) / step)."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    engine = engine_for(optimizer, weight)
    RoundLR(optimizer, step=40).attach(engine)
    engine.state.round_context = RoundContext(number, "A", {}, [])
    engine.run([0], max_epochs=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    with pytest.raises(ConfigError, match="lr_step is 0"):
        RoundLR(optimizer, step=0)
