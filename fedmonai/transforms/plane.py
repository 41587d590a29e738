# SPDX-License-Identifier: Apache-2.0
"""Bringing planes to the square that a network takes, and what it found back to the size of the picture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedmonai.errors import ConfigError

__all__ = ["FITS", "ClassesInPlaned", "classes_in_plane", "fit_plane"]

FITS = ("resize", "pad")


def fit_plane(values: Tensor, size: int | None, fit: str, fill: int = 0) -> Tensor:
    """``(C, H, W)`` as ``(C, size, size)``: floats smoothly, integers (labels) by their nearest pixel.

    Args:
        values: a picture or labels.
        size: side of the square; None changes nothing.
        fit: ``resize``, or ``pad`` (centered; cropped where the picture is larger).
        fill: value of padding.

    Raises:
        ConfigError: another ``fit``.
    """
    if fit not in FITS:
        raise ConfigError(f"fit: '{fit}' is unknown; choose one of {', '.join(FITS)}.")
    if size is None or values.shape[1:] == (size, size):
        return values
    if fit == "pad":
        return pad(values, _borders(values.shape[1], values.shape[2], size), value=fill)
    if values.is_floating_point():
        return interpolate(values[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]
    return interpolate(values[None].float(), size=(size, size), mode="nearest-exact")[0].to(values.dtype)


def classes_in_plane(logits: Tensor, rows: int, columns: int, fit: str) -> Tensor:
    """Classes uint8 ``(N, rows, columns)`` of logits ``(N, K, size, size)``: the way back of :func:`fit_plane`.

    Logits are resized before the largest is taken, so that outlines are smooth. What ``pad`` had cropped away is
    class 0.
    """
    if fit == "resize":
        if logits.shape[2:] != (rows, columns):
            logits = interpolate(logits, size=(rows, columns), mode="bilinear", align_corners=False)
        return logits.argmax(1).to(torch.uint8)
    borders = _borders(rows, columns, logits.shape[-1])
    return pad(logits.argmax(1), [-border for border in borders]).to(torch.uint8)


class ClassesInPlaned(MapTransform):
    """:func:`classes_in_plane` of a prediction, with the keys ``rows``, ``columns`` and ``fit`` of its batch.

    Args:
        keys: of the logits.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = classes_in_plane(found[key], found["rows"], found["columns"], found["fit"])
        return found


def _borders(rows: int, columns: int, size: int) -> list[int]:
    """Left, right, top, bottom; negative ones crop."""
    return [part for gap in (size - columns, size - rows) for part in (gap // 2, gap - gap // 2)]
