# SPDX-License-Identifier: Apache-2.0
r"""Robust aggregation: means that a few wrong or hostile sites cannot move far.

Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (ICML 2018), algorithm 1. For every
coordinate the values of the n sites are sorted and b of them dropped at either end,

.. math:: w \leftarrow \frac{1}{n - 2b} \sum_{i=b+1}^{n-b} w_{(i)},

:math:`b = \lfloor \beta n \rfloor` in :class:`TrimmedMean`, all but the middle in :class:`Median`. The paper combines
gradients, here what sites send after local training.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import Strategy
from fedmonai.methods.averaging import WeightedMean

__all__ = ["Median", "TrimmedMean"]


# Elements sorted at a time: bounds the copy that sorting needs to this many numbers per site.
_CHUNK = 1 << 17


class _SortedCoordinates(Strategy):
    """Base of the rules that sort the sites' values of every coordinate.

    Sites count alike: a claimed number of samples is what a hostile site would lie about. Integer buffers keep their
    type and are taken from the first site in sorted order, as in :class:`WeightedMean`.
    """

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        trained = {name: update.weights for name, update in updates.items() if update.weights}
        weights = [trained[name] for name in sorted(trained)]
        if self.dropped(len(weights)) == 0:
            self._mean(round_number, {name: updates[name] for name in trained})
            return
        for key, target in self.global_weights.items():
            tensors = [w[key] for w in weights]
            if target.is_complex():  # real and imaginary parts are coordinates
                target, tensors = torch.view_as_real(target), [torch.view_as_real(t.contiguous()) for t in tensors]
            if target.is_floating_point():
                self._combine_(target, tensors)
            else:
                target.copy_(tensors[0])

    @abstractmethod
    def dropped(self, num_sites: int) -> int:
        """How many of ``num_sites`` sorted values are left out at either end."""

    def _mean(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        """With nothing to leave out the result is FedAvg to the bit: the sum in the order of sites, not of values."""
        plain = WeightedMean("uniform")
        plain.global_weights = self.global_weights
        plain.aggregate(round_number, updates)

    @torch.no_grad()
    def _combine_(self, target: Tensor, tensors: Sequence[Tensor]) -> None:
        out = target.view(-1)
        flat = [t.to(target.device).reshape(-1) for t in tensors]
        dropped = self.dropped(len(flat))
        for begin in range(0, out.numel(), _CHUNK):
            values = torch.stack([t[begin : begin + _CHUNK] for t in flat]).sort(dim=0).values
            # divided before the sum: two values near the largest float have a mean, but no sum
            kept = values[dropped : len(flat) - dropped]
            out[begin : begin + _CHUNK] = (kept / len(kept)).sum(dim=0)


class Median(_SortedCoordinates):
    """The coordinate-wise median of the sites' tensors (option I).

    For an even number of sites it is the mean of the two middle values. Any minority of sites leaves every coordinate
    within the range of the others. With one or two sites it is the uniform mean.

    Args:
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> from fedmonai.federated.messages import weights_message
        >>> strategy = Median()
        >>> strategy.initialize({"weight": torch.zeros(1)})
        >>> sent = {"A": 1.0, "B": 2.0, "C": 99.0}
        >>> strategy.aggregate(1, {site: weights_message({"weight": torch.tensor([w])}) for site, w in sent.items()})
        >>> strategy.global_weights["weight"].item()
        2.0
    """

    def dropped(self, num_sites: int) -> int:
        """All but the middle one or two."""
        return (num_sites - 1) // 2


class TrimmedMean(_SortedCoordinates):
    """The coordinate-wise mean without the largest and the smallest values (option II).

    ``trim = 0`` is FedAvg with uniform weights, to the bit. Of n sites ``floor(trim * n)`` values are left out at
    either end, so with few sites a small share leaves out nothing; :meth:`dropped` gives the number.

    Args:
        trim: share of the sites left out at either end, in [0, 0.5); no less than the share of sites that may be wrong.
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> strategy = TrimmedMean(trim=0.25)
        >>> strategy.dropped(8), strategy.dropped(3)
        (2, 0)

    Raises:
        ConfigError: when ``trim`` is outside [0, 0.5).
    """

    def __init__(
        self,
        trim: float = 0.25,
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(shared_keys, local_keys)
        if not 0 <= trim < 0.5:
            raise ConfigError(
                f"strategy: trim is {trim}; give the share of sites to leave out at either end, from 0 to below 0.5."
            )
        self.trim = trim

    def dropped(self, num_sites: int) -> int:
        """``floor(trim * num_sites)``; the product is rounded first, so that 0.1 of 10 sites is 1 and not 0."""
        return math.floor(round(self.trim * num_sites, 9))
