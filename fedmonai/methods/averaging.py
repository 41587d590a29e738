# SPDX-License-Identifier: Apache-2.0
r"""Federated averaging: the mean of the sites' tensors, and a mean in which single tensors have an owner.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (AISTATS 2017), algorithm 1:
after a round the global weights are

.. math:: w \leftarrow \sum_k \frac{n_k}{\sum_j n_j} w_k,

:math:`w_k` what site k sends after its local training and :math:`n_k` what it counts by (:class:`WeightedMean`). Most
methods here aggregate so and differ elsewhere: their strategies are subclasses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.protocol import Strategy
from fedmonai.names import as_list, matching_names

__all__ = ["PerSiteMean", "RunningMean", "WeightedMean", "weighted_mean_"]


class WeightedMean(Strategy):
    """The mean of the sites' shared tensors (FedAvg).

    Args:
        weighting: ``uniform`` counts every site once (the released FL-MR), ``samples`` by training samples (McMahan et
            al., AISTATS 2017, algorithm 1), ``steps`` by executed iterations, ``batches`` by batches of one pass over
            the training data (the released FedICRA).
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> WeightedMean("samples").shares({"A": {"num_samples": 3}, "B": {"num_samples": 1}})
        {'A': 0.75, 'B': 0.25}

    Sites are added in sorted order, so the sum is the same to the bit whatever the order of arrival. Integer buffers
    (batch counters) keep their type and are taken from the first site in that order. With one site the result is that
    site's update.

    Raises:
        ConfigError: when ``weighting`` is none of these.
    """

    WEIGHTINGS = ("uniform", "samples", "steps", "batches")

    def __init__(
        self,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(shared_keys, local_keys)
        if weighting not in self.WEIGHTINGS:
            raise ConfigError(f"strategy: weighting is '{weighting}'; choose one of {', '.join(self.WEIGHTINGS)}.")
        self.weighting = weighting
        #: memory of the global weights of the round before, for the mean of the next
        self.spare: dict[str, Tensor] = {}

    def initialize(self, weights: Mapping[str, Any]) -> None:
        super().initialize(weights)
        self.spare = {}

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        names = sorted(updates)
        counts = [self.count(updates[name].statistics or {}) for name in names]
        for key, target in self.global_weights.items():
            tensors = [(updates[name].weights or {})[key] for name in names]
            target, tensors = _real(target), [_real(tensor) for tensor in tensors]
            if target.is_floating_point():
                weighted_mean_(target, tensors, counts)
            else:
                target.copy_(tensors[0])

    def shares(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """The share of every site in the mean; the shares sum to one."""
        counts = {name: self.count(numbers) for name, numbers in statistics.items()}
        total = sum(counts.values())
        return {name: count / total for name, count in counts.items()}

    def count(self, statistics: Mapping[str, Any]) -> int:
        """What a site counts in the mean."""
        return 1 if self.weighting == "uniform" else int(statistics[f"num_{self.weighting}"])

    def accumulator(self) -> RunningMean | None:
        """A running mean; none for a subclass with an :meth:`aggregate` of its own, which may need all updates."""
        return RunningMean(self) if type(self).aggregate is WeightedMean.aggregate else None


class RunningMean:
    """Mean of updates that come one by one, with the memory of one; of :class:`WeightedMean`.

    It is an :class:`~fedmonai.federated.protocol.Accumulator`.

    Args:
        strategy: gives the counts, and holds the global weights.

    Example:
        >>> strategy = WeightedMean("samples")
        >>> strategy.initialize({"weight": torch.zeros(1)})
        >>> mean = strategy.accumulator()
        >>> for value, count in ((1.0, 3), (5.0, 1)):
        ...     update = ExchangeObject(weights={"weight": torch.tensor([value])}, statistics={"num_samples": count})
        ...     mean.add(update)
        >>> mean.finish()
        >>> strategy.global_weights["weight"]
        tensor([2.])
    """

    def __init__(self, strategy: WeightedMean) -> None:
        self.strategy, self.total = strategy, 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, update: ExchangeObject) -> None:
        """Take in the next update, in sorted order of the sites."""
        count, weights = self.strategy.count(update.statistics or {}), update.weights or {}
        self.total += count
        if not self.mean:
            self.mean = self.strategy.spare or {k: torch.empty_like(t) for k, t in self.strategy.global_weights.items()}
            self.strategy.spare = {}
            keys = list(self.mean)
            torch._foreach_copy_([self.mean[key] for key in keys], [weights[key] for key in keys])
            return
        keys = [key for key, tensor in self.mean.items() if tensor.is_floating_point() or tensor.is_complex()]
        means, values = ([_real(tensors[key]) for key in keys] for tensors in (self.mean, weights))
        values = [value.to(mean.device) for value, mean in zip(values, means, strict=True)]
        torch._foreach_lerp_(means, values, count / self.total)

    def finish(self) -> None:
        """The mean becomes the global weights; their memory is that of the next mean."""
        if not self.mean:
            raise FederationError("there is no update to take a mean of.")
        self.strategy.spare, self.strategy.global_weights = self.strategy.global_weights, self.mean


class PerSiteMean(WeightedMean):
    """:class:`WeightedMean`, but a tensor with an owner is taken from its owner alone.

    For parts of a shared network that only one site trains by its own data, such as the site embeddings of FedICRA:
    averaged, a row would be diluted by the copies of all others. In a round without its owner such a tensor keeps its
    value. ``tensor_owners={}`` is :class:`WeightedMean`.

    Args:
        tensor_owners: ``{site: regular expression(s) of whole tensor names}``.
        weighting: see :class:`WeightedMean`.
        shared_keys: regular expressions of the tensors that travel.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> strategy = PerSiteMean({"A": "encoder.weight"}, weighting="samples")

    Raises:
        ConfigError: when a pattern is not a regular expression or, once the network is known, matches no shared tensor
            or one that has another owner.
    """

    def __init__(
        self,
        tensor_owners: Mapping[str, str | Sequence[str]] | None = None,
        weighting: str = "uniform",
        shared_keys: str | Sequence[str] = (".*",),
        local_keys: str | Sequence[str] = (),
    ) -> None:
        super().__init__(weighting, shared_keys, local_keys)
        self.tensor_owners = {site: as_list(patterns) for site, patterns in (tensor_owners or {}).items()}
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
            for site, patterns in self.tensor_owners.items():
                for pattern in patterns:
                    for key in self._owned(site, pattern):
                        if found.setdefault(key, site) != site:
                            raise ConfigError(
                                f"tensor_owners: '{key}' belongs to sites '{found[key]}' and '{site}'; give it to one "
                                "of them."
                            )
            self._owner = found
        return self._owner

    def _owned(self, site: str, pattern: str) -> list[str]:
        names = list(self.global_weights)
        return matching_names([pattern], names, f"tensor_owners of site '{site}'", whole=True) if names else []


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real values."""
    return torch.view_as_real(tensor.contiguous()) if tensor.is_complex() else tensor


# Elements averaged at a time: the running mean of a chunk stays in the cache, so N updates cost N reads and one write;
# shorter chunks lose more to calls than a nearer cache gives.
_CHUNK = 1 << 20


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
