# SPDX-License-Identifier: Apache-2.0
"""Costs of a federation: bytes both ways, seconds of work at the sites and of waiting for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.messages import WEIGHTS, message_bytes, weights_message

__all__ = ["Costs", "SentBefore", "added"]


class Costs:
    """Costs since they were last taken, by site and by what was asked (``join``, ``train``, ``validate``, ...).

    Bytes are those of the tensors by item (``weights``, each attachment), and of all plain values (``facts``) where
    messages are really sent. Every message counts, also one that was refused.

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

    def add(self, taken: Mapping[str, Any]) -> None:
        """Add what the sites of another process have sent and worked; what they were sent is counted by the sender."""
        for site, kinds in taken["bytes_up"].items():
            for kind, sizes in kinds.items():
                self.received(site, kind, sizes)
        for site, kinds in taken["seconds_per_site"].items():
            for kind, seconds in kinds.items():
                self.worked(site, kind, seconds)

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


class SentBefore:
    """Record of what sites in one process would be sent over a network: weights that a site holds are not sent again.

    A site holds the weights before training, the best ones and those that it was sent last.
    """

    def __init__(self) -> None:
        self._last: dict[str, list[tuple[Any, int]]] = {}
        self._rounds: dict[str, set[int]] = {}

    def sizes(self, site: str, message: ExchangeObject, sent: ExchangeObject, number: int) -> dict[str, int]:
        """Bytes of a message.

        Args:
            site: the site.
            message: with the server's own tensors, by whose identity what was sent before is found.
            sent: the same in the form of the wire.
            number: the round after which the weights were these.
        """
        sizes = message_bytes(sent)
        state = [(t, 0 if t.is_inference() else t._version) for t in (message.weights or {}).values()]
        last = self._last.get(site)
        if state and last is not None and _alike(state, last):
            sizes.pop(WEIGHTS, None)
        self._last[site] = state
        self._rounds.setdefault(site, set()).add(number)
        return sizes

    def tested(self, site: str, sets: Mapping[str, tuple[Mapping[str, Tensor], int]]) -> dict[str, int]:
        """Bytes of a final test: those of ``{item: (weights as sent, their round)}`` that the site does not hold."""
        there = self._rounds.get(site, set())
        return {
            item: message_bytes(weights_message(weights))[WEIGHTS]
            for item, (weights, number) in sets.items()
            if number not in there
        }


def _alike(one: list[tuple[Any, int]], other: list[tuple[Any, int]]) -> bool:
    return len(one) == len(other) and all(
        a is b and before == now for (a, now), (b, before) in zip(one, other, strict=True)
    )
