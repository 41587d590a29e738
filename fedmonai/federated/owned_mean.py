# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, with tensors that belong to one site each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError
from fedmonai.federated.strategy import WeightedMean

__all__ = ["OwnedMean"]


class OwnedMean(WeightedMean):
    """:class:`WeightedMean`, but a tensor with an owner is taken from its owner alone.

    For parts of a shared network that only one site trains by its own data, such as the site embeddings of FedICRA:
    averaged, a row would be diluted by the copies of all others. In a round without its owner such a tensor keeps its
    value. ``owners={}`` is :class:`WeightedMean`.

    Args:
        owners: ``{site: regular expression(s) of whole tensor names}``.
        weighting: see :class:`WeightedMean`.
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Raises:
        ConfigError: when a pattern is not a regular expression or, once the network is known, matches no shared tensor
            or one that has another owner.
    """

    def __init__(
        self,
        owners: Mapping[str, str | Sequence[str]] | None = None,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        self.owners = {site: [p] if isinstance(p, str) else list(p) for site, p in (owners or {}).items()}
        self._owner: dict[str, str] | None = None

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        owner = self._owner_of_tensors()
        kept = {key: self.global_weights[key].clone() for key in owner}
        super().aggregate(round_number, updates)
        for key, site in owner.items():
            own = (updates[site].weights or {})[key] if site in updates else kept[key]
            self.global_weights[key].copy_(own)

    def initialize(self, weights: Mapping[str, Any]) -> None:
        super().initialize(weights)
        self._owner = None
        self._owner_of_tensors()

    def _owner_of_tensors(self) -> dict[str, str]:
        if self._owner is None:
            found: dict[str, str] = {}
            for site, patterns in self.owners.items():
                for pattern in patterns:
                    for key in self._owned(site, pattern):
                        if found.setdefault(key, site) != site:
                            raise ConfigError(
                                f"owners: '{key}' belongs to sites '{found[key]}' and '{site}'; give it to one of them."
                            )
            self._owner = found
        return self._owner

    def _owned(self, site: str, pattern: str) -> list[str]:
        try:
            found = [key for key in self.global_weights if re.fullmatch(pattern, key)]
        except re.error as error:
            raise ConfigError(f"owners: '{pattern}' of site '{site}' is not a regular expression ({error}).") from error
        if not found and self.global_weights:
            raise ConfigError(
                f"owners: '{pattern}' of site '{site}' is no shared tensor; correct it, or set owners to {{}}."
            )
        return found
