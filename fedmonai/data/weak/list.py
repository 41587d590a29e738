# SPDX-License-Identifier: Apache-2.0
"""File lists of weakly labeled images: the layout of FedICRA's release, image and mask pairs, volumes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from fedmonai.data.pictures import PICTURE_SUFFIXES
from fedmonai.errors import ConfigError
from fedmonai.io import InputEntries, InputPath

__all__ = ["paired_files", "release_files", "volume_files", "weak_files"]


SPLITS = ("train", "val", "test")

PathLike = str | os.PathLike[str]


def weak_files(
    dataset_dir: InputPath,
    split: str,
    layout: str = "release",
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> InputEntries:
    """The files of one site and split, in one of the layouts that this library reads.

    Args:
        dataset_dir: folder of the site.
        split: ``train``, ``val`` or ``test``.
        layout: ``release``: ``<train|val|test>/*.h5`` (:func:`release_files`); ``pairs``: pictures in ``image`` and
            ``mask`` (:func:`paired_files`); ``volumes``: ``*.h5`` volumes (:func:`volume_files`).
        val_fraction: share held out for validation, where the layout has no such folder.
        test_fraction: share held out for testing, where the layout has no such folder.
        seed: of the choice.

    Raises:
        ConfigError: unknown layout, and what the three functions refuse.
    """
    if layout == "release":
        return release_files(dataset_dir, split, val_fraction, seed)
    if layout == "pairs":
        root = Path(dataset_dir)
        return paired_files(root / "image", root / "mask", split, val_fraction, test_fraction, seed)
    if layout == "volumes":
        return volume_files(dataset_dir, split, val_fraction, test_fraction, seed)
    raise ConfigError(f"layout: '{layout}' is unknown; choose one of release, pairs, volumes.")


def release_files(dataset_dir: PathLike, split: str, val_fraction: float = 0.2, seed: int = 0) -> list[dict[str, str]]:
    """HDF5 files of one site in the layout of the release: ``<dataset_dir>/<train|test>/*.h5``.

    The release has no validation split and selects its models on the test images. Here ``val`` is the folder ``val``
    where there is one (generated federations have it), else a fixed share of ``train``, which then lacks it.

    Args:
        dataset_dir: folder of the site (``Domain1`` to ``Domain5`` in the release).
        split: ``train``, ``val`` or ``test``.
        val_fraction: share of ``train`` held out, in [0, 1); unused where there is a folder ``val``.
        seed: of the choice of the held-out files.

    Returns:
        One dict per file, in name order: ``image`` (path) and ``volume`` (stem).

    Raises:
        ConfigError: unknown split or fraction, missing folder, empty split.
    """
    _check_split(split)
    site = Path(dataset_dir)
    has_val = (site / "val").is_dir()
    folder = site / (split if split != "val" or has_val else "train")
    paths = _listed(folder, (".h5",), f"{site}/<train|val|test>/*.h5 (val is optional)")
    if split != "test" and not has_val:
        paths = _part(paths, split, val_fraction, 0.0, seed, lambda path: path.stem)
    return _entries(paths, split, folder)


def paired_files(
    image_dir: PathLike,
    mask_dir: PathLike,
    split: str,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Images and masks of one site in two folders, matched by the stem of the name; splits are drawn from the names.

    Returns:
        One dict per image, in name order: ``image``, ``mask`` (paths) and ``volume`` (stem).

    Raises:
        ConfigError: missing folder, an image without a mask or with two, unknown split or fractions, empty split.
    """
    _check_split(split)
    images = _listed(Path(image_dir), PICTURE_SUFFIXES, "images such as .png or .jpg")
    masks: dict[str, Path] = {}
    for path in _listed(Path(mask_dir), PICTURE_SUFFIXES, "masks such as .png or .jpg"):
        if masks.setdefault(path.stem, path) != path:
            raise ConfigError(f"mask_dir: {masks[path.stem]} and {path} belong to one image; remove one.")
    for image in images:
        if image.stem not in masks:
            raise ConfigError(
                f"mask_dir: {mask_dir} has no mask for {image}; its name must begin with '{image.stem}.'."
            )
    chosen = _part(images, split, val_fraction, test_fraction, seed, lambda path: path.stem)
    entries = _entries(chosen, split, Path(image_dir))
    return [{"image": entry["image"], "mask": str(masks[entry["volume"]]), **entry} for entry in entries]


def volume_files(
    dataset_dir: PathLike,
    split: str,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    subject_separator: str = "_",
) -> list[dict[str, str]]:
    """HDF5 volumes of one site in one folder (ACDC: ``patient001_frame01.h5``); splits are drawn by subject.

    Args:
        dataset_dir: folder with ``*.h5``.
        split: ``train``, ``val`` or ``test``.
        val_fraction: share of the subjects held out for validation.
        test_fraction: share of the subjects held out for testing.
        seed: of the choice.
        subject_separator: what ends the subject's part of a name; all volumes of a subject fall into one split.

    Returns:
        One dict per volume, in name order: ``image`` (path) and ``volume`` (stem).

    Raises:
        ConfigError: missing folder, unknown split or fractions, empty split.
    """
    _check_split(split)
    folder = Path(dataset_dir)
    paths = _listed(folder, (".h5",), f"{dataset_dir}/*.h5")

    def subject(path: Path) -> str:
        return path.stem.split(subject_separator)[0] if subject_separator else path.stem

    return _entries(_part(paths, split, val_fraction, test_fraction, seed, subject), split, folder)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split: '{split}' is unknown; choose one of {', '.join(SPLITS)}.")


def _listed(folder: Path, suffixes: tuple[str, ...], expected: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"dataset_dir: {folder} is not a folder; expected {expected}.")
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    paths = sorted(files)
    if not paths:
        raise ConfigError(f"dataset_dir: {folder} holds no {', '.join(suffixes)}; expected {expected}.")
    return paths


def _part(
    paths: list[Path],
    split: str,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    group: Callable[[Path], str],
) -> list[Path]:
    """The files of a split. Groups are ordered by a hash of seed and name; test takes the first, then val."""
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be at least 0 and below 1 together."
        )
    names = sorted({group(path) for path in paths})
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    test = round(len(drawn) * test_fraction)
    val = test + round(len(drawn) * val_fraction)
    chosen = set({"test": drawn[:test], "val": drawn[test:val], "train": drawn[val:]}[split])
    return [path for path in paths if group(path) in chosen]


def _entries(paths: list[Path], split: str, folder: Path) -> list[dict[str, str]]:
    if not paths:
        raise ConfigError(f"split '{split}' of {folder} is empty; raise its fraction or add files.")
    return [{"image": str(path), "volume": path.stem} for path in paths]
