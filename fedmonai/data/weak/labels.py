# SPDX-License-Identifier: Apache-2.0
"""Weak labels of whole data sets: made from full masks, written in the layout of FedICRA's release, summarized."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tqdm import tqdm

from fedmonai.data.damage import InputError
from fedmonai.data.kspace.read import open_volume
from fedmonai.data.weak.read import count_slices, h5_keys, read_h5_image, read_h5_label, read_pair
from fedmonai.errors import ConfigError
from fedmonai.io import atomic_path
from fedmonai.transforms.slices import fit_plane
from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_label_statistics, weak_labels

__all__ = ["make_weak_labels", "report_weak_labels", "stored_recipe", "write_release_file"]


def write_release_file(path: Path, image: np.ndarray, labels: Mapping[str, np.ndarray], recipe: str = "") -> None:
    """Write one file atomically.

    Args:
        path: of the file; missing folders are created.
        image: ``(1, H, W)`` is stored as ``(H, W)``; ``(3, H, W)`` and volumes ``(D, H, W)`` as they are; float32.
        labels: integer labels ``(H, W)``, or ``(D, H, W)`` for a volume, by key (``mask``, ``scribble``, ...).
        recipe: settings the file was made with, found again by :func:`stored_recipe`; left out if empty.
    """
    single = image.shape[0] == 1 and next(iter(labels.values())).ndim == 2
    pixels = np.ascontiguousarray(image[0] if single else image, dtype=np.float32)
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        if recipe:
            file.attrs["recipe"] = recipe
        file.create_dataset("image", data=pixels, compression="gzip", compression_opts=1, shuffle=True)
        for key, label in labels.items():
            file.create_dataset(key, data=label, compression="gzip", compression_opts=1)


def stored_recipe(path: Path) -> str | None:
    """Return the settings that a file was written with; None if there is no file.

    Raises:
        ConfigError: the file has no recipe; it is never overwritten.
    """
    if not path.exists():
        return None
    with open_volume(path) as file:
        recipe = file.attrs.get("recipe")
    if recipe is None:
        raise ConfigError(f"{path} was not made here and is not overwritten; choose an empty folder.")
    return str(recipe)


Row = dict[str, Any]


def make_weak_labels(
    files: Sequence[Mapping[str, str]],
    output_dir: str | os.PathLike[str] | None,
    num_classes: int,
    annotations: Sequence[str] = ANNOTATIONS,
    label_map: Mapping[int, int] | None = None,
    threshold: int | None = None,
    size: int | None = None,
    image_channels: int | None = None,
    seed: int = 0,
    progress: bool = True,
    skipped: list[str] | None = None,
) -> list[Row]:
    """Make weak labels from full masks and write one HDF5 file per input, in the layout of FedICRA's release.

    Files are written atomically; those already written with the same settings are kept, so that an interrupted run is
    continued. The same inputs and settings give the same labels.

    Args:
        files: from :func:`~fedmonai.data.weak.list.weak_files`, of any layout.
        output_dir: folder of the new ``<volume>.h5``; None writes nothing and only reports.
        num_classes: classes K of the masks; unlabeled pixels get K.
        annotations: which labels to make.
        label_map: class of each gray level of mask pictures.
        threshold: for lossy mask pictures with two levels.
        size: side of the square output; None keeps the size.
        image_channels: 1 or 3 converts pictures.
        seed: of the careless scribbles.
        progress: show a progress bar.
        skipped: gets a line for every file that cannot be read; None: the first one is raised.

    Returns:
        One row per annotation: ``annotation``, ``slices``, and over these the means ``labeled``, ``agreement`` and
        ``labeled_<c>``, and the smallest ``agreement_min``; see :func:`weak_label_statistics`.

    Raises:
        ConfigError: unreadable files, image and mask of different sizes, unknown gray levels or classes, an output file
            that was not made here.
    """
    statistics: dict[str, list[dict[str, float]]] = {annotation: [] for annotation in annotations}
    recipe = json.dumps([num_classes, list(annotations), _plain(label_map), threshold, size, image_channels, seed])
    for entry in tqdm(files, "weak labels", disable=not progress, leave=False):
        try:
            image, masks = _source(entry, label_map, threshold, image_channels)
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        image = fit_plane(torch.from_numpy(image.astype(np.float32)), size, "resize").numpy()
        masks = fit_plane(torch.from_numpy(masks), size, "resize").numpy()
        if masks.min() < 0 or masks.max() >= num_classes:
            raise ConfigError(
                f"{entry['image']}: the mask holds {masks.min()} to {masks.max()}; with num_classes {num_classes} it "
                f"may hold 0 to {num_classes - 1}. Set num_classes, label_map or threshold."
            )
        made = [weak_labels(mask, annotations, num_classes, seed=seed) for mask in masks]
        for annotation in annotations:
            rows = zip(made, masks, strict=True)
            statistics[annotation] += [
                weak_label_statistics(labels[annotation], mask, num_classes) for labels, mask in rows
            ]
        path = None if output_dir is None else Path(output_dir) / f"{entry['volume']}.h5"
        if path is not None and stored_recipe(path) != recipe:
            stacked = {annotation: np.stack([labels[annotation] for labels in made]) for annotation in annotations}
            stacked["mask"] = masks.astype(np.uint8)
            single = len(masks) == 1
            write_release_file(path, image, {key: x[0] if single else x for key, x in stacked.items()}, recipe)
    return _means(statistics)


def report_weak_labels(
    files: Sequence[Mapping[str, str]],
    num_classes: int,
    annotations: Sequence[str] | None = None,
    progress: bool = True,
) -> list[Row]:
    """Statistics of the labels stored in HDF5 files: labeled share and agreement with the masks.

    Args:
        files: from :func:`~fedmonai.data.weak.list.weak_files`, of layout ``release`` or ``volumes``.
        num_classes: classes K; K is unlabeled.
        annotations: keys to look at; None takes all that are neither image nor mask.
        progress: show a progress bar.

    Returns:
        Rows as of :func:`make_weak_labels`.
    """
    statistics: dict[str, list[dict[str, float]]] = {}
    for entry in tqdm(files, "reading labels", disable=not progress, leave=False):
        path = entry["image"]
        for annotation in annotations or [key for key in h5_keys(path) if key not in ("image", "mask", "label")]:
            for place in range(count_slices(path)):
                label, mask = (read_h5_label(path, key, place) for key in (annotation, "mask"))
                statistics.setdefault(annotation, []).append(weak_label_statistics(label, mask, num_classes))
    return _means(statistics)


def _source(
    entry: Mapping[str, str], label_map: Mapping[int, int] | None, threshold: int | None, image_channels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(C, H, W)`` or volume ``(D, H, W)``, and masks ``(D, H, W)`` (D is 1 for a picture)."""
    path = entry["image"]
    if "mask" not in entry:
        slices = range(count_slices(path))
        image = np.concatenate([read_h5_image(path, place) for place in slices])
        return image, np.stack([read_h5_label(path, "mask", place) for place in slices])
    image, mask = read_pair(entry, label_map, threshold, image_channels)
    return image, mask[None]


def _means(statistics: Mapping[str, Iterable[Mapping[str, float]]]) -> list[Row]:
    rows: list[Row] = []
    for annotation, found in statistics.items():
        all_rows = list(found)
        row: Row = {"annotation": annotation, "slices": len(all_rows)}
        for key in sorted({key for one in all_rows for key in one}, key=lambda key: (len(key) > len("agreement"), key)):
            numbers = np.array([one[key] for one in all_rows if key in one and not np.isnan(one[key])])
            row[key] = float(numbers.mean()) if numbers.size else float("nan")
            if key == "agreement":
                row["agreement_min"] = float(numbers.min()) if numbers.size else float("nan")
        rows.append(row)
    return rows


def _plain(label_map: Mapping[int, int] | None) -> dict[str, int] | None:
    return None if label_map is None else {str(key): int(value) for key, value in sorted(label_map.items())}
