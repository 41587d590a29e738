# SPDX-License-Identifier: Apache-2.0
"""Requests to a site that lives in another process, replies, their form on the wire: tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.message import attachments_of

__all__ = ["KINDS", "Reply", "Request", "pack", "unpack"]

#: what a site can be asked: to build itself, a turn, the evaluation after a round, the final test
KINDS = ("join", "train", "validate", "test")
_SEPARATOR = "::"


@dataclass
class Request:
    """What a site is asked.

    Args:
        kind: one of :data:`KINDS`.
        site: the site.
        round: the strategy's round, not the transport's counter.
        message: weights and attachments, if the kind needs them.
        facts: plain values: lists and dicts with ``str`` keys of numbers, strings, booleans and ``None``.
    """

    kind: str
    site: str
    round: int
    message: ExchangeObject | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reply:
    """What a site answers; with an ``error`` there is no message."""

    message: ExchangeObject | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def pack(message: ExchangeObject | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One flat dict of tensors (weights under their own keys, attachments as ``name::key``), and plain values.

    Flat, so that a runtime's own filters find weights where they look for them.
    """
    if message is None:
        return {}, {"empty": True}
    tensors = {key: tensor.detach() for key, tensor in (message.weights or {}).items()}
    attachments: dict[str, list[str]] = {}
    for name, content in attachments_of(message).items():
        attachments[name] = list(content)
        tensors.update({f"{name}{_SEPARATOR}{key}": tensor.detach() for key, tensor in content.items()})
    statistics = {str(key): value for key, value in (message.statistics or {}).items()}
    return tensors, {"statistics": statistics, "attachments": attachments}


def unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> ExchangeObject | None:
    """The message that :func:`pack` took apart. What a filter has removed on the way is missing in it."""
    if plain.get("empty"):
        return None
    rest = dict(tensors)
    found: dict[str, dict[str, Tensor]] = {}
    for name, keys in dict(plain.get("attachments", {})).items():
        named = {key: f"{name}{_SEPARATOR}{key}" for key in keys}
        found[str(name)] = {key: rest.pop(full) for key, full in named.items() if full in rest}
    statistics = dict(plain.get("statistics", {}))
    message = ExchangeObject(weights=rest, weight_type=WeightType.WEIGHTS, statistics=statistics)
    message.update(found)
    return message
