# SPDX-License-Identifier: Apache-2.0
"""Learning rates that depend on the round."""

from __future__ import annotations

from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from fedmonai.errors import ConfigError

__all__ = ["RoundLR"]


class RoundLR:
    """Multiplies the learning rate by ``gamma`` after each milestone of rounds.

    In round r (from 1) the rate is ``lr * gamma ** (number of milestones < r)``: with ``milestones=[40]`` rounds 1 to
    40 run at the full rate. The rate is computed from the round, not stepped, so skipped rounds and restarts change
    nothing. With ``step`` the rate falls after every ``step`` rounds as well (StepLR once per round).

    Args:
        optimizer: the trainer's optimizer; its rates at construction are the full rates.
        milestones: rounds after which the rate falls; empty for a constant rate.
        gamma: factor, above 0; 1 for a constant rate.
        step: rounds between further milestones, or None.

    Under a stock ``MonaiAlgo``, which does not tell the round, runs of the trainer are counted instead.

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
        self._runs = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self._runs += 1
        number = getattr(engine.state, "round", None) or self._runs
        falls = sum(milestone < number for milestone in self.milestones)
        falls += (number - 1) // self.step if self.step else 0
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * self.gamma**falls
