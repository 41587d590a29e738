# SPDX-License-Identifier: Apache-2.0
"""The server half of FL-MRCM: the mean of the weights, and the target site's bank of latent vectors passed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.guard import RefusedMessage
from fedmonai.federated.message import attachments_of
from fedmonai.federated.strategy import WeightedMean

__all__ = ["TargetLatents"]

NAME, KEY = "target_latents", "latents"


class TargetLatents(WeightedMean):
    """Federated averaging that hands the target site's newest latent bank to the source sites (Guo et al., CVPR 2021).

    The bank that the target contributes in round r (encoded with the global weights that round r starts from, see
    :class:`fedmonai.handlers.feature_alignment.FeatureAlignment`) goes to the sources from round r + 1 on, until a newer one is there.
    Its age, the rounds since it was encoded, is 1 in normal running and grows while the target misses rounds. A target
    that is not among the training sites is an observer: it is asked for its bank in every round and trains nothing.

    Args:
        target_site: name of the target site.
        alignment: ``features``; with ``inputs`` or ``none`` nothing travels but weights.
        share_features: must be true for ``features``; the opt-in of this federation to share latent vectors.
        bank_size: most vectors that are accepted.
        weighting: see :class:`~fedmonai.federated.strategy.WeightedMean`.
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Raises:
        ConfigError: on ``features`` without ``share_features``.
    """

    def __init__(
        self,
        target_site: str,
        alignment: str = "features",
        share_features: bool = False,
        bank_size: int = 256,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        self.target_site, self.bank_size = str(target_site), bank_size
        if alignment == "features":
            if not share_features:
                raise ConfigError(
                    f"alignment 'features' sends latent vectors of site '{target_site}'s training images through the "
                    "server to the other sites; if its institution agrees say so with share_features: true, else "
                    "choose alignment: none."
                )
            self.attachments_up = self.attachments_down = (NAME,)
            self.observers = (self.target_site,)
        self.bank: Tensor | None = None
        self.bank_round = 0
        self._round: dict[str, int] = {}

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        messages = super().configure_round(round_number, sites)
        self._round = {}
        if self.bank is not None:
            self._round = {"vectors_down": len(self.bank), "age": round_number - self.bank_round}
            for site, message in messages.items():
                if site != self.target_site:
                    message[NAME] = {KEY: self.bank}
        return messages

    def check_update(self, site: str, update: ExchangeObject) -> None:
        """Accept a bank from the target site alone, and only as a matrix of at most ``bank_size`` vectors."""
        if NAME not in update:
            return
        tensors = attachments_of(update)[NAME]
        if site != self.target_site:
            raise RefusedMessage(f"'{NAME}' may come from the target site '{self.target_site}' only")
        if set(tensors) != {KEY} or tensors[KEY].ndim != 2 or not 1 <= len(tensors[KEY]) <= self.bank_size:
            shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
            raise RefusedMessage(f"'{NAME}' is no matrix of 1 to {self.bank_size} vectors but {shapes}")
        if self.bank is not None and tensors[KEY].shape[1] != self.bank.shape[1]:
            raise RefusedMessage(f"'{NAME}' has {tensors[KEY].shape[1]} values per vector, not {self.bank.shape[1]}")

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        fresh = attachments_of(updates[self.target_site]) if self.target_site in updates else {}
        if NAME in fresh:
            self.bank, self.bank_round = fresh[NAME][KEY], round_number
            self._round["vectors_up"] = len(self.bank)
        super().aggregate(round_number, {name: update for name, update in updates.items() if update.weights})

    def describe_round(self) -> dict[str, Any]:
        return {NAME: self._round} if self._round else {}

    def state_dict(self) -> dict[str, Any]:
        own = {"bank": self.bank, "bank_round": self.bank_round, "target_site": self.target_site}
        return {**super().state_dict(), **({} if self.bank is None else own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; its bank counts only if vectors still travel, and only of the same target site."""
        super().load_state_dict(state)
        self.bank, self.bank_round = None, 0
        if self.attachments_down and state.get("target_site") == self.target_site:
            self.bank, self.bank_round = state["bank"], int(state["bank_round"])
