# SPDX-License-Identifier: Apache-2.0
"""Mean of every term of the loss, kept on the device and read once per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from fedmonai.federated.protocol import RoundContext, SiteHandler

__all__ = ["LossTerms"]


class LossTerms(SiteHandler):
    """Mean terms of a composite loss over an epoch, sent with their weights.

    A source has ``terms`` (detached scalars of its last call, by name, without weights) and ``weights``; with
    ``once_per_epoch(prediction) -> {name: scalar}`` it also measures something on the first batch of an epoch. A term
    counts in the iterations in which it was computed. Every name gives the mean of the term, ``<name>_weight`` its
    weight, so that both a term and its share of the loss can be read off.

    The values of the last epoch of a round are sent with the update (:meth:`training_metrics`) and stand in
    ``rounds.jsonl``, ``metrics.csv`` and on the TensorBoard of the federation; without a federation they are in
    ``engine.state.metrics`` when an epoch ends.

    Args:
        sources: losses with terms, and handlers that add a term to the loss; these are attached here, before this one.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from fedmonai.handlers import loss_terms
        >>> loss = SimpleNamespace(terms={"dice": torch.tensor(0.5)}, weights={"dice": 2.0})
        >>> trainer = Engine(lambda engine, batch: None)
        >>> loss_terms.LossTerms([loss]).attach(trainer)
        >>> trainer.run([0, 1]).metrics
        {'dice': 0.5, 'dice_weight': 2.0}
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._read: dict[str, float] | None = None

    def attach(self, engine: Engine) -> None:
        for source in self.sources:
            if hasattr(source, "attach"):
                source.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def __call__(self, engine: Engine) -> None:
        first = not self._counts
        for source in self.sources:
            found = dict(source.terms)
            if first and hasattr(source, "once_per_epoch"):
                found |= source.once_per_epoch(engine.state.output["pred"])  # type: ignore[index]
            for name, value in found.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                self._counts[name] = self._counts.get(name, 0) + 1

    def _end(self, engine: Engine) -> None:
        for source in self.sources:
            if hasattr(source, "warn_if_empty"):
                source.warn_if_empty()
        if RoundContext.of(engine) is None:
            engine.state.metrics.update(self.training_metrics())

    def training_metrics(self) -> dict[str, float]:
        """Means of the last epoch, and the weights; the only time that they are read from the device."""
        if self._read is None:
            means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
            weights = {name: weight for source in self.sources for name, weight in source.weights.items()}
            self._read = {**means, **{f"{name}_weight": weight for name, weight in weights.items() if name in means}}
        return self._read
