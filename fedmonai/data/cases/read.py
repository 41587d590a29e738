# SPDX-License-Identifier: Apache-2.0
"""Reader of one case of a segmentation dataset, image or mask: a NIfTI volume, or a picture as a single slice."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from fedmonai.data.cache import fits_in_memory
from fedmonai.data.damage import InputError, damage_named
from fedmonai.data.pictures import PICTURE_SUFFIXES, picture_size, read_picture
from fedmonai.errors import ConfigError

__all__ = ["CaseVolume", "affine_shift", "read_case_file", "turn_to", "volume_shape"]


PathLike = str | os.PathLike[str]
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAX_SIDE = 4096  # far above any scanner; stops a damaged header from asking for terabytes
MAX_COMPRESSION = 1100  # deflate reaches about 1030:1 on constant data


@dataclass(frozen=True)
class CaseVolume:
    """Voxels (rows, columns, slices), their lengths in mm along these axes and the file's affine; None in pictures."""

    values: np.ndarray
    spacing: tuple[float, float, float] | None
    affine: np.ndarray | None


def read_case_file(path: PathLike, orientation: str | None = "PLS") -> CaseVolume:
    """Read a NIfTI volume or a picture (which becomes one slice).

    Args:
        path: ``.nii``, ``.nii.gz`` or a picture file.
        orientation: where rows, columns and slices of a NIfTI volume point to. ``PLS`` (default): rows from anterior
            to posterior, columns from the patient's right to left, slices upward, which is how axial slices are
            looked at; MONAI's ``Orientationd(axcodes="PLS")`` does the same at inference. None keeps the file's axes.

    Raises:
        ConfigError: missing, damaged or unknown file, a volume that is not 3-D, impossible sizes or affine.
    """
    if is_nifti(path):
        return _read_nifti(path, orientation)
    _check_suffix(path)
    return CaseVolume(read_picture(str(path), 1)[0][..., None], None, None)


def volume_shape(path: PathLike, orientation: str | None = "PLS") -> tuple[int, int, int]:
    """Shape that :func:`read_case_file` will give, from the header alone (pictures are read).

    Raises:
        ConfigError: as :func:`read_case_file`.
    """
    if not is_nifti(path):
        _check_suffix(path)
        return (*picture_size(str(path)), 1)
    image = _open_nifti(path)
    shape = _header_shape(image, path)
    if orientation is None:
        return shape
    axes = [int(axis) for axis in turn_to(_affine(image, path), orientation)[:, 0]]
    return shape[axes.index(0)], shape[axes.index(1)], shape[axes.index(2)]


def affine_shift(image: CaseVolume, mask: CaseVolume) -> float:
    """How far two affines differ in mm, 0 within a tenth of the shortest voxel side (headers of two programs do)."""
    if image.affine is None or mask.affine is None or image.spacing is None:
        return 0.0
    shift = float(np.abs(image.affine - mask.affine)[:3].max())
    return shift if shift > 0.1 * min(image.spacing) else 0.0


def is_nifti(path: PathLike) -> bool:
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def _read_nifti(path: PathLike, orientation: str | None) -> CaseVolume:
    image = _open_nifti(path)
    shape = _header_shape(image, path)
    affine = _affine(image, path)
    needed = math.prod(shape) * np.dtype(np.float64).itemsize  # scaled values are double
    if not fits_in_memory(needed):
        raise InputError(f"{path} has shape {shape} and needs {needed:,} bytes, more than the memory that is free.")
    with damage_named(f"{path} cannot be read to its end", "; copy it again."):
        values = np.asanyarray(image.dataobj).reshape(shape)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {values.dtype}, expected real numbers.")
    if orientation is not None:
        turn = turn_to(affine, orientation)
        values = orientations.apply_orientation(values, turn)
        affine = affine @ orientations.inv_ornt_aff(turn, shape)
    spacing = [float(length) for length in nib.affines.voxel_sizes(affine)]
    return CaseVolume(np.ascontiguousarray(values), (spacing[0], spacing[1], spacing[2]), affine)


def _open_nifti(path: PathLike) -> nib.Nifti1Image:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist.")
    with damage_named(f"{path} is not a NIfTI file that can be read", "."):
        image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{path} is a {type(image).__name__}, not a NIfTI volume.")
    return image


def _header_shape(image: nib.Nifti1Image, path: PathLike) -> tuple[int, int, int]:
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or not all(1 <= side <= MAX_SIDE for side in shape):
        raise InputError(f"{path} has shape {shape}; expected one 3-D volume with sides of 1 to {MAX_SIDE}.")
    missing = missing_voxels(image, path)
    if missing:
        raise InputError(f"{path} cannot be read to its end: it {missing}; copy it again.")
    return (shape[0], shape[1], shape[2])


def missing_voxels(image: Any, path: PathLike) -> str:
    """Describe a NIfTI header that declares more than its file can hold; empty text if it does not."""
    declared, stored = math.prod(image.shape) * image.get_data_dtype().itemsize, Path(path).stat().st_size
    if declared > stored * (MAX_COMPRESSION if str(path).lower().endswith(".gz") else 1):
        return f"declares {declared:,} bytes of voxels but has {stored:,} bytes"
    return ""


def _affine(image: nib.Nifti1Image, path: PathLike) -> np.ndarray:
    with damage_named(f"{path} is not a NIfTI file that can be read", "."):
        affine = np.asarray(image.affine, dtype=np.float64)
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-9
    if not usable or np.isnan(orientations.io_orientation(affine)).any():  # NaN: an axis that points nowhere
        raise InputError(f"{path}: its affine is not usable ({affine[:3, :3].round(3).tolist()}); repair the header.")
    return affine


def turn_to(affine: np.ndarray, orientation: str) -> np.ndarray:
    """Orientation transform (nibabel) that flips and permutes the axes of a file with this affine.

    Raises:
        ConfigError: an ``orientation`` that does not name each axis once.
    """
    if sorted("RAS"["RLAPSI".find(letter) // 2] for letter in orientation) != sorted("RAS"):
        raise ConfigError(f"orientation: '{orientation}' must name each axis once: one of L R, A P, S I, such as PLS.")
    wanted = orientations.axcodes2ornt(tuple(orientation))
    return orientations.ornt_transform(orientations.io_orientation(affine), wanted)


def _check_suffix(path: PathLike) -> None:
    if Path(path).suffix.lower() not in PICTURE_SUFFIXES:
        allowed = ", ".join((*NIFTI_SUFFIXES, *PICTURE_SUFFIXES))
        raise InputError(f"{path}: the ending is unknown; readable are {allowed}.")
