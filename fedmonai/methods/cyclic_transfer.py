# SPDX-License-Identifier: Apache-2.0
"""Cyclic weight transfer: one model is trained at one site after another, without averaging.

Chang et al., Distributed deep learning networks among institutions for medical imaging (JAMIA 2018). The order of the
sites is drawn anew for every pass; theirs is fixed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.messages import copy_weights
from fedmonai.federated.protocol import Strategy
from fedmonai.seeding import derive_seed

__all__ = ["CyclicWeightTransfer"]


class CyclicWeightTransfer(Strategy):
    """Cyclic weight transfer: the model is trained at one site after another, in random order.

    A round is the local training of one site: it starts from what the site before it sent. Every pass over the training
    sites has an order of its own, drawn from (seed, pass) alone, so with S sites ``num_rounds`` is S times the passes,
    and a pass costs what one round of averaging costs. With one site it equals
    :class:`~fedmonai.methods.averaging.WeightedMean` to the bit. ``fraction`` and weightings have no effect here; a
    site that fails stops the run, which resumes with that site.

    Args:
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> strategy = CyclicWeightTransfer()
        >>> visited = [strategy.participants(number, ["A", "B", "C"], seed=0)[0] for number in (1, 2, 3)]
        >>> sorted(visited)
        ['A', 'B', 'C']
    """

    def participants(self, round_number: int, sites: Sequence[str], seed: int) -> list[str] | None:
        passes, place = divmod(round_number - 1, len(sites))
        order = random.Random(derive_seed(seed, "transfer", passes)).sample(sorted(sites), len(sites))
        return [order[place]]

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        [update] = updates.values()
        copy_weights(update.weights or {}, self.global_weights, list(self.global_weights))
