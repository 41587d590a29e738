# SPDX-License-Identifier: Apache-2.0
"""Head first, body last: two phases of local training with disjoint parameters."""

from __future__ import annotations

from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.handlers.named_tensors import matching_names

__all__ = ["AlternatingParameters"]


class AlternatingParameters:
    """Trains only the head in a round until ``rep_iters`` iterations are left, and in these everything but the head.

    FedICRA (arXiv 2304.05635, after FedLC and FedRep): of 10 iterations 7 train the last convolution, then 3 the rest.
    What is not trained has no gradient at all, so the optimizer leaves it as it is to the bit if it drops gradients
    (``optim_set_to_none`` of the trainer). With zero gradients instead, as in the authors' program, momentum and weight
    decay go on moving it. Batch-normalization statistics follow the data in both phases.

    Args:
        network: the network.
        head: regular expressions (from the start) of the head's parameters.
        rep_iters: iterations that train the representation, at least 1 and fewer than a round has.

    Raises:
        ConfigError: when a pattern matches nothing, or ``rep_iters`` leaves no iteration for the head.
    """

    def __init__(
        self, network: nn.Module, head: str | Sequence[str] = (r"decoder\.out_conv\.",), rep_iters: int = 3
    ) -> None:
        if rep_iters < 1:
            raise ConfigError(f"rep_iters is {rep_iters}; give at least 1 iteration for the representation.")
        self.rep_iters = rep_iters
        parameters = dict(network.named_parameters())
        names = set(matching_names(head, parameters, "head_keys"))
        trained = {name: p for name, p in parameters.items() if p.requires_grad}  # the others stay frozen throughout
        self._head = [p for name, p in trained.items() if name in names]
        self._body = [p for name, p in trained.items() if name not in names]

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self.abandon)

    def _begin(self, engine: Engine) -> None:
        state = engine.state
        length = (state.max_epochs - state.epoch) * state.epoch_length  # type: ignore[operator]
        if length <= self.rep_iters:
            raise ConfigError(
                f"rep_iters is {self.rep_iters}, but a round has {length} iterations: none is left for the head. Lower "
                "rep_iters or raise local_steps."
            )
        self._last_of_head = state.iteration + length - self.rep_iters

    def __call__(self, engine: Engine) -> None:
        body = engine.state.iteration > self._last_of_head
        self._allow(head=not body, body=body)

    def abandon(self, engine: Engine) -> None:
        """Let everything be trained again; also called after a failed turn."""
        self._allow(head=True, body=True)

    def _allow(self, head: bool, body: bool) -> None:
        for parameters, trained in ((self._head, head), (self._body, body)):
            for parameter in parameters:
                parameter.requires_grad_(trained)
