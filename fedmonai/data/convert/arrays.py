# SPDX-License-Identifier: Apache-2.0
"""Plain arrays: NumPy ``.npy`` and MATLAB ``.mat`` (v5 to v7.3), images or k-space, real or complex."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from fedmonai.data import memory_limits
from fedmonai.data.convert.volume import InputError, Volume, arrange, check_size

#: Meaning of the axes by rank, if --axes does not say: NumPy stacks slices first, MATLAB last.
NPY_AXES: dict[int, tuple[str, ...]] = {
    2: ("row", "column"),
    3: ("slice", "row", "column"),
    4: ("slice", "coil", "row", "column"),
}
MAT_AXES: dict[int, tuple[str, ...]] = {
    2: ("row", "column"),
    3: ("row", "column", "slice"),
    4: ("row", "column", "coil", "slice"),
}


@contextmanager
def read_array(path: Path, domain: str, axes: tuple[str, ...] | None, key: str | None) -> Iterator[Volume]:
    """Open a ``.npy`` or ``.mat`` file as a volume.

    Args:
        domain: ``image`` or ``kspace``.
        axes: names of the array's axes out of slice, coil, row, column; None = by rank.
        key: variable of a ``.mat`` file; None = the only numeric one.

    Raises:
        InputError: damaged file, pickled objects, no numeric array of 2 to 4 dimensions, several candidates.
    """
    data = _read_npy(path) if path.suffix.lower() == ".npy" else _read_mat(path, key)
    if data.dtype.kind not in "biufc":
        raise InputError(f"array of type {data.dtype}, expected numbers")
    by_rank = NPY_AXES if path.suffix.lower() == ".npy" else MAT_AXES
    names = axes or by_rank.get(data.ndim)
    if names is None:
        raise InputError(f"array of shape {data.shape}, expected 2 to 4 dimensions; name them with --axes")
    arranged = arrange(data, names)
    check_size(arranged.shape, arranged.dtype.itemsize, "the array")
    note = () if axes else (f"axes taken as {','.join(names)} (--axes changes that)",)
    yield Volume(arranged, domain=domain, warnings=note)


def _read_npy(path: Path) -> np.ndarray:
    """Map the file: a header that declares more than the file holds is refused without allocating it."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers end in anything from ValueError to TokenError
        raise InputError(f"damaged .npy file, or one with Python objects ({str(error)[:120]})") from error


def _read_mat(path: Path, key: str | None) -> np.ndarray:
    if h5py.is_hdf5(path):
        return _read_mat73(path, key)
    try:
        shapes = {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in _MAT_NUMBERS}
        name = _choose(shapes, key)
        _refuse_huge(name, shapes[name])
        return np.asarray(scipy.io.loadmat(path, variable_names=[name])[name])
    except InputError:
        raise
    except Exception as error:  # scipy raises many kinds on damaged files, down to zlib's and IndexError
        raise InputError(f"damaged .mat file ({str(error)[:120]})") from error


_MAT_NUMBERS = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical"}


def _read_mat73(path: Path, key: str | None) -> np.ndarray:
    """MATLAB v7.3 is HDF5 with reversed axes and complex numbers as (real, imag) records."""
    try:
        with h5py.File(path, "r") as file:
            shapes = {name: item.shape[::-1] for name, item in file.items() if _is_numeric(item)}
            name = _choose(shapes, key)
            _refuse_huge(name, shapes[name])
            data = file[name][()]
    except OSError as error:
        raise InputError(f"damaged .mat file ({str(error)[:120]})") from error
    if data.dtype.names:
        data = (data["real"] + 1j * data["imag"]).astype(np.complex64)
    return data.T


def _refuse_huge(name: str, shape: tuple[int, ...]) -> None:
    """Both formats compress: a small file can declare any size."""
    if math.prod(shape) * 16 > memory_limits.HEADROOM * memory_limits.available_memory():
        raise InputError(f"variable '{name}' declares shape {shape}, more than the memory that is free")


def _is_numeric(item: Any) -> bool:
    if not isinstance(item, h5py.Dataset) or item.external is not None or item.is_virtual or item.ndim < 2:
        return False
    return item.dtype.kind in "iufc" or item.dtype.names == ("real", "imag")


def _choose(shapes: dict[str, tuple[int, ...]], key: str | None) -> str:
    if key is not None:
        if key not in shapes:
            raise InputError(f"no numeric variable '{key}'; found {', '.join(sorted(shapes)) or 'none'}")
        return key
    candidates = [name for name, shape in shapes.items() if len(shape) >= 2 and min(shape[:2]) > 1]
    if len(candidates) != 1:
        raise InputError(f"{len(candidates)} arrays in the file ({', '.join(sorted(shapes))}); choose one with --key")
    return candidates[0]
