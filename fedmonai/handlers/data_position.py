# SPDX-License-Identifier: Apache-2.0
"""Where in its data a round begins."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events

__all__ = ["DataPosition"]


class DataPosition:
    """Tells a sampler, when a round begins, how many iterations the site has made before.

    ``SiteAlgo`` keeps that number over rounds, restarts and failed turns, so the sampler needs no state of its own.

    Args:
        sampler: anything with ``begin(iteration)``, for example :class:`fedmonai.data.round_batches.RoundBatches`.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.begin(engine.state.iteration)
