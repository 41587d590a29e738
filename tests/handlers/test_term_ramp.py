# SPDX-License-Identifier: Apache-2.0
"""The weight of one term rises over all iterations of all rounds, and a term that is off stays off."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.handlers.rates import TermRamp


def weights(
    ramp: tuple[float, float], rounds: list[int | None], num_rounds: int = 4, full: float = 0.1, steps: int = 2
) -> list[float]:
    """Weight of the term in every iteration of the given rounds (None: a run that is told no round)."""
    loss = SimpleNamespace(weights={"pce": 1.0, **({"crf": full} if full else {})})
    found: list[float] = []
    engine = Engine(lambda engine, batch: None)
    TermRamp(loss, "crf", ramp, num_rounds).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(loss.weights.get("crf", 0.0)))
    for number in rounds:
        if number is not None:
            engine.state.round_context = RoundContext(number, "A", {}, [])
        engine.run(range(steps), max_epochs=engine.state.epoch + 1)
    assert loss.weights["pce"] == 1.0
    return found


def test_a_line_between_begin_and_end() -> None:
    """Eight iterations; the first of them has nothing done, the last seven eighths."""
    expected = [0.0, 0.0, 0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    assert weights((0.25, 0.75), [1, 2, 3, 4]) == pytest.approx(expected)
    assert weights((0.25, 0.75), [None] * 4) == pytest.approx(expected)  # under a stock MonaiAlgo
    assert weights((0.25, 0.75), [None], num_rounds=1, steps=8) == pytest.approx(expected)  # alone


def test_it_follows_the_round_and_not_what_the_site_has_done() -> None:
    assert weights((0.25, 0.75), [1, 4]) == pytest.approx([0.0, 0.0, 0.1, 0.1])
    assert weights((0.25, 0.75), [3]) == pytest.approx([0.05, 0.075])  # a site that comes late, or back


def test_a_step_a_constant_and_a_term_that_is_off() -> None:
    assert weights((0.5, 0.5), [1, 2, 3]) == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.1, 0.1])
    assert weights((0.0, 0.0), [1, 2]) == [0.1] * 4
    assert weights((0.25, 0.75), [4], full=0.0) == [0.0, 0.0]


@pytest.mark.parametrize("ramp", [(0.5,), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.5)])
def test_wrong_ramps_are_named(ramp: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="crf_ramp is"):
        TermRamp(SimpleNamespace(weights={"crf": 0.1}), "crf", ramp)
