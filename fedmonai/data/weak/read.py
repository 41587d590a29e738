# SPDX-License-Identifier: Apache-2.0
"""Reader of one weakly labeled slice from an HDF5 image, an HDF5 volume, or a pair of picture files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from PIL import Image

from fedmonai.data.damage import InputError
from fedmonai.data.kspace.read import holds, names_in, open_volume, own_dataset, read_slice
from fedmonai.data.pictures import MAX_SIDE, open_picture, read_picture
from fedmonai.errors import ConfigError

__all__ = [
    "count_slices",
    "h5_keys",
    "min_max_normalize",
    "read_dataset",
    "read_h5_image",
    "read_h5_label",
    "read_pair",
    "read_picture_mask",
]


IMAGE_KEY = "image"
MASK_KEYS = ("mask", "label")  # FedICRA's files, ACDC's files


def min_max_normalize(image: np.ndarray, source: str = "image") -> np.ndarray:
    """Scale to [0, 1] over all channels together, float32; a constant image becomes 0.

    Raises:
        ConfigError: the image holds NaN or infinite values.
    """
    image = image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{source} holds NaN or infinite values; repair it or take it out of the list.")
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def count_slices(path: str) -> int:
    """Slices of an HDF5 file: 1 if its labels are a plane, else their first axis (a volume).

    Raises:
        ConfigError: unreadable file, no image or labels, an image that does not fit the labels.
    """
    with open_volume(path) as file:
        image = read_dataset(file, IMAGE_KEY)
        labels = read_dataset(file, _any_label_key(file))
        plane, volume = labels.shape == image.shape[-2:] and image.ndim in (2, 3), labels.shape == image.shape
        if not (plane or (volume and image.ndim == 3)) or not all(1 <= side <= MAX_SIDE for side in image.shape):
            raise InputError(
                f"{path}: image {image.shape} and labels {labels.shape} do not fit; expected (H, W) or (C, H, W) with "
                "labels (H, W), or a volume (D, H, W) with labels (D, H, W)."
            )
        return 1 if plane else int(labels.shape[0])


def h5_keys(path: str) -> list[str]:
    """Names of what an HDF5 file holds."""
    with open_volume(path) as file:
        return sorted(file)


def read_h5_image(path: str, index: int) -> np.ndarray:
    """Image ``(C, H, W)``: the whole image of a file with plane labels, else slice ``index`` of the volume."""
    with open_volume(path) as file:
        image = read_dataset(file, IMAGE_KEY)
        volume = read_dataset(file, _any_label_key(file)).ndim == 3
        values = read_slice(file, IMAGE_KEY, index if volume else slice(None))
        return values[None] if values.ndim == 2 else values.reshape(-1, *image.shape[-2:])


def read_h5_label(path: str, key: str, index: int) -> np.ndarray:
    """Integer labels ``(H, W)`` of one slice; key ``mask`` is found under any of its names.

    Raises:
        ConfigError: no such labels (the message lists what there is), or labels of another size or type.
    """
    with open_volume(path) as file:
        name = _mask_key(file) if key == "mask" else key
        if not holds(file, name):
            found = names_in(file)
            raise ConfigError(
                f"{path} has no labels '{key}' (found: {found}); choose another annotation, or make them with "
                "fedmonai prepare weak."
            )
        labels = read_dataset(file, name)
        expected = read_dataset(file, _any_label_key(file)).shape
        if labels.shape != expected:
            raise InputError(
                f"{path}: labels '{key}' have shape {labels.shape}, other labels of the file have {expected}."
            )
        return _whole(read_slice(file, name, index if labels.ndim == 3 else slice(None)), f"{path}: '{key}'")


def read_picture_mask(path: str, label_map: Mapping[Any, int] | None, threshold: int | None) -> np.ndarray:
    """Class labels ``(H, W)`` of a picture.

    Args:
        path: picture whose gray levels mean classes.
        label_map: class of each gray level, e.g. ``{255: 0, 128: 2, 0: 1}``, or of each color of an RGB mask, e.g.
            ``{"0,0,0": 0, "255,0,0": 1}``; None takes levels as classes.
        threshold: for lossy pictures with two levels: class 1 above it, else 0.

    Raises:
        ConfigError: a gray level or color that ``label_map`` does not name, with its share of the pixels.
    """
    with open_picture(path) as picture:
        if label_map is not None and threshold is None and any("," in str(color) for color in label_map):
            return _classes_of_colors(path, np.asarray(picture.convert("RGB")), label_map)
        colored = _is_colored(picture)
        gray = np.asarray(picture.convert("L")).astype(np.int64)
    if threshold is not None:
        return (gray > threshold).astype(np.int64)
    if label_map is None:
        return gray
    table = {int(level): int(label) for level, label in label_map.items()}
    unknown = ~np.isin(gray, list(table))
    if unknown.any():
        levels = ", ".join(str(level) for level in np.unique(gray[unknown])[:5])
        if colored:
            raise ConfigError(
                f"{path}: the mask is in color and 'label_map' names gray levels ({table}); name its colors, such as "
                f"{{{', '.join(repr(color) + ': 1' for color in colored)}}}."
            )
        raise ConfigError(
            f"{path}: {unknown.mean():.1%} of the mask has gray levels such as {levels} that 'label_map' does not name "
            f"({table}); add them, or set 'threshold' for a lossy file."
        )
    lookup = np.zeros(256, dtype=np.int64)
    lookup[list(table)] = list(table.values())
    return lookup[gray]


def _is_colored(picture: Image.Image) -> list[str]:
    """The most frequent colors of a mask in color, as ``label_map`` names them; empty for a gray one."""
    if picture.mode in ("1", "L", "I", "I;16", "F"):
        return []
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    if not (pixels != pixels[:, :1]).any():
        return []
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    return [",".join(map(str, color)) for color in colors[np.argsort(-counts)][:5]]


def _classes_of_colors(path: str, pixels: np.ndarray, label_map: Mapping[Any, int]) -> np.ndarray:
    """Class of each pixel (H, W) of an RGB mask (H, W, 3)."""
    found = np.full(pixels.shape[:2], -1, np.int64)
    for color, label in label_map.items():
        parts = [part.strip() for part in str(color).split(",")]
        if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
            raise ConfigError(f"label_map: '{color}' is no color; write red,green,blue of 0 to 255, such as '255,0,0'.")
        found[(pixels == [int(part) for part in parts]).all(-1)] = label
    unknown = found < 0
    if unknown.any():
        colors = np.unique(pixels[unknown], axis=0)[:5]
        listed = "; ".join(",".join(map(str, color)) for color in colors)
        raise ConfigError(
            f"{path}: {unknown.mean():.1%} of the mask has colors such as {listed} that 'label_map' does not name; add "
            "them (a lossy file has shades of each: save masks as PNG)."
        )
    return found


def read_pair(
    entry: Mapping[str, str], label_map: Mapping[Any, int] | None, threshold: int | None, image_channels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(C, H, W)`` and class labels ``(H, W)`` of an entry of :func:`~fedmonai.data.weak.list.paired_files`.

    Raises:
        ConfigError: as the two readers, or the mask has another size than the image.
    """
    image, mask = read_picture(entry["image"], image_channels), read_picture_mask(entry["mask"], label_map, threshold)
    if mask.shape != image.shape[1:]:
        raise InputError(f"{entry['mask']} is {mask.shape}, its image is {image.shape[1:]}; they must fit.")
    return image, mask


def _mask_key(file: h5py.File) -> str:
    for key in MASK_KEYS:
        if holds(file, key):
            return key
    raise InputError(f"{file.filename}: no '{MASK_KEYS[0]}' or '{MASK_KEYS[1]}' (found: {names_in(file)}).")


def _any_label_key(file: h5py.File) -> str:
    """The mask, or any other labels where a site has no masks for its training images."""
    others = [key for key in sorted(file) if key != IMAGE_KEY]
    return others[0] if others and not any(holds(file, key) for key in MASK_KEYS) else _mask_key(file)


def read_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """Return the dataset ``key`` of a file.

    Raises:
        ConfigError: it is missing, and as :func:`fedmonai.data.kspace.read.own_dataset`.
    """
    item = own_dataset(file, key)
    if item is None:
        raise InputError(f"{file.filename}: '{key}' is missing (found: {names_in(file)}).")
    return item


def _whole(labels: np.ndarray, source: str) -> np.ndarray:
    whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise InputError(f"{source} holds numbers that are not whole; labels are class indices.")
    return whole
