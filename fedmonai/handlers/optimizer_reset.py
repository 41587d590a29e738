# SPDX-License-Identifier: Apache-2.0
"""Optimizers that start every round afresh."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch.optim import Optimizer

__all__ = ["OptimizerReset"]


class OptimizerReset:
    """Drops the optimizer's moments when a round begins and when it ends.

    FL-MR (Guo et al., CVPR 2021, released program) builds a new RMSprop every round. Emptying the state of the one at
    hand is the same update rule without the rebuilding, and a site then holds nothing between rounds. ``MonaiAlgo``
    alone keeps moments over rounds.

    Args:
        optimizer: the trainer's optimizer.
        enabled: ``False`` keeps the moments over rounds.
    """

    def __init__(self, optimizer: Optimizer, enabled: bool = True) -> None:
        self.optimizer = optimizer
        self.enabled = enabled

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self)
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.optimizer.state.clear()
