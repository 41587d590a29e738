# SPDX-License-Identifier: Apache-2.0
"""Wire form of weights: full float32 values, or bfloat16 with half of the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["WIRE_DTYPES", "Rounded", "WireForm"]

#: rounded tensors beside their full values, by the identity of the latter
Rounded: TypeAlias = dict[int, tuple[Tensor, Tensor]]
#: the types in which float32 weights may travel
WIRE_DTYPES = ("float32", "bfloat16")


class WireForm:
    r"""Form in which the shared float32 weights travel; server and sites compute with float32 in any case.

    With ``bfloat16`` a site is sent the global weights :math:`w` rounded to nearest, ties to even, and sends back the
    rounded change of its local training:

    .. math:: r = \mathrm{bf16}(w), \qquad d_k = \mathrm{bf16}(v_k - r), \qquad \text{update}_k = w + d_k,

    where :math:`v_k` are the weights trained from :math:`r`, after the site's filters. The server adds the change to
    its own float32 weights, so that changes far below the resolution of bfloat16 (1/256 of a weight) add up over the
    rounds; values that were rounded both ways would not change. Sites validate and test with :math:`r`.

    Everything else travels as it is: tensors of other types, attachments, the weights that a run starts from. A running
    variance that the rounded change would make negative is set to zero.

    The same rounding is made where the sites are in the server's process, so that a simulation equals the deployed run
    to the bit.

    Args:
        dtype: one of :data:`WIRE_DTYPES`.

    Example:
        >>> form, w = WireForm("bfloat16"), torch.tensor([1.0001])
        >>> r = form.received(form.down({"a": w}), {"a": w})["a"]
        >>> sent = form.up(ExchangeObject(weights={"a": r + 1e-5}), {"a": r})
        >>> r.item(), sent.weights["a"].dtype, bool(form.full(sent, {"a": w}).weights["a"] > w)
        (1.0, torch.bfloat16, True)

    Raises:
        ConfigError: on another type.
    """

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in WIRE_DTYPES:
            raise ConfigError(f"wire_dtype is {dtype!r}; choose one of {', '.join(WIRE_DTYPES)}.")
        self.rounds = dtype != "float32"

    def sent_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a shared tensor travels."""
        return torch.bfloat16 if self.rounds and dtype == torch.float32 else dtype

    def down(self, weights: Mapping[str, Tensor], done: Rounded | None = None) -> Mapping[str, Tensor]:
        """Weights as they are sent to a site.

        Args:
            weights: full values.
            done: what was rounded for other sites and is sent to this one, too; used and extended. It is valid until
                the full values are written to.
        """
        if not self.rounds:
            return weights
        done = {} if done is None else done
        for tensor in weights.values():
            if tensor.dtype == torch.float32 and id(tensor) not in done:
                done[id(tensor)] = (tensor, tensor.detach().to(torch.bfloat16))
        return {key: done[id(tensor)][1] if id(tensor) in done else tensor for key, tensor in weights.items()}

    def message_down(self, message: ExchangeObject, done: Rounded | None = None) -> ExchangeObject:
        """A message as it is sent; arguments as for :meth:`down`."""
        return _with_weights(message, self.down(message.weights or {}, done)) if self.rounds else message

    def received(self, weights: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as a site computes with them; what does not fit ``reference`` is left for the validator to refuse."""
        weights = dict(weights or {})
        if self.rounds:
            for key, tensor in weights.items():
                if self._is_rounded(tensor, reference.get(key)):
                    weights[key] = tensor.to(torch.float32)
        return weights

    @torch.no_grad()
    def up(self, update: ExchangeObject, received: Mapping[str, Tensor] | None) -> ExchangeObject:
        """An update as it is sent, after all filters: of float32 tensors the rounded change to what was received."""
        if not self.rounds or not update.weights or received is None:
            return update
        weights = {
            key: (tensor - received[key].to(tensor.device)).to(torch.bfloat16)
            if tensor.dtype == torch.float32
            else tensor
            for key, tensor in update.weights.items()
        }
        return _with_weights(update, weights)

    @torch.no_grad()
    def full(self, update: ExchangeObject, sent: Mapping[str, Tensor]) -> ExchangeObject:
        """An update with full values: the change added to the weights that the site was sent, as they were here."""
        if not self.rounds or not isinstance(update, ExchangeObject) or not isinstance(update.weights, Mapping):
            return update
        weights = dict(update.weights)
        for key, change in weights.items():
            reference = sent.get(key)
            if self._is_rounded(change, reference) and change.shape == reference.shape:  # type: ignore[union-attr]
                weights[key] = reference + change.to(reference.device, torch.float32)  # type: ignore[union-attr]
                if key.endswith("running_var"):
                    weights[key].clamp_(min=0.0)
        return _with_weights(update, weights)

    @staticmethod
    def _is_rounded(tensor: object, reference: Tensor | None) -> bool:
        rounded = isinstance(tensor, Tensor) and tensor.dtype == torch.bfloat16
        return rounded and reference is not None and reference.dtype == torch.float32


def _with_weights(message: ExchangeObject, weights: Mapping[str, Tensor]) -> ExchangeObject:
    changed = ExchangeObject(
        weights=dict(weights), weight_type=message.weight_type, statistics=dict(message.statistics or {})
    )
    changed.update(message)
    return changed
