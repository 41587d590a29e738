# SPDX-License-Identifier: Apache-2.0
"""Learning rates and optimizer state over rounds."""

from __future__ import annotations

from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext, SiteHandler

__all__ = ["OptimizerReset", "PolyLR", "RoundLR"]


class RoundLR(SiteHandler):
    """Learning rate in steps: multiplied by ``gamma`` after each milestone of rounds.

    Where nobody counts rounds (a site that trains alone, a stock ``MonaiAlgo``) every epoch is a round.

    In round r (from 1) the rate is ``lr * gamma ** (number of milestones < r)``: with ``milestones=[40]`` rounds 1 to
    40 run at the full rate. The rate is computed from the round, not stepped, so skipped rounds and restarts change
    nothing. With ``step`` the rate falls after every ``step`` rounds as well (StepLR once per round).

    Args:
        optimizer: the trainer's optimizer; its rates at construction are the full rates.
        milestones: rounds after which the rate falls; empty for a constant rate.
        gamma: factor, above 0; 1 for a constant rate.
        step: rounds between further milestones, or None.

    Raises:
        ConfigError: when ``gamma`` is not positive or a milestone or ``step`` is below 1.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int] = (), gamma: float = 0.1, step: int | None = None
    ) -> None:
        if not gamma > 0:
            raise ConfigError(f"lr_gamma is {gamma}; give a factor above 0.")
        if any(m < 1 for m in milestones):
            raise ConfigError(f"lr_milestones is {list(milestones)}; give rounds from 1.")
        if step is not None and step < 1:
            raise ConfigError(f"lr_step is {step}; give 1 or more rounds, or null.")
        self.optimizer = optimizer
        self.step = step
        self.milestones = sorted(milestones)
        self.gamma = gamma
        self.full_rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        number = _round(engine, engine.state.epoch)
        falls = sum(milestone < number for milestone in self.milestones)
        falls += (number - 1) // self.step if self.step else 0
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * self.gamma**falls


def _round(engine: Engine, runs: int) -> int:
    context = RoundContext.of(engine)
    return runs if context is None else context.round


class PolyLR(SiteHandler):
    r"""Polynomial decay over the iterations of all rounds: :math:`\eta_t = \eta (1 - t / T)^{power}`.

    Iteration t of a site, from 0, is ``(round - 1) E + k`` with k the iteration within the round and E the iterations
    of a round, and T = ``num_rounds`` E. It is computed from the round and not counted, so rounds that a site misses
    and restarts change nothing; the authors' program counts a site's own iterations, the same when none is missed.

    Without a federation one run of the trainer is everything (``num_rounds`` 1). Under a stock ``MonaiAlgo``, which
    does not tell the round, runs of the trainer are counted instead.

    Args:
        optimizer: the trainer's optimizer; its rates at construction are the full rates.
        num_rounds: rounds of the federation.
        power: exponent, >= 0; the paper's 0.9. 0 keeps the rate constant.

    Raises:
        ConfigError: when ``num_rounds`` is below 1 or ``power`` negative.
    """

    def __init__(self, optimizer: Optimizer, num_rounds: int = 1, power: float = 0.9) -> None:
        if num_rounds < 1:
            raise ConfigError(f"num_rounds is {num_rounds}; the rate falls over 1 or more rounds.")
        if not power >= 0:
            raise ConfigError(f"lr_power is {power}; give an exponent of at least 0 (0: constant rate).")
        self.optimizer = optimizer
        self.num_rounds = num_rounds
        self.power = power
        self.full_rates = [group["lr"] for group in optimizer.param_groups]
        self._runs = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def _begin(self, engine: Engine) -> None:
        state = engine.state
        self._runs += 1
        self._round = _round(engine, self._runs)
        self._first = state.iteration
        self._length = (state.max_epochs - state.epoch) * state.epoch_length  # type: ignore[operator]

    def __call__(self, engine: Engine) -> None:
        done = self._round - 1 + (engine.state.iteration - 1 - self._first) / self._length
        left = max(1 - done / self.num_rounds, 0.0)
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * left**self.power


class OptimizerReset(SiteHandler):
    """Fresh optimizer: its moments are dropped when a round begins and when it ends.

    FL-MR (Guo et al., CVPR 2021, released program) builds a new RMSprop every round. Emptying the state of the one at
    hand is the same update rule without the rebuilding, and a site then holds nothing between rounds. ``MonaiAlgo``
    alone keeps moments over rounds. A site that trains alone has one run, which begins without moments anyway.

    Args:
        optimizer: the trainer's optimizer.
        enabled: ``False`` keeps the moments over rounds.
    """

    def __init__(self, optimizer: Optimizer, enabled: bool = True) -> None:
        self.optimizer = optimizer
        self.enabled = enabled

    def attach(self, engine: Engine) -> None:
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self)
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.optimizer.state.clear()
