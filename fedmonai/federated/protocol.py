# SPDX-License-Identifier: Apache-2.0
"""What the federation does with weights: who gets what in a round, and what becomes of the answers.

A strategy knows no transport: the in-process :class:`~fedmonai.federated.federation.Federation`, an NVFlare server and
a Flower server drive the same object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import FederationError
from fedmonai.federated.messages import SharedKeys, weights_message

__all__ = ["Strategy"]


# Elements averaged at a time: the running mean of a chunk stays in the cache, so N updates cost N reads and one write;
# shorter chunks lose more to calls than a nearer cache gives.
_CHUNK = 1 << 20


class Strategy(ABC):
    """Base of all strategies.

    Args:
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
    """

    #: names of the attachments that may travel from the sites / to the sites beside the weights
    attachments_up: tuple[str, ...] = ()
    attachments_down: tuple[str, ...] = ()
    #: sites that are asked in every round for attachments even if they do not train (see :meth:`SiteAlgo.train`)
    observers: tuple[str, ...] = ()

    def __init__(self, shared_keys: str | Sequence[str] = (".*",), local_keys: str | Sequence[str] = ()) -> None:
        self.shared_keys = SharedKeys(shared_keys, local_keys)
        self.global_weights: dict[str, Tensor] = {}

    def initialize(self, weights: Mapping[str, Tensor]) -> None:
        """Take the shared part of ``weights`` (a whole state dict) as the global weights; the tensors are copied."""
        shared, _ = self.shared_keys.split(weights)
        self.global_weights = {key: weights[key].detach().clone() for key in shared}

    def participants(self, round_number: int, sites: Sequence[str], seed: int) -> list[str] | None:
        """The training sites of a round, or ``None`` to leave the choice to the federation (``fraction``)."""
        return None

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        """One message per site. In process the tensors are the global ones themselves: receivers copy, never keep."""
        return {site: weights_message(self.global_weights, round=round_number) for site in sites}

    def evaluation_message(self, site: str) -> ExchangeObject:
        """What a site is evaluated with, besides its private weights."""
        return weights_message(self.global_weights)

    def check_update(self, site: str, update: ExchangeObject) -> None:  # noqa: B027 (nothing to check by default)
        """Refuse what the guard cannot know to be wrong, by a :class:`~fedmonai.federated.validation.InvalidUpdate`."""

    def describe_round(self) -> dict[str, Any]:
        """What stands in ``rounds.jsonl`` about this round's attachments: ``{name: {what: number}}``."""
        return {}

    @abstractmethod
    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        """Turn checked updates into the new global weights, in place. Updates of observers hold no weights.

        The weights of an update are lent: in process their memory is written over in the next round, so what is kept
        longer has to be copied. Attachments are the strategy's own.
        """

    def forget(self, sites: Collection[str]) -> None:  # noqa: B027 (most strategies keep nothing of single sites)
        """Drop what is kept of sites that are no longer in the federation."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain Python values."""
        return {"global_weights": self.global_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.global_weights = dict(state["global_weights"])


@torch.no_grad()
def weighted_mean_(target: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """``target <- sum_i weights[i] * tensors[i] / sum_i weights[i]``, in place and chunk by chunk.

    A running mean, ``m <- m + w_i / (w_1 + ... + w_i) * (x_i - m)``: a pass over memory fewer than a weighted sum, and
    the mean of equal tensors is that tensor to the bit. Tensors of weight 0 are not read. None of ``tensors`` may share
    memory with ``target``.

    Raises:
        FederationError: when no weight is above 0.
    """
    out = target.view(-1)
    counted = [(t.to(target.device).reshape(-1), w) for t, w in zip(tensors, weights, strict=True) if w > 0]
    if not counted:
        raise FederationError(f"the weights of a mean are {list(weights)}; one of them must be above 0.")
    (first, total), rest = counted[0], []
    for tensor, weight in counted[1:]:
        total += weight
        rest.append((tensor, weight / total))
    chunk = _CHUNK if target.device.type == "cpu" else max(out.numel(), 1)
    for begin in range(0, out.numel(), chunk):
        window = slice(begin, begin + chunk)
        mean, previous = out[window], first[window]
        for tensor, share in rest:
            previous = torch.lerp(previous, tensor[window], share, out=mean)
        if not rest:
            mean.copy_(previous)
