# SPDX-License-Identifier: Apache-2.0
"""Exchange filters: callables ``(message, extra) -> message``, as MONAI's pre and post filters."""

from __future__ import annotations

from collections.abc import Sequence

from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.message import SharedKeys

__all__ = ["KeepSharedKeys"]


class KeepSharedKeys:
    """Drops every tensor that is not shared, for sites that run a stock ``MonaiAlgo``.

    :class:`~fedmonai.federated.site.SiteAlgo` needs no such filter. A stock client needs it on both sides: without the
    one after training its private tensors leak, without the one before they are overwritten by the server's.

    Args:
        shared_keys: regular expressions of the tensors that may leave and be loaded.
        local_keys: regular expressions of tensors that stay although ``shared_keys`` matches them.
    """

    def __init__(self, shared_keys: str | Sequence[str] = (".*",), local_keys: str | Sequence[str] = ()) -> None:
        self.keys = SharedKeys(shared_keys, local_keys)

    def __call__(self, message: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        message.weights = {k: t for k, t in (message.weights or {}).items() if k in self.keys}
        return message
