# SPDX-License-Identifier: Apache-2.0
"""Weak labels from full masks: points, scribbles, second scribbles, blocks and boxes; function and MONAI pair."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep
from scipy import ndimage

from fedmonai.errors import ConfigError

__all__ = ["WEAK_FORMS", "WeakLabel", "WeakLabeld", "weak_label", "weak_label_statistics", "weak_labels"]

#: forms by the names under which the release of FedICRA stores them
WEAK_FORMS = ("keypoint", "scribble", "scribble_noisy", "block", "box")

SMALLEST_PIECE = 6  # pixels; smaller pieces of a class are specks that nobody would mark
POINTS_PER_CLASS = 3
BOX_CORE = 0.75
SCRIBBLE_DEPTH = 0.5
SCRIBBLE_REACH = 0.08
BLOCK_DEPTH = 0.5


def weak_label(
    mask: np.ndarray, form: str, ignore_index: int, background: int = 0, seed: int = 0, jitter: float = 0.1
) -> np.ndarray:
    """A weak label made from a mask of any label set; the same mask and settings give the same label.

    The authors' generator of FedICRA's weak labels is not public; these are our definitions. Depth is the distance to
    the border of a connected piece of a class, relative to its deepest point.

    - ``keypoint``: up to three dots per class, each as far as possible from the border and from the dots before it.
    - ``scribble``: the line at half depth in every piece, but never deeper than 8 % of the side of the image; for the
      background that is a loop around each object.
    - ``scribble_noisy``: a careless scribble, the above bent by a smooth random field, so that it leaves its class in
      places; the field depends on the mask and ``seed``.
    - ``block``: everything deeper than half depth.
    - ``box``: background outside the (slightly widened) bounding boxes of the foreground; inside only the cores of the
      foreground classes, deeper than three quarters, are labeled.

    Args:
        mask: ``(H, W)`` integer labels.
        form: one of ``WEAK_FORMS``, or ``mask`` for the mask itself.
        ignore_index: label of unlabeled pixels; must not be a class of the mask.
        background: the class outside of all boxes.
        seed: changes the careless scribbles only.
        jitter: root mean square displacement of the careless scribbles, relative to the root of the area of all classes
            but the background.

    Returns:
        ``(H, W)`` labels, uint8 where they fit, else int32.

    Raises:
        ConfigError: unknown form, mask not 2-D or not of integers, or ``ignore_index`` occurs in the mask.
    """
    return weak_labels(mask, (form,), ignore_index, background, seed, jitter)[form]


def weak_labels(
    mask: np.ndarray,
    forms: Sequence[str] = WEAK_FORMS,
    ignore_index: int = 255,
    background: int = 0,
    seed: int = 0,
    jitter: float = 0.1,
) -> dict[str, np.ndarray]:
    """Several forms of :func:`weak_label` for one mask; what they have in common is computed once."""
    mask = _checked(np.asarray(mask), forms, ignore_index)
    dtype = np.uint8 if 0 <= ignore_index < 256 > mask.max() else np.int32
    depths = _Depths(mask)
    labels = {}
    for form in forms:
        label = np.full(mask.shape, ignore_index, dtype=dtype)
        if form == "mask":
            label[:] = mask
        elif form == "box":
            _fill_boxes(label, depths, background)
        else:
            for value in depths.values:
                _mark(label, depths, value, form, background)
        labels[form] = (
            _bent(label, mask, (ignore_index, background), seed, jitter) if form == "scribble_noisy" else label
        )
    return labels


def weak_label_statistics(label: np.ndarray, mask: np.ndarray, ignore_index: int) -> dict[str, float]:
    """How much a weak label says and how often it is right.

    Returns:
        ``labeled``, the fraction of pixels with a label; ``agreement``, the fraction of these that equal the mask (NaN
        without any); and ``labeled_<c>``, the fraction of the pixels of each class c of the mask with a label.
    """
    given = label != ignore_index
    statistics = {
        "labeled": float(given.mean()),
        "agreement": float((label[given] == mask[given]).mean()) if given.any() else float("nan"),
    }
    for value in np.unique(mask):
        statistics[f"labeled_{value}"] = float(given[mask == value].mean())
    return statistics


class WeakLabel(Transform):
    """:func:`weak_label` on an array or tensor ``(H, W)`` or ``(1, H, W)``; the kind of container is kept."""

    def __init__(self, form: str, ignore_index: int, background: int = 0, seed: int = 0, jitter: float = 0.1) -> None:
        if form not in (*WEAK_FORMS, "mask"):
            raise ConfigError(f"weak label form {form!r} is unknown; use one of {', '.join((*WEAK_FORMS, 'mask'))}")
        self.form = form
        self.ignore_index = ignore_index
        self.background = background
        self.seed = seed
        self.jitter = jitter

    def __call__(self, mask: Any) -> Any:
        values = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        plane = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
        label = weak_label(plane, self.form, self.ignore_index, self.background, self.seed, self.jitter)
        label = label.reshape(values.shape)
        return torch.as_tensor(label, device=mask.device) if isinstance(mask, torch.Tensor) else label


class WeakLabeld(MapTransform):
    """Dictionary version of :class:`WeakLabel`.

    Args:
        keys: full masks.
        form: see :func:`weak_label`.
        ignore_index: label of unlabeled pixels.
        output_keys: where the weak labels go, one for each key; None replaces the masks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        form: str,
        ignore_index: int,
        background: int = 0,
        seed: int = 0,
        jitter: float = 0.1,
        output_keys: Sequence[str] | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = WeakLabel(form, ignore_index, background, seed, jitter)
        self.output_keys = self.keys if output_keys is None else ensure_tuple_rep(output_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = self.transform(data[key])
        return result


class _Depths:
    """Distances to the border of each class of a mask, computed when they are first asked for."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self.values = [int(value) for value in np.unique(mask)]
        self._known: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}

    def of(self, value: int, open_border: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Depth of the pixels of a class (unless open, the image ends it too), and the largest one in each piece."""
        key = (value, open_border and len(self.values) > 1)
        if key not in self._known:
            self._known[key] = _depth(self.mask == value, key[1])
        return self._known[key]


def _checked(mask: np.ndarray, forms: Sequence[str], ignore_index: int) -> np.ndarray:
    for form in forms:
        if form not in (*WEAK_FORMS, "mask"):
            raise ConfigError(f"weak label form {form!r} is unknown; use one of {', '.join((*WEAK_FORMS, 'mask'))}")
    if mask.ndim != 2 or mask.size == 0:
        raise ConfigError(f"weak labels are made from one plane (H, W); this mask has shape {mask.shape}")
    if not np.issubdtype(mask.dtype, np.integer):
        whole = mask.astype(np.int64)
        if not np.array_equal(whole, mask):
            raise ConfigError(f"weak labels need whole class numbers; this mask is {mask.dtype} with other values")
        mask = whole
    if (mask == ignore_index).any():
        raise ConfigError(f"ignore_index {ignore_index} is a class of the mask; take a number above {mask.max()}")
    return mask


def _depth(region: np.ndarray, open_border: bool) -> tuple[np.ndarray, np.ndarray]:
    depth = ndimage.distance_transform_edt(np.pad(region, 1, mode="edge" if open_border else "constant"))[1:-1, 1:-1]
    pieces, count = ndimage.label(region)
    index = np.arange(count + 1)
    peak = np.zeros(count + 1)
    peak[1:] = ndimage.maximum(depth, pieces, index[1:])
    size = np.bincount(pieces.ravel(), minlength=count + 1)
    if count and size[1:].max() >= SMALLEST_PIECE:  # a class of specks only keeps them
        depth[(size < SMALLEST_PIECE)[pieces]] = 0
    return depth, peak[pieces]


def _mark(label: np.ndarray, depths: _Depths, value: int, form: str, background: int) -> None:
    """Write dots, a block or a line of one class into the label."""
    scribble = form.startswith("scribble")
    depth, peak = depths.of(value, open_border=scribble and value == background)
    side = max(label.shape)
    if form == "keypoint":
        label[_dots(depth)] = value
    elif form == "block":
        label[depth > BLOCK_DEPTH * peak] = value
    else:
        line = np.clip(SCRIBBLE_DEPTH * peak, 1, max(SCRIBBLE_REACH * side, 1))
        label[(depth > 0) & (np.abs(depth - line) <= max(side / 340, 0.5))] = value


def _dots(depth: np.ndarray) -> np.ndarray:
    """Where the dots of a class lie; they stay within the class."""
    radius = max(1.0, 0.01 * max(depth.shape))
    rows, columns = np.indices(depth.shape)
    room = depth.copy()
    dots = np.zeros(depth.shape, dtype=bool)
    for _ in range(POINTS_PER_CLASS):
        row, column = np.unravel_index(int(room.argmax()), room.shape)
        if room[row, column] <= (2 * radius if dots.any() else 0):
            break
        distance = np.hypot(rows - row, columns - column)
        dots |= (distance <= radius) & (depth > 0)
        room = np.minimum(room, distance)
    return dots


def _bent(label: np.ndarray, mask: np.ndarray, ids: tuple[int, int], seed: int, jitter: float) -> np.ndarray:
    """The label displaced by a smooth random field that belongs to this mask and seed."""
    content = zlib.crc32(np.ascontiguousarray(mask, dtype=np.int32).tobytes(), seed & 0xFFFFFFFF)
    generator = np.random.RandomState(content)
    ignore_index, background = ids
    side = max(mask.shape)
    extent = np.sqrt((mask != background).sum()) or side / 4
    coarse = max(side // 48, 1)  # a smooth field is drawn on fewer points
    points = [-(-length // coarse) for length in mask.shape]
    noise = [ndimage.gaussian_filter(generator.standard_normal(points), side / 16 / coarse) for _ in range(2)]
    field = [ndimage.zoom(part, coarse, order=1)[: mask.shape[0], : mask.shape[1]] for part in noise]
    usual = max(float(np.sqrt(np.square(field).sum(0).mean())), np.finfo(float).tiny)
    places = [grid + jitter * extent / usual * shift for grid, shift in zip(np.indices(mask.shape), field, strict=True)]
    return ndimage.map_coordinates(label, places, order=0, mode="constant", cval=ignore_index)


def _fill_boxes(label: np.ndarray, depths: _Depths, background: int) -> None:
    margin = max(1, round(0.02 * max(label.shape)))
    outside = np.ones(label.shape, dtype=bool)
    for rows, columns in _boxes(depths.mask != background):
        top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
        outside[top : rows.stop + margin, left : columns.stop + margin] = False
    label[outside] = background
    for value in depths.values:
        if value != background:
            depth, peak = depths.of(value)
            label[depth > BOX_CORE * peak] = value


def _boxes(foreground: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Bounding boxes of the pieces of the foreground; specks have one too, so that none is called background."""
    pieces, _ = ndimage.label(foreground)
    yield from ndimage.find_objects(pieces)
