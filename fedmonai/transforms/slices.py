# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes: normalization, neighbors as channels, labels, and fitting a slice to a plane of fixed size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedmonai.errors import ConfigError

__all__ = [
    "NORMALIZATIONS",
    "RESIZE_MODES",
    "ClassesInPlaned",
    "classes_in_plane",
    "fit_plane",
    "labeled_slices",
    "merge_labels",
    "neighbor_indices",
    "normalize_volume",
    "stack_neighbors",
]


NORMALIZATIONS = ("none", "zscore", "minmax")


def merge_labels(label: Tensor) -> Tensor:
    """Every class above 0 becomes 1: the zones of a prostate become the whole prostate. Same type and shape."""
    return (label > 0).to(label.dtype)


def labeled_slices(label: Tensor) -> list[int]:
    """Positions along the last axis at which ``label`` (..., slices) is not all 0, in order; may be empty."""
    present = (label != 0).reshape(-1, label.shape[-1]).any(dim=0)
    return [int(index) for index in present.nonzero()[:, 0]]


def neighbor_indices(index: int, num_slices: int, context_slices: int = 1) -> list[int]:
    """Slices ``index - context_slices`` to ``index + context_slices``; the edge slice repeats beyond the volume.

    The authors' program of IOP-FL treats the last slice differently from the first; here both ends are alike.

    >>> neighbor_indices(0, 4), neighbor_indices(2, 4), neighbor_indices(3, 4)
    ([0, 0, 1], [1, 2, 3], [2, 3, 3])
    """
    return [min(max(index + shift, 0), num_slices - 1) for shift in range(-context_slices, context_slices + 1)]


def stack_neighbors(volume: Tensor, context_slices: int = 1) -> Tensor:
    """(1, H, W, slices) to (2 * context_slices + 1, H, W, slices): every slice with its neighbors as channels.

    What a 2.5-D network sees of a whole volume, for example under ``monai.inferers.SliceInferer``.

    Raises:
        ConfigError: more than one channel.
    """
    if volume.shape[0] != 1:
        raise ConfigError(f"neighbors can be stacked for one channel, the volume has shape {tuple(volume.shape)}")
    count = volume.shape[-1]
    columns = torch.tensor([neighbor_indices(index, count, context_slices) for index in range(count)])
    return torch.cat([volume[..., columns[:, channel]] for channel in range(columns.shape[1])])


def normalize_volume(volume: Tensor, mode: str = "zscore") -> Tensor:
    """Bring the intensities of a whole volume to a common scale, as float32.

    Args:
        volume: any shape; the statistics are over all of it.
        mode: ``zscore`` (default) subtracts the mean and divides by the (population) standard deviation, ``minmax``
            maps to [0, 1], ``none`` keeps the raw values as the authors' program of IOP-FL does. Raw ranges of
            scanners differ by orders of magnitude, hence our default. A constant volume becomes 0.

    Raises:
        ConfigError: unknown mode, or values that are not finite.
    """
    if mode not in NORMALIZATIONS:
        raise ConfigError(f"normalization {mode!r} is not known: use one of {', '.join(NORMALIZATIONS)}")
    volume = volume.float()
    if not bool(torch.isfinite(volume).all()):
        raise ConfigError("the volume holds NaN or infinite values: repair it or take it out of the list")
    if mode == "none":
        return volume
    if mode == "minmax":
        offset, scale = volume.min(), volume.max() - volume.min()
    else:
        scale, offset = torch.std_mean(volume, correction=0)
    return (volume - offset) / torch.where(scale > 0, scale, torch.ones_like(scale))


RESIZE_MODES = ("resize", "pad")


def fit_plane(values: Tensor, size: int | None, resize_mode: str, pad_value: int = 0) -> Tensor:
    """Bring ``(C, H, W)`` to ``(C, size, size)``: floats by linear, integers (labels) by nearest interpolation.

    >>> fit_plane(torch.ones(1, 2, 4, dtype=torch.uint8), 4, "pad", pad_value=9)[0].tolist()
    [[9, 9, 9, 9], [1, 1, 1, 1], [1, 1, 1, 1], [9, 9, 9, 9]]

    Args:
        values: a picture or labels.
        size: side of the square; None changes nothing.
        resize_mode: ``resize``, or ``pad`` (centered; cropped where the picture is larger).
        pad_value: value of padding.

    Raises:
        ConfigError: another ``resize_mode``.
    """
    if resize_mode not in RESIZE_MODES:
        raise ConfigError(f"resize_mode: '{resize_mode}' is unknown; choose one of {', '.join(RESIZE_MODES)}.")
    if size is None or values.shape[1:] == (size, size):
        return values
    if resize_mode == "pad":
        return pad(values, _borders(values.shape[1], values.shape[2], size), value=pad_value)
    if values.is_floating_point():
        return interpolate(values[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]
    return interpolate(values[None].float(), size=(size, size), mode="nearest-exact")[0].to(values.dtype)


def classes_in_plane(logits: Tensor, rows: int, columns: int, resize_mode: str) -> Tensor:
    """Inverse of :func:`fit_plane` for predictions: logits ``(N, K, size, size)`` to classes ``(N, rows, columns)``.

    Logits are resized before the largest is taken, so that outlines are smooth; the classes are uint8. What ``pad``
    had cropped away is class 0.
    """
    if resize_mode == "resize":
        if logits.shape[2:] != (rows, columns):
            logits = interpolate(logits, size=(rows, columns), mode="bilinear", align_corners=False)
        return logits.argmax(1).to(torch.uint8)
    borders = _borders(rows, columns, logits.shape[-1])
    return pad(logits.argmax(1), [-border for border in borders]).to(torch.uint8)


class ClassesInPlaned(MapTransform):
    """:func:`classes_in_plane` of a prediction, with the keys ``rows``, ``columns`` and ``resize_mode`` of its batch.

    >>> data = {"pred": torch.zeros(1, 2, 8, 8), "rows": 6, "columns": 10, "resize_mode": "resize"}
    >>> classes = ClassesInPlaned()(data)["pred"]
    >>> classes.shape, classes.dtype
    (torch.Size([1, 6, 10]), torch.uint8)

    Args:
        keys: of the logits.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = classes_in_plane(found[key], found["rows"], found["columns"], found["resize_mode"])
        return found


def _borders(rows: int, columns: int, size: int) -> list[int]:
    """Left, right, top, bottom; negative ones crop."""
    return [part for gap in (size - columns, size - rows) for part in (gap // 2, gap - gap // 2)]
