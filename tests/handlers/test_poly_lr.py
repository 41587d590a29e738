# SPDX-License-Identifier: Apache-2.0
"""The rate falls over all iterations of all rounds: 0.01, 0.005359 half-way, 0 at the end."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.handlers.rates import PolyLR


def rates(rounds: list[int | None], num_rounds: int, steps: int = 10, power: float = 0.9) -> list[float]:
    """Rates of every iteration of the given rounds (None: a run of the trainer that is told no round)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    found: list[float] = []
    engine = Engine(lambda engine, batch: None)
    handler = PolyLR(optimizer, num_rounds, power)
    handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(optimizer.param_groups[0]["lr"]))
    for number in rounds:
        if number is not None:
            engine.state.round_context = RoundContext(number, "A", {}, [])
        engine.run(range(steps), max_epochs=engine.state.epoch + 1)
    return found


def test_values_of_the_release() -> None:
    """3000 rounds of 10: t = 0 gives 0.01, t = 15000 (first of round 1501) 0.01 * 0.5^0.9, t = 29999 nearly 0."""
    assert rates([1], 3000)[0] == 0.01
    assert rates([1501], 3000)[0] == pytest.approx(0.01 * 0.5**0.9, rel=1e-12)
    assert rates([1501], 3000)[0] == pytest.approx(0.005359, abs=1e-6)
    assert rates([3000], 3000)[-1] == pytest.approx(0.01 * (1 / 30000) ** 0.9, rel=1e-6)
    assert rates([3001], 3000)[0] == 0.0  # t = 30000


def test_every_iteration_has_its_own_rate() -> None:
    expected = [0.01 * (1 - t / 30) ** 0.9 for t in range(30)]
    assert rates([1, 2, 3], 3) == pytest.approx(expected, rel=1e-12)


def test_a_missed_round_changes_nothing() -> None:
    assert rates([1, 3], 3)[10:] == rates([1, 2, 3], 3)[20:]


def test_under_a_stock_client_runs_are_counted() -> None:
    assert rates([None, None], 2) == rates([1, 2], 2)


def test_power_zero_is_a_constant_rate() -> None:
    assert set(rates([1, 2], 2, power=0.0)) == {0.01}


def test_wrong_settings_are_named() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    with pytest.raises(ConfigError, match="num_rounds is -1"):
        PolyLR(optimizer, -1)
    with pytest.raises(ConfigError, match="lr_power is -1"):
        PolyLR(optimizer, 1, -1)
