# SPDX-License-Identifier: Apache-2.0
"""Messages: shared keys, attachments, their bytes, requests and replies, their form on the wire and its version."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, first_line
from fedmonai.names import as_list, compiled_patterns, matching_names

__all__ = [
    "JOB_FORMAT",
    "KINDS",
    "MESSAGE_FORMAT",
    "STATE_FORMAT",
    "WEIGHTS",
    "FormatError",
    "KeepSharedKeys",
    "Reply",
    "Request",
    "SharedKeys",
    "attachments_of",
    "check_format",
    "copy_weights",
    "kind_of_training",
    "message_bytes",
    "pack",
    "pack_reply",
    "pack_request",
    "unpack",
    "unpack_reply",
    "unpack_request",
    "weights_message",
]

#: format versions: a number goes up when what is written is no longer understood by the version before;
#: ``tests/golden/formats`` holds one file of each, so that no change goes unnoticed. This one is of :func:`pack`
MESSAGE_FORMAT = 2
#: of ``federation.pt`` and of the sites' ``round_NNNN.pt``
STATE_FORMAT = 2
#: of a job's ``fedmonai.json``
JOB_FORMAT = 1


class FormatError(ConfigError):
    """Error for content in another format, which is not damaged but cannot be used."""


def check_format(what: str, content: Any, known: int, remedy: str) -> None:
    """Refuse content that does not say that it is of the format that is read here.

    Args:
        what: name of the content, for the message.
        content: mapping with the number under ``format``.
        known: the format that is read.
        remedy: what to do about another one.

    Raises:
        FormatError: on another format, or on none.
    """
    found = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(found, bool) or found != known:
        said = "names no format" if found is None else f"is of format {str(found)[:20]}"
        raise FormatError(f"{what} {said}; this version of fedmonai reads format {known}. {remedy}")


class SharedKeys:
    """The declared part of a state dict that a site shares; everything else is private.

    Args:
        patterns: regular expressions; a key is shared if one of them matches from its start (``re.match``).
            ``(".*",)`` shares everything (FedAvg), ``()`` shares nothing (local training).
        local: regular expressions of keys that stay private although a shared pattern matches them, for example
            ``(r".*\\.bn",)`` (FedBN).

    Example:
        >>> keys = SharedKeys("encoder", local=".*bn")
        >>> keys.split(["encoder.conv", "encoder.bn", "head.conv"])
        (['encoder.conv'], ['encoder.bn', 'head.conv'])

    Raises:
        ConfigError: when a pattern is not a regular expression.
    """

    def __init__(self, patterns: str | Sequence[str] = (".*",), local: str | Sequence[str] = ()) -> None:
        self.patterns, self.local = tuple(as_list(patterns)), tuple(as_list(local))
        self._shared = compiled_patterns(self.patterns, "shared_keys")
        self._local = compiled_patterns(self.local, "local_keys")

    def __contains__(self, key: str) -> bool:
        return any(p.match(key) for p in self._shared) and not any(p.match(key) for p in self._local)

    def split(self, keys: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return (shared, private) keys in the order given.

        Raises:
            ConfigError: when a shared or a local pattern matches no key, which is nearly always a misspelling.
        """
        names = list(keys)
        local = matching_names(self._local, names, "local_keys")
        chosen = set(matching_names(self._shared, names, "shared_keys")) - set(local)
        return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def weights_message(weights: Mapping[str, Tensor], **statistics: int | float) -> ExchangeObject:
    """A message with full values (not differences) and plain statistics."""
    return ExchangeObject(weights=dict(weights), weight_type=WeightType.WEIGHTS, statistics=dict(statistics))


def attachments_of(message: ExchangeObject) -> dict[str, Mapping[str, Tensor]]:
    """The named attachments of a message."""
    return dict(message.items())


@torch.no_grad()
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    """Copy ``source[key]`` into the live tensor ``target[key]`` for every key, in one pass and without reshaping."""
    if keys:
        torch._foreach_copy_([target[k] for k in keys], [source[k] for k in keys])


def message_bytes(message: ExchangeObject) -> dict[str, int]:
    """Bytes of every named item of a message: ``weights`` and each attachment."""
    sizes = {WEIGHTS: _tensor_bytes((message.weights or {}).values())}
    for name, tensors in attachments_of(message).items():
        sizes[name] = _tensor_bytes(tensors.values())
    return sizes


def _tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def kind_of_training(message: ExchangeObject | None) -> str:
    """Whether a message asks for local training (``train``) or for attachments alone (``observe``)."""
    statistics = message.statistics or {} if message is not None else {}
    return "observe" if statistics.get("observe") else "train"


class KeepSharedKeys:
    """Filter that drops every tensor that is not shared, for sites that run a stock ``MonaiAlgo``.

    :class:`~fedmonai.federated.site.SiteAlgo` needs no such filter. A stock client needs it on both sides: without the
    one after training its private tensors leak, without the one before they are overwritten by the server's.

    Args:
        shared_keys: regular expressions of the tensors that may leave and be loaded.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.

    Example:
        >>> message = weights_message({"encoder.weight": torch.zeros(1), "head.weight": torch.zeros(1)})
        >>> list(KeepSharedKeys("encoder")(message).weights)
        ['encoder.weight']
    """

    def __init__(self, shared_keys: str | Sequence[str] = (".*",), local_keys: str | Sequence[str] = ()) -> None:
        self.keys = SharedKeys(shared_keys, local_keys)

    def __call__(self, message: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        message.weights = {k: t for k, t in (message.weights or {}).items() if k in self.keys}
        return message


#: what a site can be asked: to build itself, local training, the evaluation after a round, the final test
KINDS = ("join", "train", "validate", "test")
_SEPARATOR = "::"
#: the item of a message that is not an attachment
WEIGHTS = "weights"
_DIGEST = re.compile("[0-9a-f]{64}")
#: sets of tensors that a site is asked to keep at a time, at most
MOST_KEPT = 8


@dataclass
class Request:
    """Request to a site.

    Args:
        kind: one of :data:`KINDS`.
        site: the site.
        round: the strategy's round, not the transport's counter.
        message: weights and attachments, if the kind needs them.
        facts: plain values: lists and dicts with ``str`` keys of numbers, strings, booleans and ``None``.
        digests: the digest of each item (``weights`` or an attachment) that the site is to keep.
        held: items among them that are not sent: the site holds them from an earlier request.
        keep: digests of items of earlier requests that the site keeps further.

    Example:
        >>> tensors, plain = pack_request(Request("train", "A", 3, weights_message({"weight": torch.zeros(2)})))
        >>> request = unpack_request(tensors, plain)
        >>> request.kind, request.site, request.round, list(request.message.weights)
        ('train', 'A', 3, ['weight'])
    """

    kind: str
    site: str
    round: int
    message: ExchangeObject | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)


@dataclass
class Reply:
    """Reply of a site; one with an ``error`` has no message.

    A reply whose facts name what the site ``needs`` has no message either: the site no longer holds these items of the
    request and must be sent all of it.

    Example:
        >>> unpack_reply(*pack_reply(Reply(error="no data")))
        Reply(message=None, facts={}, error='no data')
    """

    message: ExchangeObject | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def pack(message: ExchangeObject | None, held: Collection[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One flat dict of tensors (weights under their own keys, attachments as ``name::key``), and plain values.

    Flat, so that a runtime's own filters find weights where they look for them. Tensors of bfloat16, which numpy and so
    most runtimes do not have, travel as the 16-bit integers of the same bytes.

    Args:
        message: weights, attachments, statistics.
        held: items that are left out.
    """
    plain: dict[str, Any] = {"format": MESSAGE_FORMAT}
    if message is None:
        return {}, {**plain, "empty": True}
    kept = {} if WEIGHTS in held else message.weights or {}
    tensors = {key: tensor.detach() for key, tensor in kept.items()}
    attachments: dict[str, list[str]] = {}
    for name, content in attachments_of(message).items():
        if name not in held:
            attachments[name] = list(content)
            tensors.update({f"{name}{_SEPARATOR}{key}": tensor.detach() for key, tensor in content.items()})
    halves = [key for key, tensor in tensors.items() if tensor.dtype == torch.bfloat16]
    tensors.update({key: tensors[key].contiguous().view(torch.int16) for key in halves})
    statistics = {str(key): value for key, value in (message.statistics or {}).items()}
    return tensors, {**plain, "statistics": statistics, "attachments": attachments, "bfloat16": halves}


def unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> ExchangeObject | None:
    """The message that :func:`pack` took apart. What a filter has removed on the way is missing in it.

    Raises:
        FormatError: when it was packed in another format.
    """
    check_format("the message", plain, MESSAGE_FORMAT, "Install the same version of fedmonai at every end.")
    if plain.get("empty"):
        return None
    rest = dict(tensors)
    for key in list(plain.get("bfloat16", [])):
        if key in rest and rest[key].dtype == torch.int16:  # else a filter has changed it, which validators refuse
            rest[key] = rest[key].view(torch.bfloat16)
    found: dict[str, dict[str, Tensor]] = {}
    for name, keys in dict(plain.get("attachments", {})).items():
        named = {key: f"{name}{_SEPARATOR}{key}" for key in keys}
        found[str(name)] = {key: rest.pop(full) for key, full in named.items() if full in rest}
    statistics = dict(plain.get("statistics", {}))
    message = ExchangeObject(weights=rest, weight_type=WeightType.WEIGHTS, statistics=statistics)
    message.update(found)
    return message


def pack_request(request: Request) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A request for any wire: its tensors without those that the site holds, and plain values that JSON can hold."""
    tensors, plain = pack(request.message, request.held)
    named = {name: getattr(request, name) for name in ("kind", "site", "round", "facts", "digests", "held", "keep")}
    return tensors, {**named, "message": plain}


def unpack_request(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Request:
    """The request that :func:`pack_request` took apart, still without what the site holds.

    Raises:
        ConfigError: when it has another form, a FormatError when it was packed in another format.
    """
    with _reading("request"):
        message = unpack(tensors, plain["message"])
        digests, held, keep = dict(plain["digests"]), list(plain["held"]), list(plain["keep"])
        if not set(held) <= set(digests) or len(digests) + len(keep) > MOST_KEPT:
            raise ValueError(f"{len(digests) + len(keep)} sets to keep, {len(held)} of them held")
        if not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in (*digests.values(), *keep)):
            raise ValueError("a digest is no SHA-256")
        numbers = plain["kind"], plain["site"], int(plain["round"])
        return Request(*numbers, message, dict(plain["facts"]), digests, held, keep)


def pack_reply(reply: Reply) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A reply for any wire; one with an error has no tensors."""
    tensors, plain = pack(reply.message)
    return tensors, {"facts": reply.facts, "error": reply.error, "message": plain}


def unpack_reply(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Reply:
    """The reply that :func:`pack_reply` took apart.

    Raises:
        ConfigError: when it has another form, a FormatError when it was packed in another format.
    """
    with _reading("reply"):
        return Reply(unpack(tensors, plain["message"]), dict(plain["facts"]), plain["error"])


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise a ConfigError of one line when what came over a wire cannot be read."""
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"a {what} cannot be read ({type(error).__name__}: {first_line(error)}).") from error
