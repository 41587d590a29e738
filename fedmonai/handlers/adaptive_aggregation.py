# SPDX-License-Identifier: Apache-2.0
"""Adaptive local aggregation: a site starts its round from its own mixture of the received and its own decoder."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.handlers.element_mix import ElementMix
from fedmonai.handlers.mixing_data import MixingData
from fedmonai.handlers.named_tensors import matching_names
from fedmonai.handlers.undisturbed import undisturbed

__all__ = ["AdaptiveAggregation"]


class AdaptiveAggregation:
    """Mixes received and own parameters by learned weights when a round begins (FedALA; FedICRA, arXiv 2304.05635).

    Parameters that ``keys`` match become ``m`` of :class:`~fedmonai.handlers.element_mix.ElementMix`; all others stay
    as received. The weights W are learned on batches of the site's training data, in the first mixing pass after pass
    until the standard deviation of the last ``window`` losses is below ``tolerance``, later in one pass. W never leaves
    the site. Rounds up to ``warm_up`` and a site's first round take what was received; so does a stock ``MonaiAlgo``,
    which does not keep what a site held, after one warning.

    The site is evaluated with the received weights and with the same mixture of these and its own
    (:meth:`personal_weights`); evaluation learns nothing and changes nothing.

    Deviations from FedICRA's program, each with its switch: there the roles are swapped (``order``), W is forgotten
    (``persist``), every mixing reads all data, which can cost more than the round (``share``), running statistics of
    the decoder stay the server's while its scales are mixed (``mix_statistics``), and a round after an evaluation mixes
    nothing, because the evaluation had overwritten what the site held (``evaluation_interval``). Here mixing has its
    own random numbers and leaves statistics, optimizer and the draws of the training alone: ``eta`` 0 is FedAvg to
    the bit.

    Args:
        network: the network.
        loss: of (logits, label), the partial cross entropy.
        dataset: training samples, see :class:`~fedmonai.handlers.mixing_data.MixingData`.
        keys: regular expressions (from the start) of the mixed parameters.
        batch_size: samples per step of W.
        share: share of the data in a pass; FedALA 0.8, FedICRA 1.
        eta: step size of W; 1 in both programs.
        warm_up: rounds of plain averaging at the start.
        order: ``fedala`` or ``released``.
        persist: keep W over rounds.
        mix_statistics: mix running statistics by the weight of their channel's scale.
        tolerance: the first mixing ends below this standard deviation.
        window: number of losses (of the last batch of each pass) it is taken over.
        max_passes: the first mixing ends after this many passes in any case.
        evaluation_interval: rounds between evaluations that spoil the next mixing, as in the release (2); None for
            none.

    Raises:
        ConfigError: on values out of range and patterns that match nothing.
    """

    needs_previous = True

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        dataset: Any,
        keys: str | Sequence[str] = (r"decoder\.up[1-4]\.", r"decoder\.out_conv\."),
        batch_size: int = 12,
        share: float = 0.2,
        eta: float = 1.0,
        warm_up: int = 5,
        order: str = "fedala",
        persist: bool = True,
        mix_statistics: bool = True,
        tolerance: float = 0.1,
        window: int = 10,
        max_passes: int = 20,
        evaluation_interval: int | None = None,
    ) -> None:
        for name, value, least in (("warm_up", warm_up, 0), ("window", window, 2), ("max_passes", max_passes, 1)):
            if value < least:
                raise ConfigError(f"mixing: {name} is {value}; give at least {least}.")
        self.network, self.loss = network, loss
        self.data = MixingData(dataset, batch_size, share)
        self.mix = ElementMix(eta, order)
        self.parameters = dict(network.named_parameters())
        self.names = matching_names(keys, self.parameters, "mixing_keys")
        self.warm_up, self.persist, self.evaluation_interval = warm_up, persist, evaluation_interval
        self.tolerance, self.window, self.max_passes = tolerance, window, max_passes
        self.weight_of = {name: name for name in self.names}
        self.weight_of |= _statistics_of(self.names, network.state_dict()) if mix_statistics else {}
        self._turns, self._settled, self._warned = 0, False, False
        self._generator = np.random.RandomState(0)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self._count)

    def set_random_state(self, seed: int) -> None:
        """Seed the choice of data and the dropout of the next mixing."""
        self._generator = np.random.RandomState(seed)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        previous = getattr(state, "previous", None)
        if previous is None:
            self._warn()
            return
        spoiled = bool(self.evaluation_interval) and (state.round - 1) % self.evaluation_interval == 0
        if self._turns == 0 or state.round <= self.warm_up or spoiled:
            return
        received = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        if all(torch.equal(received[name], previous[name]) for name in self.names):
            return
        self.mix.begin({name: received[name] for name in self.names}, forget=not self.persist)
        with undisturbed(self.network, state.device, int(self._generator.randint(2**31))):
            self._learn(engine, previous, received)
        self._load(self.mix.blend(self.weight_of, previous, received))

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn("AdaptiveAggregation: nothing is known of what this site held before, so nothing is mixed.")
            self._warned = True

    def _learn(self, engine: Engine, local: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> None:
        losses: list[float] = []
        for _ in range(1 if self._settled else self.max_passes):
            for batch in self.data.batches(self._generator):
                self._load(self.mix.blend(self.weight_of, local, received))
                image, label = engine.prepare_batch(batch, engine.state.device, False)[:2]  # type: ignore[attr-defined]
                loss = self.loss(self.network(image), label)
                gradients = torch.autograd.grad(loss, [self.parameters[name] for name in self.names])
                self.mix.learn(self.names, gradients, local, received)
            losses.append(float(loss.detach()))
            if len(losses) > self.window and statistics.pstdev(losses[-self.window :]) < self.tolerance:
                break
        self._settled = True

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        held = self.network.state_dict()
        torch._foreach_copy_([held[name] for name in tensors], list(tensors.values()))

    def _count(self) -> None:
        self._turns += 1

    def personal_weights(self, received: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The mixture of ``received`` and what the site holds; None before the first mixing."""
        if not self.mix.weights:
            return None
        held = self.network.state_dict()
        self.mix.begin({name: held[name] for name in self.names})
        return self.mix.blend(self.weight_of, held, {**held, **received})

    def state_dict(self) -> dict[str, Any]:
        """W and what decides about the next mixing."""
        return {"weights": dict(self.mix.weights), "turns": self._turns, "settled": self._settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.mix.weights = {name: weight.clone() for name, weight in state["weights"].items()}
        self._turns, self._settled = state["turns"], state["settled"]


def _statistics_of(names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Running statistics that belong to mixed parameters, with the name of their channel's scale."""
    scales = [name for name in names if name.endswith(".weight")]
    pairs = (
        (f"{name.removesuffix('weight')}{kind}", name) for name in scales for kind in ("running_mean", "running_var")
    )
    return {statistic: scale for statistic, scale in pairs if statistic in tensors}
