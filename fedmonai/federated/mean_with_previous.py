# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedMRI: the mean of the shared part, and every site's previous encoder for all sites."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.message import SharedKeys
from fedmonai.federated.strategy import WeightedMean

__all__ = ["MeanWithPrevious"]

NEGATIVES = ("all", "self", "none")
ATTACHMENT = "previous_encoders"


class MeanWithPrevious(WeightedMean):
    """:class:`WeightedMean` that also sends down all sites' encoders as received in the round before (FedMRI).

    Feng et al., TMI 2023: the references that :class:`~fedmonai.handlers.weight_contrast.WeightContrast` pushes away from. From the
    second round on every message carries the attachment ``previous_encoders``, ``{"<site>/<tensor>": values}``, K times
    the encoder (before that it is empty). Of a site that missed rounds the last encoder is kept; ``rounds.jsonl``
    states the age of each in rounds (1 = the round before).

    With ``negatives: all`` every site receives the other sites' own encoders, not only their mean: what protects a
    site's update by averaging does not protect these. ``self`` and ``none`` send nothing beside the mean.

    Args:
        weighting: see :class:`WeightedMean`; ``uniform`` in the method.
        shared_keys: regular expressions of the tensors that travel; the encoder in the method.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
        encoder_keys: regular expressions of the shared tensors that the attachment holds.
        negatives: ``all``, ``self`` or ``none``, as at the sites.

    Raises:
        ConfigError: on another ``negatives``; at the start, when ``encoder_keys`` match nothing that is shared.
    """

    def __init__(
        self,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (r"(.*\.)?encoder\.",),
        local_keys: str | Sequence[str] = (),
        encoder_keys: str | Sequence[str] = (r"(.*\.)?encoder\.",),
        negatives: str = "all",
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        if negatives not in NEGATIVES:
            raise ConfigError(f"negatives is '{negatives}'; choose one of {', '.join(NEGATIVES)}.")
        self.encoder_keys = SharedKeys(encoder_keys)
        self.attachments_down = (ATTACHMENT,) if negatives == "all" else ()
        #: encoder of every site as last received, and the round it is from
        self.previous: dict[str, dict[str, Tensor]] = {}
        self.previous_round: dict[str, int] = {}
        self._ages: dict[str, int] = {}

    def initialize(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`Strategy.initialize`."""
        super().initialize(weights)
        if self.attachments_down and not self._encoder():
            raise ConfigError(
                f"encoder_keys {list(self.encoder_keys.patterns)} match nothing of what is shared "
                f"({list(self.shared_keys.patterns)}); share the encoder, or set negatives to self or none."
            )

    def _encoder(self) -> list[str]:
        return [k for k, t in self.global_weights.items() if k in self.encoder_keys and t.is_floating_point()]

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        """One message per site; the attachment is the same for all, and in process it is not copied."""
        messages = super().configure_round(round_number, sites)
        self._ages = {name: round_number - known for name, known in sorted(self.previous_round.items())}
        if self.attachments_down:
            flat = {f"{name}/{key}": t for name, own in sorted(self.previous.items()) for key, t in own.items()}
            for message in messages.values():
                message[ATTACHMENT] = flat
        return messages

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        """See :class:`WeightedMean`; the updates' encoders are kept for the next round."""
        super().aggregate(round_number, updates)
        if self.attachments_down:
            for name, update in updates.items():
                self.previous[name] = {key: (update.weights or {})[key].clone() for key in self._encoder()}
                self.previous_round[name] = round_number

    def describe_round(self) -> dict[str, Any]:
        """Age in rounds of every encoder that was sent down in this round."""
        return {ATTACHMENT: {f"age_{name}": age for name, age in self._ages.items()}} if self.attachments_down else {}

    def forget(self, sites: Collection[str]) -> None:
        """Drop the encoders of sites that have left the federation."""
        for name in sites:
            self.previous.pop(name, None)
            self.previous_round.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Strategy.state_dict`."""
        return {**super().state_dict(), "previous": self.previous, "previous_round": self.previous_round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; one that another strategy wrote has no previous encoders: the next round starts anew."""
        super().load_state_dict(state)
        self.previous = {name: dict(tensors) for name, tensors in state.get("previous", {}).items()}
        self.previous_round = dict(state.get("previous_round", {}))
