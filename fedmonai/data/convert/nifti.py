# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes as (slice, row, column)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from fedmonai.data.case_files import missing_voxels
from fedmonai.data.convert.volume import InputError, Volume, check_size

_DAMAGED = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


def read_nifti(path: Path, axis: int = 2) -> Volume:
    """Read a 3-D NIfTI image.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        axis: voxel axis that counts the slices. Of the other two the first becomes the column and the second the row,
            turned where needed so that row 0 is anterior or superior, as viewers show it. The affine follows every
            permutation and turn.

    Raises:
        InputError: damaged file, not one 3-D image, or larger than any scanner makes.
    """
    try:
        image: Any = nib.load(path)
        shape = tuple(int(size) for size in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or image.get_data_dtype().kind not in "biufc":
            raise InputError(f"NIfTI of shape {image.shape} and type {image.get_data_dtype()}, expected one 3-D image")
        order = [axis, *sorted({0, 1, 2} - {axis}, reverse=True)]
        check_size(tuple(shape[k] for k in order), 8, "the NIfTI image")
        missing = missing_voxels(image, path)
        if missing:
            raise InputError(f"the NIfTI image {missing}")
        data = np.asanyarray(image.dataobj).reshape(shape).transpose(order)
        affine = np.asarray(image.affine, float)
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"damaged NIfTI file ({str(error)[:160]})") from error
    data, affine = _upright(data, affine[:, [*order, 3]])
    return Volume(data.astype(np.complex64 if data.dtype.kind == "c" else np.float32), affine=affine)


def _upright(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn the rows where their index runs to anterior, superior or right."""
    codes = nib.aff2axcodes(affine)
    if codes[1] in ("A", "S", "R"):
        flip = np.eye(4)
        flip[1, 1], flip[1, 3] = -1, data.shape[1] - 1
        data, affine = data[:, ::-1], affine @ flip
    return data, affine
