# SPDX-License-Identifier: Apache-2.0
"""Check of a folder of cases before a run: missing, mismatched, empty or inverted masks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmonai.data.cases.list import case_images, mask_of
from fedmonai.data.cases.read import CaseVolume, affine_shift, read_case_file
from fedmonai.errors import ConfigError

__all__ = ["CaseProblem", "check_prostate", "problem_table"]


PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class CaseProblem:
    """One finding: its place, its kind and an explanation."""

    site: str
    case: str
    problem: str
    detail: str


def check_prostate(
    dataset_dir: PathLike, sites: Sequence[str] | None = None, label_suffix: str = "_segmentation"
) -> tuple[int, list[CaseProblem]]:
    """Check every case of a folder in the layout of the public six-site set.

    Args:
        dataset_dir: folder with one folder per site.
        sites: which of them; None (default) takes all folders that hold NIfTI files.
        label_suffix: what a mask's name has behind the case's.

    Returns:
        The number of cases checked, and the problems (an empty list: the dataset can be used).

    Raises:
        ConfigError: no such folder, or no case in it.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise ConfigError(f"dataset_dir: {root} is not a folder.")
    if sites is None:
        sites = sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob("*.nii*")))
    if not sites:
        raise ConfigError(f"dataset_dir: {root} holds no <site>/CaseXX.nii.gz.")
    count, problems = 0, []
    for site in sites:
        images = case_images(root / site)
        count += len(images)
        for name, image in images.items():
            problems += [CaseProblem(site, name, *found) for found in _check_case(image, mask_of(image, label_suffix))]
    return count, problems


def problem_table(problems: Sequence[CaseProblem]) -> str:
    """The problems as a text table with aligned columns."""
    rows = [("site", "case", "problem", "detail")]
    rows += [(entry.site, entry.case, entry.problem, entry.detail) for entry in problems]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _check_case(image_path: Path, mask_path: Path | None) -> Iterator[tuple[str, str]]:
    try:
        image = read_case_file(image_path, orientation=None)
    except ConfigError as error:
        yield "unreadable image", str(error)
        return
    yield from _check_image(image, image_path)
    if mask_path is None:
        yield "missing mask", f"no mask beside {image_path.name}"
        return
    try:
        mask = read_case_file(mask_path, orientation=None)
    except ConfigError as error:
        yield "unreadable mask", str(error)
        return
    yield from _check_mask(mask, mask_path)
    yield from _check_geometry(image, mask, mask_path)


def _check_image(image: CaseVolume, path: Path) -> Iterator[tuple[str, str]]:
    bad = int((~np.isfinite(image.values)).sum())
    if bad:
        yield "not finite", f"{path.name} has {bad} NaN or infinite voxels"
    elif image.values.min() == image.values.max():
        yield "constant image", f"every voxel of {path.name} is {image.values.flat[0]:g}"


def _check_mask(mask: CaseVolume, path: Path) -> Iterator[tuple[str, str]]:
    values = mask.values
    if not np.isfinite(values).all():
        yield "not finite", f"{path.name} has NaN or infinite voxels"
        return
    if values.min() < 0 or values.max() > 255 or bool((values != np.rint(values)).any()):
        yield (
            "not a mask",
            f"{path.name} holds values that are not classes ({values.min():g} to {values.max():g})",
        )
    share = float((values > 0).mean())
    if share == 0:
        yield "empty mask", f"{path.name} marks nothing"
    elif share > 0.5:
        yield "inverted mask", f"{path.name} marks {share:.0%} of the image: 0 seems to be the foreground"


def _check_geometry(image: CaseVolume, mask: CaseVolume, path: Path) -> Iterator[tuple[str, str]]:
    if image.values.shape != mask.values.shape:
        yield "shape mismatch", f"image {image.values.shape}, mask {mask.values.shape}"
    elif shift := affine_shift(image, mask):
        yield "affine mismatch", f"the headers of image and {path.name} differ by {shift:.3g} mm"
