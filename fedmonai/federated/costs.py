# SPDX-License-Identifier: Apache-2.0
"""Costs of a federation: bytes both ways, seconds of work at the sites and of waiting for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.messages import WEIGHTS, message_bytes
from fedmonai.federated.wire_form import WireForm

__all__ = ["Costs", "SimulatedCosts", "added"]


class Costs:
    """Costs since they were last taken, by site and by what was asked (``join``, ``train``, ``validate``, ...).

    Bytes are those of the tensors by item (``weights``, each attachment), and of all plain values (``facts``) where
    messages are really sent. Every message counts, whatever became of it.

    Example:
        >>> costs = Costs()
        >>> costs.sent("A", "train", {"weights": 8})
        >>> costs.sent("A", "train", {"weights": 8})
        >>> costs.take()["bytes_down"], costs.take()["bytes_down"]
        ({'A': {'train': {'weights': 16}}}, {})
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.down: dict[str, dict[str, dict[str, int]]] = {}
        self.up: dict[str, dict[str, dict[str, int]]] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.waiting: dict[str, dict[str, float]] = {}

    def sent(self, site: str, kind: str, sizes: Mapping[str, int]) -> None:
        """Count what a site was sent."""
        _count(self.down, site, kind, sizes)

    def received(self, site: str, kind: str, sizes: Mapping[str, int]) -> None:
        """Count what came from a site."""
        _count(self.up, site, kind, sizes)

    def worked(self, site: str, kind: str, seconds: float) -> None:
        """Count the time that a site itself took."""
        own = self.seconds.setdefault(site, {})
        own[kind] = own.get(kind, 0.0) + seconds

    def waited(self, site: str, kind: str, seconds: float) -> None:
        """Count the time from a request to its reply that the site did not work: transport, polls, queues."""
        own = self.waiting.setdefault(site, {})
        own[kind] = own.get(kind, 0.0) + max(0.0, seconds)

    def take(self) -> dict[str, Any]:
        """All of it as it is written into ``rounds.jsonl``; counting begins anew."""
        taken: dict[str, Any] = {
            "bytes_up": self.up,
            "bytes_down": self.down,
            "seconds_per_site": self.seconds,
            "waiting_per_site": self.waiting,
        }
        self._clear()
        return taken


def _count(total: dict[str, dict[str, dict[str, int]]], site: str, kind: str, sizes: Mapping[str, int]) -> None:
    own = total.setdefault(site, {}).setdefault(kind, {})
    for item, size in sizes.items():
        if size:
            own[item] = own.get(item, 0) + size


def added(sizes: Mapping[str, Any]) -> int:
    """All bytes in a nested mapping.

    Example:
        >>> added({"A": {"train": {"weights": 8, "facts": 2}, "validate": {"facts": 1}}})
        11
    """
    return sum(added(inner) if isinstance(inner, Mapping) else int(inner) for inner in sizes.values())


class SimulatedCosts(Costs):
    """Costs of sites on this machine: bytes that would travel if they were elsewhere.

    A site that holds weights is not sent them again; it holds those before training, the best ones and those that it
    was sent last (:class:`~fedmonai.federated.remote_pool.RemotePool`).

    Args:
        wire: form in which weights would travel.
    """

    def __init__(self, wire: WireForm) -> None:
        super().__init__()
        self.wire = wire
        self.forget()

    def forget(self) -> None:
        """A run goes on from an earlier state: as elsewhere, nothing is known of what sites hold."""
        self._last: dict[str, list[tuple[Tensor, int]]] = {}
        self._rounds: dict[str, set[int]] = {}

    def asked(self, site: str, kind: str, message: ExchangeObject, number: int) -> None:
        """Count a message.

        Args:
            site: the site.
            kind: what is asked.
            message: with the server's own tensors, by whose identity what was sent before is found.
            number: the round after which its weights were the global ones.
        """
        sizes = self._sizes(message)
        state = [(t, 0 if t.is_inference() else t._version) for t in (message.weights or {}).values()]
        if state and _alike(state, self._last.get(site, [])):
            sizes.pop(WEIGHTS, None)
        self._last[site] = state
        self._rounds.setdefault(site, set()).add(number)
        self.sent(site, kind, sizes)

    def answered(self, site: str, kind: str, update: ExchangeObject) -> None:
        """Count an update, in full values."""
        self.received(site, kind, self._sizes(update))

    def tested(self, site: str, chosen: tuple[Mapping[str, Tensor], int], initial: Mapping[str, Tensor]) -> None:
        """Count a final test: the chosen weights and their round, the shared weights before training."""
        there = self._rounds.get(site, set())
        sets = {WEIGHTS: chosen, "initial": (initial, 0)}
        sizes = {item: self.wire.bytes(weights) for item, (weights, number) in sets.items() if number not in there}
        self.sent(site, "test", sizes)

    def _sizes(self, message: ExchangeObject) -> dict[str, int]:
        return {**message_bytes(message), WEIGHTS: self.wire.bytes(message.weights or {})}


def _alike(one: list[tuple[Any, int]], other: list[tuple[Any, int]]) -> bool:
    return len(one) == len(other) and all(
        a is b and before == now for (a, now), (b, before) in zip(one, other, strict=True)
    )
