# SPDX-License-Identifier: Apache-2.0
"""The check that every update and every received message passes before a single value of it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.message import attachments_of

__all__ = ["Guard", "RefusedMessage"]

#: what every update counts; a strategy may weight by each of them
COUNTS = ("num_samples", "num_steps", "num_batches")
#: far above any data set, far below what no longer fits into a table
MOST = 10**12
#: far above every loss, far below where means over sites overflow
LARGEST_LOSS = 1e100
#: what a protected update says of the noise in it, all or nothing
PRIVACY = {f"privacy_{name}" for name in ("epsilon", "delta", "noise_multiplier", "clip_norm", "seeded")}
_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


class RefusedMessage(ValueError):  # noqa: N818 (what it is, is a message)
    """A message that may not be used; the text says why."""


class Guard:
    """Refuses messages with unknown, missing, misshapen, non-float, non-finite or absurdly large tensors.

    Runtimes for federated learning pass NaN, infinities and transposed tensors on to the average without a word; one
    such update spoils the model of every site.

    Args:
        max_abs: largest absolute value a weight or an integer buffer may have; ``None`` switches this bound off
            (non-finite values are refused all the same).
        max_norm: largest Euclidean norm of the difference to the reference weights; ``None`` for no bound. Integer
            buffers (batch counters) do not count.

    Raises:
        ConfigError: when a bound is not positive.
    """

    def __init__(self, max_abs: float | None = 1e8, max_norm: float | None = None) -> None:
        for name, bound in (("max_abs", max_abs), ("max_norm", max_norm)):
            if bound is not None and not bound > 0:
                raise ConfigError(f"guard: {name} is {bound}; give a positive number, or null for no bound.")
        self.max_abs = max_abs
        self.max_norm = max_norm

    def check_update(
        self,
        message: ExchangeObject,
        reference: Mapping[str, Tensor],
        round_number: int,
        attachments: Collection[str] = (),
        observer: bool = False,
    ) -> None:
        """Check what a site sent against the global weights it was sent; an observer must send no weights.

        Raises:
            RefusedMessage: with the reason.
        """
        if not isinstance(message, ExchangeObject):
            raise RefusedMessage(f"the update is {type(message).__name__}, not a message")
        self.check_weights(message.weights, {} if observer else reference)
        self._check_statistics(message.statistics or {}, round_number, () if observer else COUNTS)
        self.check_attachments(message, attachments)

    def check_weights(self, weights: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor]) -> None:
        """Check keys, shapes, types and values of ``weights`` against ``reference``."""
        weights = {} if weights is None else weights
        if not isinstance(weights, Mapping):
            raise RefusedMessage(f"the weights are {type(weights).__name__}, not tensors by name")
        self.check_structure(weights, reference)
        self._check_values(dict(weights), reference)

    @staticmethod
    def check_structure(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
        """Check keys, shapes and types of ``weights`` (they may lie on the meta device) against ``reference``."""
        missing = [k for k in reference if k not in weights]
        unknown = [k for k in weights if k not in reference]
        if missing or unknown:
            raise RefusedMessage(_key_difference(missing, unknown))
        for key, expected in reference.items():
            _check_tensor(key, weights[key], expected)

    def check_attachments(self, message: ExchangeObject, declared: Collection[str]) -> None:
        """Check that every attachment was declared and holds finite float tensors."""
        for name, tensors in attachments_of(message).items():
            if name not in declared:
                allowed = ", ".join(sorted(declared)) or "none"
                raise RefusedMessage(f"undeclared attachment '{name}' (declared by the strategy: {allowed})")
            for key, tensor in tensors.items():
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    raise RefusedMessage(f"attachment '{name}': '{key}' is not a float tensor")
            self._check_values(dict(tensors), None, prefix=f"attachment '{name}': ")

    def _check_values(
        self, tensors: dict[str, Tensor], reference: Mapping[str, Tensor] | None, prefix: str = ""
    ) -> None:
        filled = {k: t for k, t in tensors.items() if t.numel()}
        if not filled:
            return
        # one pass per tensor and one read-back: a NaN makes both ends of the range NaN, and they cost a twentieth of
        # the maximum norm on a CPU
        real = [torch.view_as_real(t) if t.is_complex() else t for t in filled.values()]
        ends = [end.double() for tensor in real for end in torch.aminmax(tensor.detach())]
        values = torch.stack(ends).abs().tolist()
        peaks = [max(low, high) for low, high in zip(values[::2], values[1::2], strict=True)]
        for key, peak in zip(filled, peaks, strict=True):
            if not math.isfinite(peak):
                raise RefusedMessage(f"{prefix}'{key}' holds NaN or infinite values")
            if self.max_abs is not None and peak > self.max_abs:
                raise RefusedMessage(f"{prefix}'{key}' reaches {peak:.3g}, more than max_abs = {self.max_abs:.3g}")
        if self.max_norm is not None and reference is not None:
            moved = (t - reference[k] for k, t in filled.items() if t.is_floating_point() or t.is_complex())
            norm = math.sqrt(sum(float(difference.abs().double().square().sum()) for difference in moved))
            if norm > self.max_norm:
                raise RefusedMessage(f"the update has norm {norm:.3g}, more than max_norm = {self.max_norm:.3g}")

    @staticmethod
    def _check_statistics(statistics: Mapping[str, object], round_number: int, counts: Collection[str]) -> None:
        for name, value in statistics.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise RefusedMessage(f"a statistic has the name {str(name)[:50]!r}, which is none")
            if not _is_number(value) and name not in ("loss", "round", *counts):
                raise RefusedMessage(f"{name} is {_short(value)}, not a number of at most {MOST:.0e}")
            if name in PRIVACY and not 0 <= value < math.inf:  # type: ignore[operator]
                raise RefusedMessage(f"{name} is {_short(value)}; it cannot be")
        if (given := PRIVACY & statistics.keys()) and given != PRIVACY:
            raise RefusedMessage(f"the statistics name {min(given)}, but not {min(PRIVACY - given)}")
        loss = statistics.get("loss")
        if counts and not (_is_number(loss) and abs(loss) <= LARGEST_LOSS):  # type: ignore[arg-type]
            raise RefusedMessage(f"the training loss is {_short(loss)}, not a finite number up to {LARGEST_LOSS:.0e}")
        for name in counts:
            count = statistics.get(name)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
                raise RefusedMessage(f"{name} is {_short(count)}, not a positive whole number of at most {MOST:.0e}")
        if isinstance(statistics.get("round"), bool) or statistics.get("round") != round_number:
            raise RefusedMessage(
                f"the update belongs to round {_short(statistics.get('round'))}, not to {round_number}"
            )


def _is_number(value: object) -> bool:
    """Whether it is a plain number that a table can hold, finite or not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= MOST


def _short(value: object) -> str:
    """A value in a message; the text of a number with thousands of digits is an error by itself."""
    if isinstance(value, int) and abs(value) > MOST:
        return f"a whole number beyond {MOST:.0e}"
    return repr(value)[:50]


def _key_difference(missing: list[str], unknown: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing, for example '{missing[0]}'")
    if unknown:
        parts.append(f"{len(unknown)} tensors are not shared, for example '{unknown[0]}'")
    return "; ".join(parts)


def _check_tensor(key: str, tensor: object, expected: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise RefusedMessage(f"'{key}' is {type(tensor).__name__}, not a tensor")
    if tensor.shape != expected.shape:
        raise RefusedMessage(f"'{key}' has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}")
    if tensor.dtype != expected.dtype:
        raise RefusedMessage(f"'{key}' has type {tensor.dtype}, not {expected.dtype}")
    if tensor.layout != expected.layout:
        raise RefusedMessage(f"'{key}' is stored as {tensor.layout}, not as {expected.layout}")
