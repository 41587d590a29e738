# SPDX-License-Identifier: Apache-2.0
"""Weak labels from full masks: points, scribbles, second scribbles, blocks and boxes; computed per plane."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from fedmonai.errors import ConfigError

__all__ = ["ANNOTATIONS", "weak_label", "weak_label_statistics", "weak_labels"]

#: annotations, by the names under which the release of FedICRA stores them
ANNOTATIONS = ("keypoint", "scribble", "scribble_noisy", "block", "box")

SMALLEST_PIECE = 6  # pixels; smaller pieces of a class are too small to be annotated
POINTS_PER_CLASS = 3
BOX_CORE = 0.75
SCRIBBLE_DEPTH = 0.5
SCRIBBLE_REACH = 0.08
BLOCK_DEPTH = 0.5


def weak_label(
    mask: np.ndarray, annotation: str, ignore_index: int, background: int = 0, seed: int = 0, jitter: float = 0.1
) -> np.ndarray:
    """Make a weak label from a mask of any label set; the same mask and settings give the same label.

    >>> mask = np.zeros((8, 8), dtype=np.uint8)
    >>> mask[2:6, 2:6] = 1
    >>> weak_label(mask, "block", ignore_index=2)[3].tolist()  # the inner 2 x 2 pixels of the square
    [0, 0, 2, 1, 1, 2, 0, 0]

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
        annotation: one of ``ANNOTATIONS``, or ``mask`` for the mask itself.
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
    return weak_labels(mask, (annotation,), ignore_index, background, seed, jitter)[annotation]


def weak_labels(
    mask: np.ndarray,
    annotations: Sequence[str] = ANNOTATIONS,
    ignore_index: int = 255,
    background: int = 0,
    seed: int = 0,
    jitter: float = 0.1,
) -> dict[str, np.ndarray]:
    """Several annotations of :func:`weak_label` for one mask; what they have in common is computed once."""
    mask = _checked(np.asarray(mask), annotations, ignore_index)
    dtype = np.uint8 if 0 <= ignore_index < 256 > mask.max() else np.int32
    depths = _Depths(mask)
    labels = {}
    for annotation in annotations:
        label = np.full(mask.shape, ignore_index, dtype=dtype)
        if annotation == "mask":
            label[:] = mask
        elif annotation == "box":
            _fill_boxes(label, depths, background)
        else:
            for value in depths.values:
                _mark(label, depths, value, annotation, background)
        labels[annotation] = (
            _bent(label, mask, (ignore_index, background), seed, jitter) if annotation == "scribble_noisy" else label
        )
    return labels


def weak_label_statistics(label: np.ndarray, mask: np.ndarray, ignore_index: int) -> dict[str, float]:
    """Share of labeled pixels and their agreement with the mask.

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


def _checked(mask: np.ndarray, annotations: Sequence[str], ignore_index: int) -> np.ndarray:
    for annotation in annotations:
        if annotation not in (*ANNOTATIONS, "mask"):
            raise ConfigError(f"annotation: {annotation!r} is unknown; use one of {', '.join((*ANNOTATIONS, 'mask'))}")
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


def _mark(label: np.ndarray, depths: _Depths, value: int, annotation: str, background: int) -> None:
    """Write dots, a block or a line of one class into the label."""
    scribble = annotation.startswith("scribble")
    depth, peak = depths.of(value, open_border=scribble and value == background)
    side = max(label.shape)
    if annotation == "keypoint":
        label[_dots(depth)] = value
    elif annotation == "block":
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
