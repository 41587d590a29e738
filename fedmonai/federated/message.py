# SPDX-License-Identifier: Apache-2.0
"""What crosses the wire: shared keys, attachments, and their size in bytes.

A message is a :class:`monai.fl.utils.exchange_object.ExchangeObject`. ``weights`` holds the shared part of a state
dict, ``statistics`` plain numbers under ``str`` keys, and every further dict entry is an *attachment*: a named dict of
tensors that the strategy has declared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["SharedKeys", "attachments_of", "copy_weights", "message_bytes", "weights_message"]


class SharedKeys:
    """The declared part of a state dict that a site shares; everything else is private.

    Args:
        patterns: regular expressions; a key is shared if one of them matches from its start (``re.match``).
            ``(".*",)`` shares everything (FedAvg), ``()`` shares nothing (local training).
        local: regular expressions of keys that stay private although a shared pattern matches them, for example
            ``(r".*\\.bn",)`` (FedBN).

    Raises:
        ConfigError: when a pattern is not a regular expression.
    """

    def __init__(self, patterns: str | Sequence[str] = (".*",), local: str | Sequence[str] = ()) -> None:
        self.patterns = _as_tuple(patterns)
        self.local = _as_tuple(local)
        self._shared = [_compiled(p) for p in self.patterns]
        self._local = [_compiled(p) for p in self.local]

    def __contains__(self, key: str) -> bool:
        return any(p.match(key) for p in self._shared) and not any(p.match(key) for p in self._local)

    def split(self, keys: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return (shared, private) keys in the order given.

        Raises:
            ConfigError: when a shared or a local pattern matches no key, which is nearly always a misspelling.
        """
        names = list(keys)
        for kind, patterns in (("shared_keys", self._shared), ("local_keys", self._local)):
            for pattern in patterns:
                if not any(pattern.match(name) for name in names):
                    raise ConfigError(
                        f"{kind}: the pattern '{pattern.pattern}' matches none of the {len(names)} tensors of the "
                        f"network (they look like '{names[0]}', '{names[-1]}'); correct or remove it."
                    )
        shared = [name for name in names if name in self]
        chosen = set(shared)
        return shared, [name for name in names if name not in chosen]


def _as_tuple(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"'{pattern}' is not a regular expression ({error}); give patterns of tensor names."
        ) from error


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
    sizes = {"weights": _tensor_bytes((message.weights or {}).values())}
    for name, tensors in attachments_of(message).items():
        sizes[name] = _tensor_bytes(tensors.values())
    return sizes


def _tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
