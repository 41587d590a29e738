# SPDX-License-Identifier: Apache-2.0
"""Reader of k-space files (HDF5, fastMRI layout): header and slices."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from fedmonai.data.damage import InputError, damage_named
from fedmonai.errors import ConfigError
from fedmonai.names import printable
from fedmonai.transforms.kspace import center_crop, to_hybrid_kspace, zero_filled

TARGET_KEYS = ("reconstruction_esc", "reconstruction_rss")  # single-coil, multi-coil
BLOCK = "slice_block"  # attribute of volumes that are a block of slices: [first, last)

# Far above any scanner (fastMRI: 16 x 20 x 640 x 372); they stop a damaged or hostile header from asking for terabytes.
MAX_SLICES = 8192
MAX_COILS = 256
MAX_SIDE = 4096
MAX_SLICE_BYTES = 2 * 1024**3
COMPLEX_RECORD = ("real", "imag")  # how MATLAB writes complex numbers
_MAX_COMPRESSION = 2000  # deflate reaches about 1030:1 on constant data


@dataclass(frozen=True)
class KspaceHeader:
    """Shape and content of a volume file.

    Attributes:
        slices, coils, rows, columns: k-space size; ``coils`` is 1 for a single-coil file.
        multicoil: whether the file has a coil axis, i.e. (slices, coils, rows, columns).
        target_key: name of the target dataset, None when the file has none.
        target_size: (rows, columns) of the target, None without one.
        has_mask: whether the file carries its own column sampling mask (prospective undersampling).
    """

    path: str
    slices: int
    coils: int
    rows: int
    columns: int
    multicoil: bool
    target_key: str | None
    target_size: tuple[int, int] | None
    has_mask: bool

    def image_size(self, resolution: int) -> tuple[int, int]:
        """(rows, columns) after the center crop: the smallest of resolution, k-space and target."""
        target = self.target_size or (self.rows, self.columns)
        return min(resolution, self.rows, target[0]), min(resolution, self.columns, target[1])


_RESTORE = "; restore it or take it out of the data list."


def open_handle(path: str | os.PathLike[str]) -> h5py.File:
    """Open an HDF5 file for reading, to be closed by the caller; most readers want :func:`open_volume`.

    Raises:
        InputError: when the file is missing or is not (or no longer) an HDF5 file.
    """
    if not Path(path).exists():
        raise InputError(f"{path} does not exist{_RESTORE}")
    with damage_named(f"{path} is not a readable HDF5 file", _RESTORE):
        return h5py.File(path, "r")


@contextlib.contextmanager
def open_volume(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open an HDF5 file for a block that only reads it; any error in the block is one of the file, named.

    Raises:
        InputError: as :func:`open_handle`, and for damage that is met later.
    """
    with open_handle(path) as file, damage_named(f"{path} is damaged", _RESTORE):
        yield file


def read_slice(file: h5py.File, key: str, index: int | slice) -> np.ndarray:
    """Read one slice (or a block of slices) of a dataset; an error names the file, the dataset and the slice.

    Raises:
        InputError: when the stored bytes cannot be read.
    """
    with damage_named(f"{file.filename}: cannot read '{key}' {index}", "; restore the file."):
        return np.asarray(file[key][index])


def subject_of(file: h5py.File) -> str | None:
    """The subject id a volume file carries (fastMRI's attribute ``patient_id``)."""
    value = file.attrs.get("patient_id")
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return text.strip() or None


def read_header(path: str | os.PathLike[str]) -> KspaceHeader:
    """Check the datasets of a volume file and return its sizes; no image data are read.

    Raises:
        ConfigError: unreadable file, no ``kspace``, wrong rank or type, sizes no scanner makes, data that lie in
            another file, a target or mask that does not fit the k-space.
    """
    with open_volume(path) as file:
        kspace = own_dataset(file, "kspace")
        if kspace is None:
            found = names_in(file) or "nothing"
            raise InputError(f"{path}: no dataset 'kspace' (found: {found}); fedmonai prepare mri writes such files.")
        slices, coils, rows, columns = _kspace_shape(path, kspace)
        key = _target_key(file, kspace.ndim)
        size = None if key is None else _target_size(path, own_dataset(file, key), key, slices)
        mask = own_dataset(file, "mask")
        if mask is not None and (mask.shape != (columns,) or mask.dtype.kind not in "biuf"):
            raise InputError(
                f"{path}: 'mask' is {mask.dtype} {mask.shape}, expected one number per k-space column ({columns},)."
            )
        return KspaceHeader(str(path), slices, coils, rows, columns, kspace.ndim == 4, key, size, mask is not None)


def holds(file: h5py.File, key: str) -> bool:
    """Whether something is called ``key`` in a file; ``key in file`` would open the file that a link names."""
    return file.get(key, getlink=True) is not None


def names_in(file: h5py.File) -> str:
    """The names in a file for a message; a damaged file may hold any characters, and many."""
    return printable(", ".join(sorted(file)), 200)


def own_dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    """Return the dataset ``key`` of a file, None if there is none; data that lie in another file are refused.

    Raises:
        ConfigError: a link, storage in another file, a group, values that are no numbers, or sizes that the stored
            bytes cannot hold.
    """
    if not holds(file, key):
        return None
    link = file.get(key, getlink=True)
    where = f"{file.filename}: '{key}'"
    if not isinstance(link, h5py.HardLink):
        raise InputError(f"{where} is a link; copy the data into the file.")
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        raise InputError(f"{where} is a {type(item).__name__.lower()}, expected a dataset.")
    if item.external is not None or item.is_virtual:
        kind = "a virtual dataset" if item.is_virtual else "an external dataset"
        raise InputError(f"{where} is {kind}: its data are stored in another file; copy them into the file.")
    if (item.dtype.subdtype or (item.dtype, ()))[0].kind not in "biufc" and item.dtype.names != COMPLEX_RECORD:
        raise InputError(f"{where} is {item.dtype}, expected numbers.")  # texts of any length may be behind the others
    if item.chunks is not None and math.prod(item.chunks) * item.dtype.itemsize > MAX_SLICE_BYTES:
        raise InputError(
            f"{where} has chunks of {item.chunks}, above {MAX_SLICE_BYTES:,} bytes; rewrite it slice by slice."
        )
    declared, stored = item.size * item.dtype.itemsize, item.id.get_storage_size()
    if declared > max(stored, 1) * _MAX_COMPRESSION:
        raise InputError(f"{where} declares {declared:,} bytes but stores {stored:,}; the file is damaged.")
    return item


def _kspace_shape(path: str | os.PathLike[str], kspace: h5py.Dataset) -> tuple[int, int, int, int]:
    shape = kspace.shape
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: 'kspace' has shape {shape}; expected (slices, rows, columns) or (slices, coils, rows, columns)."
        )
    if kspace.dtype.kind != "c":
        raise InputError(
            f"{path}: 'kspace' is {kspace.dtype}, expected complex64 (magnitude images need prepare_mri.py)."
        )
    slices, coils, rows, columns = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
    sizes = {"slices": (slices, MAX_SLICES), "coils": (coils, MAX_COILS)}
    sizes |= {"rows": (rows, MAX_SIDE), "columns": (columns, MAX_SIDE)}
    for name, (size, limit) in sizes.items():
        if not 1 <= size <= limit:
            raise InputError(f"{path}: 'kspace' declares {size} {name}, allowed are 1 to {limit}; check the file.")
    slice_bytes = coils * rows * columns * kspace.dtype.itemsize
    if slice_bytes > MAX_SLICE_BYTES:
        raise InputError(f"{path}: one k-space slice declares {slice_bytes:,} bytes, allowed are {MAX_SLICE_BYTES:,}.")
    return slices, coils, rows, columns


def _target_key(file: h5py.File, rank: int) -> str | None:
    order = TARGET_KEYS if rank == 3 else TARGET_KEYS[::-1]
    return next((key for key in order if holds(file, key)), None)


def _target_size(path: str | os.PathLike[str], target: Any, key: str, slices: int) -> tuple[int, int]:
    shape = target.shape
    fits = len(shape) == 3 and shape[0] == slices and all(1 <= side <= MAX_SIDE for side in shape[1:])
    if not fits or target.dtype.kind not in "fiu":
        raise InputError(f"{path}: '{key}' is {target.dtype} {shape}; expected real numbers ({slices}, rows, columns).")
    return shape[1], shape[2]


@dataclass(frozen=True)
class SliceSpec:
    """Specification of the slices that a dataset delivers.

    Attributes:
        resolution: largest image height and width; rows of hybrid k-space and the target are center-cropped to it.
        hybrid_kspace: whether the rows are inverse-transformed and cropped already (see ``to_hybrid_kspace``).
        target_from_kspace: whether a file without a target gets the root-sum-of-squares magnitude of its full k-space.

    Example:
        >>> header = KspaceHeader("a.h5", 30, 4, 640, 372, True, target_key=None, target_size=None, has_mask=False)
        >>> SliceSpec(320, hybrid_kspace=True, target_from_kspace=False).kspace_shape(header)
        (4, 320, 372)
    """

    resolution: int
    hybrid_kspace: bool
    target_from_kspace: bool

    def kspace_shape(self, header: KspaceHeader) -> tuple[int, int, int]:
        """(coils, h or H, W) of one slice."""
        rows = header.image_size(self.resolution)[0] if self.hybrid_kspace else header.rows
        return header.coils, rows, header.columns

    def target_shape(self, header: KspaceHeader) -> tuple[int, int, int] | None:
        """(1, h, w) of one slice's target, None for a volume without one."""
        if header.target_key is None and not self.target_from_kspace:
            return None
        return 1, *header.image_size(self.resolution)

    def slice_bytes(self, header: KspaceHeader) -> int:
        """Bytes of one slice: complex64 k-space and float32 target."""
        target = self.target_shape(header)
        return 8 * int(np.prod(self.kspace_shape(header))) + (4 * int(np.prod(target)) if target else 0)


def read_slices(
    file: h5py.File, header: KspaceHeader, first: int, last: int, spec: SliceSpec
) -> tuple[Tensor, Tensor | None]:
    """Read slices ``first`` to ``last - 1`` of an open volume.

    Returns:
        k-space, complex64 (n, coils, h or H, W), and target, float32 (n, 1, h, w) or None.

    Raises:
        ConfigError: unreadable data, values that are not finite, or a target requested from k-space that is not fully
            sampled.
    """
    block = slice(first, last)
    stored = read_slice(file, "kspace", block)
    if not header.multicoil:
        stored = stored[:, None]
    kspace = torch.from_numpy(np.ascontiguousarray(stored, dtype=np.complex64))
    _refuse_nonfinite(header, "kspace", torch.view_as_real(kspace), first)
    size = header.image_size(spec.resolution)
    target: Tensor | None = None
    if header.target_key is not None:
        image = read_slice(file, header.target_key, block).astype(np.float32, copy=False)
        target = center_crop(torch.from_numpy(image), size).unsqueeze(1).contiguous()
        _refuse_nonfinite(header, header.target_key, target, first)
    elif spec.target_from_kspace:
        _refuse_undersampled(header, kspace)
        target = zero_filled(kspace, spec.resolution).unsqueeze(1)
    return to_hybrid_kspace(kspace, size[0]) if spec.hybrid_kspace else kspace, target


def _refuse_nonfinite(header: KspaceHeader, key: str, values: Tensor, first: int) -> None:
    """Refuse NaN and infinities: one such sample makes every pixel, and then every weight, not finite."""
    broken = ~torch.isfinite(values).flatten(1).all(dim=1)
    if broken.any():
        where = ", ".join(str(first + int(index)) for index in broken.nonzero()[:5])
        raise InputError(
            f"{header.path}: '{key}' holds NaN or infinite values in slice {where}; repair the file or take it out of "
            "the data list."
        )


def read_mask(file: h5py.File, header: KspaceHeader) -> Tensor | None:
    """The file's own sampling mask, float32 (W,), or None.

    Raises:
        ConfigError: unreadable, or not finite.
    """
    if not header.has_mask:
        return None
    mask = torch.from_numpy(read_slice(file, "mask", slice(None)).astype(np.float32))
    if not torch.isfinite(mask).all():
        raise InputError(f"{header.path}: 'mask' holds NaN or infinite values; repair the file.")
    return mask


def _refuse_undersampled(header: KspaceHeader, kspace: Tensor) -> None:
    """Refuse k-space with empty columns or a mask: its magnitude image is not a ground truth."""
    empty = int((kspace == 0).all(dim=-2).all(dim=-2).any(dim=0).sum())
    if header.has_mask or empty:
        found = "it carries a sampling mask" if header.has_mask else f"{empty} of its columns are empty"
        raise ConfigError(
            f"target_from_kspace: {header.path} is not fully sampled ({found}), so no target can be computed from it; "
            "set target_from_kspace: false and use the file for inference only."
        )
