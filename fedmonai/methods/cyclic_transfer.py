# SPDX-License-Identifier: Apache-2.0
"""Transfer learning between sites: one model travels, and nothing is averaged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.messages import copy_weights
from fedmonai.federated.protocol import Strategy
from fedmonai.seeding import derive_seed

__all__ = ["CyclicWeightTransfer"]


class CyclicWeightTransfer(Strategy):
    """The model is trained at one site after another, in random order (cyclic weight transfer; Chang et al., 2018).

    A round is one site's turn: it starts from what the site before it sent. Every pass over the training sites has an
    order of its own, drawn from (seed, pass) alone, so with S sites ``num_rounds`` is S times the passes, and a pass
    costs what one round of averaging costs. With one site it equals :class:`WeightedMean` to the
    bit. ``fraction`` and weightings have no meaning here; a site that fails its turn stops the run, which resumes at
    that turn.

    Args:
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
    """

    def __init__(self, shared_keys: str | Sequence[str] = (".*",), local_keys: str | Sequence[str] = ()) -> None:
        super().__init__(shared_keys, local_keys)

    def participants(self, round_number: int, sites: Sequence[str], seed: int) -> list[str] | None:
        passes, turn = divmod(round_number - 1, len(sites))
        order = random.Random(derive_seed(seed, "transfer", passes)).sample(sorted(sites), len(sites))
        return [order[turn]]

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        [update] = updates.values()
        copy_weights(update.weights or {}, self.global_weights, list(self.global_weights))
