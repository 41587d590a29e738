# SPDX-License-Identifier: Apache-2.0
"""Conversion of NIfTI images with NIfTI scribbles and masks (MSCMR, ProstateX) to the HDF5 volumes of FedICRA."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedmonai.data.cases.read import CaseVolume, affine_shift, read_case_file
from fedmonai.data.damage import InputError
from fedmonai.data.weak.labels import write_release_file
from fedmonai.errors import ConfigError

__all__ = ["convert_nifti"]

_SUFFIXES = (".nii.gz", ".nii")


def convert_nifti(
    images: str,
    output: str | None,
    num_classes: int,
    labels: Mapping[str, str],
    label_map: Mapping[int, int] | None = None,
    orientation: str = "PLS",
    check: bool = False,
) -> list[dict[str, Any]]:
    """Write one HDF5 volume (image, and labels by key; slices first) per NIfTI image with its labels.

    A label file is in the folder of its image, or else anywhere below the parent of that folder, and its name is that
    of the image with a suffix: ``subject26_DE_scribble.nii.gz`` for ``subject26_DE.nii.gz``. ``layout: volumes`` reads
    the result.

    Args:
        images: folder, searched with its sub-folders.
        output: folder of ``<image>.h5``; an existing file is an error.
        num_classes: classes K; the label K means unlabeled, and occurs in no ``mask``.
        labels: suffix by key, such as ``{"scribble": "_scribble", "mask": "_manual"}``.
        label_map: class of each value of the label files that is not a class itself, such as ``{255: 4}``.
        orientation: of rows, columns and slices, see :func:`fedmonai.data.cases.read.read_case_file`.
        check: read everything and write nothing.

    Returns:
        One row per image: ``volume``, ``slices``, and of each key the labeled share.

    Raises:
        ConfigError: no image, an image without a label file, files on different grids, values that are no class.
    """
    if not labels or any(not suffix for suffix in labels.values()):
        raise ConfigError("labels: name a suffix for each kind, such as {scribble: _scribble, mask: _manual}.")
    if output is None and not check:
        raise ConfigError("output: name the folder for the new files, or add --check to write nothing.")
    found = _found(Path(images), list(labels.values()))
    rows = []
    for stem, path in tqdm(found.items(), "convert", unit="volume", disable=None, leave=False):
        image = read_case_file(path, orientation)
        read = {key: _label(path, suffix, image, orientation) for key, suffix in labels.items()}
        classes = {key: _classes(*label, key, num_classes, label_map) for key, label in read.items()}
        rows.append(
            {"volume": stem, "slices": image.values.shape[-1]}
            | {f"{key} labeled": float((values < num_classes).mean()) for key, values in classes.items()}
        )
        if not check:
            target = Path(str(output)) / f"{stem}.h5"
            if target.exists():
                raise ConfigError(f"{target} exists and is not overwritten; choose an empty folder.")
            write_release_file(target, np.moveaxis(image.values, -1, 0), classes)
    return rows


def _found(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name to path of the images: every NIfTI file whose name does not end as labels do."""
    if not root.is_dir():
        raise ConfigError(f"images: {root} is not a folder.")
    paths = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    nifti = {path: _stem(path) for path in sorted(paths) if path.name.lower().endswith(_SUFFIXES)}
    found: dict[str, Path] = {}
    for path, stem in nifti.items():
        if any(f"{stem}{suffix}" in nifti.values() for suffix in suffixes):
            if stem in found:
                raise ConfigError(f"images: {found[stem]} and {path} have one name; convert their folders one by one.")
            found[stem] = path
    if not found:
        raise ConfigError(
            f"images: no NIfTI file in {root} has label files of its name with {' or '.join(suffixes)} at the end."
        )
    return found


def _label(image_path: Path, suffix: str, image: CaseVolume, orientation: str) -> tuple[Path, np.ndarray]:
    """Path and values of the label file of an image.

    Raises:
        ConfigError: no such file, several, or one on another grid.
    """
    wanted = {f"{_stem(image_path)}{suffix}{end}" for end in _SUFFIXES}
    beside = [path for path in sorted(image_path.parent.iterdir()) if path.name in wanted]
    near = beside or [path for path in sorted(image_path.parent.parent.rglob("*.nii*")) if path.name in wanted]
    if len(near) != 1:
        raise ConfigError(
            f"{image_path}: {len(near)} label files called {min(wanted)} beside it or in a folder next to its own; "
            "there must be one of each kind."
        )
    label = read_case_file(near[0], orientation)
    if label.values.shape != image.values.shape:
        raise InputError(f"{near[0]} has shape {label.values.shape}, its image {image.values.shape}; they must fit.")
    if shift := affine_shift(image, label):
        raise InputError(f"{near[0]}: its affine differs from the image's by {shift:.3g} mm; repair the header.")
    return near[0], label.values


def _classes(
    path: Path, values: np.ndarray, key: str, num_classes: int, label_map: Mapping[int, int] | None
) -> np.ndarray:
    """Classes, uint8, slices first."""
    whole = np.rint(values).astype(np.int64)
    if not np.array_equal(whole, values):
        raise InputError(f"{path} holds numbers that are not whole; labels are class indices.")
    out = whole.copy()
    for value, label in (label_map or {}).items():
        out[whole == int(value)] = int(label)
    highest = num_classes - 1 if key == "mask" else num_classes
    wrong = np.unique(whole[(out < 0) | (out > highest)])
    if wrong.size:
        raise ConfigError(
            f"{path} holds {', '.join(map(str, wrong[:6]))}; classes are 0 to {num_classes - 1}, {num_classes} is "
            f"unlabeled (no mask has it). Set --num_classes, or name them: --label_map '{{{wrong[0]}: {highest}}}'."
        )
    return np.moveaxis(out.astype(np.uint8), -1, 0)


def _stem(path: Path) -> str:
    return next(path.name[: -len(end)] for end in _SUFFIXES if path.name.lower().endswith(end))
