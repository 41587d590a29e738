# SPDX-License-Identifier: Apache-2.0
"""Readers of source files: NIfTI, .npy and .mat arrays, HDF5, raw k-space; and the choice among them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from fedmonai.data.cache import fits_in_memory
from fedmonai.data.cases.read import missing_voxels
from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.volume import Source, Volume, arrange, check_size
from fedmonai.data.damage import InputError, damage_named, without_path
from fedmonai.data.kspace.read import holds, open_handle, open_volume, own_dataset, read_header, subject_of
from fedmonai.errors import ConfigError
from fedmonai.matlab import mat_arrays
from fedmonai.names import shown
from fedmonai.transforms.kspace import center_crop, coil_magnitude, fft2c, ifft2c

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


def open_source(
    source: Source,
    axis: int = 2,
    domain: str = "image",
    axes: tuple[str, ...] | None = None,
    key: str | None = None,
    frame: int | None = None,
) -> AbstractContextManager[Volume]:
    """Open a source as a volume; leave the context only when its slices have been read.

    Args:
        source: a DICOM series, a NIfTI file, an array file or a fastMRI file.
        axis: voxel axis of a NIfTI image that counts the slices.
        domain: ``image`` or ``kspace``, of ``.npy`` and ``.mat`` arrays.
        axes: names of the axes of such an array; None = by rank.
        key: variable of a ``.mat`` file; None = the only numeric one.
        frame: which volume of a NIfTI series over time or echoes.

    Raises:
        InputError: damaged, or not what its suffix says.
    """
    path = source.files[0]
    if source.kind == "dicom":
        return nullcontext(read_series(source.files))
    if source.kind == "nifti":
        return nullcontext(read_nifti(path, axis, frame))
    if source.kind == "hdf5":
        return read_fastmri(path)
    return read_array(path, domain, axes, key)


@contextmanager
def read_array(path: Path, domain: str, axes: tuple[str, ...] | None, key: str | None) -> Iterator[Volume]:
    """Open a ``.npy`` or ``.mat`` file as a volume.

    Args:
        domain: ``image`` or ``kspace``.
        axes: names of the array's axes out of slice, coil, row, column; None = by rank, which k-space of more than two
            axes refuses.
        key: variable of a ``.mat`` file; None = the only numeric one.

    Raises:
        InputError: damaged file, pickled objects, no numeric array of 2 to 4 dimensions, several candidates.
    """
    data = _read_npy(path) if path.suffix.lower() == ".npy" else _read_mat(path, key)
    if data.dtype.kind not in "biufc":
        raise InputError(f"array of type {data.dtype}, expected numbers")
    if domain == "kspace" and axes is None and data.ndim > 2:
        raise InputError(
            f"k-space of shape {data.shape}: an array does not say which axis counts coils and which slices; name them "
            f"with --axes, such as {','.join(_likely_axes(data.shape))}"
        )
    by_rank = NPY_AXES if path.suffix.lower() == ".npy" else MAT_AXES
    names = axes or by_rank.get(data.ndim)
    if names is None:
        raise InputError(f"array of shape {data.shape}, expected 2 to 4 dimensions; name them with --axes")
    arranged = arrange(data, names)
    check_size(arranged.shape, arranged.dtype.itemsize, "the array")
    note = () if axes else (f"axes taken as {','.join(names)} (--axes changes that)",)
    if domain == "image" and arranged.dtype.kind == "c":
        note = (*note, "complex values taken as images; k-space needs --domain kspace")
    yield Volume(arranged, domain=domain, warnings=note)


def _likely_axes(shape: tuple[int, ...]) -> list[str]:
    """The two longest axes as row and column, of the others the longest as coil."""
    order = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    names = dict(zip([*sorted(order[:2]), *order[2:4]], ("row", "column", "coil", "slice"), strict=False))
    return [names.get(axis, "?") for axis in range(len(shape))]


def _read_npy(path: Path) -> np.ndarray:
    """Map the file: a header that declares more than the file holds is refused without allocating it."""
    with damage_named("damaged .npy file, or one with Python objects"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_mat(path: Path, key: str | None) -> np.ndarray:
    with damage_named("damaged .mat file"):
        if h5py.is_hdf5(path):
            return _read_mat73(path, key)
        arrays = {array.name: array for array in mat_arrays(path)}
        shapes = {name: array.shape for name, array in arrays.items()}
        name = _choose(shapes, key)
        _refuse_huge(name, shapes[name])
        return arrays[name].read()


def _read_mat73(path: Path, key: str | None) -> np.ndarray:
    """MATLAB v7.3 is HDF5 with reversed axes and complex numbers as (real, imag) records."""
    with h5py.File(path, "r") as file:
        shapes, refused = {}, {}
        for name in file:
            try:
                shapes[name] = own_dataset(file, name).shape[::-1]  # type: ignore[union-attr]
            except ConfigError as error:  # a group, a text, a link
                refused[name] = without_path(error, path)
        shapes = {name: shape for name, shape in shapes.items() if len(shape) >= 2}
        if refused and (key in refused or not shapes):
            raise InputError(refused.get(str(key)) or next(iter(refused.values())))
        name = _choose(shapes, key)
        _refuse_huge(name, shapes[name])
        data = file[name][()]
    if data.dtype.names:
        data = (data["real"] + 1j * data["imag"]).astype(np.complex64)
    return data.T


def _refuse_huge(name: str, shape: tuple[int, ...]) -> None:
    """Both formats compress: a small file can declare any size."""
    if not fits_in_memory(math.prod(shape) * 16):
        raise InputError(f"variable '{name}' declares shape {shape}, more than the memory that is free")


def _choose(shapes: dict[str, tuple[int, ...]], key: str | None) -> str:
    if key is not None:
        if key not in shapes:
            raise InputError(f"no numeric variable {shown(key)}; found {_listed(shapes)}")
        return key
    candidates = [name for name, shape in shapes.items() if len(shape) >= 2 and min(shape[:2]) > 1]
    if len(candidates) != 1:
        raise InputError(f"{len(candidates)} arrays in the file ({_listed(shapes)}); choose one with --key")
    return candidates[0]


def _listed(names: Iterable[str]) -> str:
    """Names read from a file, which may hold any characters."""
    found = sorted(names)
    more = ", ..." if len(found) > 5 else ""
    return ", ".join(name if name.isidentifier() else ascii(name)[:40] for name in found[:5]) + more or "none"


_CODE = re.compile(r"[A-Za-z0-9_]{1,32}")


@contextmanager
def read_fastmri(path: Path) -> Iterator[Volume]:
    """Open a fastMRI file as a volume; its ISMRMRD header, which may identify a person, is not taken over.

    Raises:
        InputError: not HDF5, or not of fastMRI's form.
    """
    with ExitStack() as files:
        try:
            header = read_header(path)
            file = files.enter_context(open_handle(path))
            with damage_named("damaged HDF5 file"):
                volume = Volume(
                    file["kspace"],
                    domain="kspace",
                    affine=_hdf5_affine(file),
                    target=None if header.target_key is None else file[header.target_key],
                    mask=np.asarray(file["mask"], np.float32) if header.has_mask else None,
                    acquisition=_code(file.attrs.get("acquisition")),
                    warnings=("the ISMRMRD header is left out",) if holds(file, "ismrmrd_header") else (),
                )
        except ConfigError as error:
            raise InputError(without_path(error, path)) from error
        if volume.mask is not None and not np.isfinite(volume.mask).all():
            raise InputError("'mask' holds NaN or infinite values")
        yield volume


def raw_facts(path: Path) -> tuple[str | None, str | None]:
    """Subject id and acquisition of a fastMRI file (attributes), None where missing or in an unreadable file."""
    try:
        with open_volume(path) as file:
            return subject_of(file), _code(file.attrs.get("acquisition"))
    except ConfigError:
        return None, None  # reading the volume will report what is wrong with it


def _code(value: object) -> str | None:
    return str(value) if value is not None and _CODE.fullmatch(str(value)) else None


def _hdf5_affine(file: h5py.File) -> np.ndarray | None:
    value = file.attrs.get("affine")
    return np.asarray(value, float) if value is not None and np.shape(value) == (4, 4) else None


_FULLY_SAMPLED = 0.99  # scanners leave a few exact zeros in fully sampled k-space


@dataclass(frozen=True)
class PlaneSize:
    """Size of a slice before and after: reduced to ``reduced`` pixels, then zero-padded to ``final``.

    Args:
        original: (rows, columns) of the input.
        pad: smallest rows and columns; smaller images are zero-padded around the center, 0 = never.
        max_size: largest side; larger images lose resolution, not field of view, 0 = keep every size.

    Example:
        >>> PlaneSize.plan((512, 400), pad=256, max_size=256)
        PlaneSize(original=(512, 400), reduced=(256, 200), final=(256, 256))
    """

    original: tuple[int, int]
    reduced: tuple[int, int]
    final: tuple[int, int]

    @classmethod
    def plan(cls, original: tuple[int, int], pad: int, max_size: int) -> PlaneSize:
        factor = min(1.0, max_size / max(original)) if max_size else 1.0
        reduced = round(original[0] * factor), round(original[1] * factor)
        return cls(original, reduced, (max(pad, reduced[0]), max(pad, reduced[1])))

    def affine(self, affine: np.ndarray) -> np.ndarray:
        """The affine of the resized slices; the central pixel ``size // 2`` stays in place under the reduction."""
        change = np.eye(4)
        for axis, (n, m, p) in enumerate(zip(self.original, self.reduced, self.final, strict=True), start=1):
            change[axis, axis] = n / m
            change[axis, 3] = n // 2 - ((p - m) // 2 + m // 2) * n / m
        return affine @ change


def image_to_kspace(image: np.ndarray, size: PlaneSize) -> tuple[Tensor, Tensor]:
    """One image slice to k-space, by the centered orthonormal 2-D FFT.

    A magnitude image gets a zero imaginary part. The reduction keeps the central part of k-space, which is what a scan
    of lower resolution would have measured, and keeps the intensities.

    Args:
        image: real or complex (rows, columns) or (coils, rows, columns).

    Returns:
        complex64 k-space of the same rank and the float32 magnitude, root-sum-of-squares over coils: (rows, columns).
    """
    data = torch.from_numpy(np.array(image, dtype=np.complex64))
    if size.reduced != size.original:
        scale = float(np.sqrt(np.prod(size.reduced) / np.prod(size.original)))
        data = ifft2c(center_crop(fft2c(data), size.reduced)) * scale
    if size.final != size.reduced:
        (rows, columns), (h, w) = size.final, size.reduced
        top, left = (rows - h) // 2, (columns - w) // 2
        data = pad_tensor(data, (left, columns - w - left, top, rows - h - top))
    return fft2c(data), coil_magnitude(data if data.ndim == 3 else data[None])


def kspace_and_target(volume: Volume, size: PlaneSize) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield k-space and, where it is known, the target of each slice in use; images are transformed."""
    if volume.domain == "image":
        for plane in volume.planes():
            kspace, image = image_to_kspace(plane, size)
            yield kspace.numpy(), image.numpy()
    elif volume.target is not None:
        yield from zip(volume.planes(), volume.targets(), strict=True)
    else:
        yield from ((plane, None) for plane in volume.planes())


def kspace_to_image(kspace: np.ndarray) -> Tensor:
    """Root-sum-of-squares magnitude (rows, columns) of one k-space slice."""
    data = torch.from_numpy(np.array(kspace, dtype=np.complex64))
    return coil_magnitude(ifft2c(data if data.ndim == 3 else data[None]))


def sampled(volume: Volume) -> tuple[np.ndarray | None, float]:
    """Find the sampling of a k-space volume: column mask (None if fully sampled) and share of nonzero samples.

    A column counts as sampled if any of its samples in any slice and coil is not zero. k-space counts as fully sampled
    if no column is empty and at least 99 % of the samples are there. The mask is exact for Cartesian column sampling;
    for 2-D patterns it only bounds the pattern, whose zeros stay in the k-space itself.
    """
    seen: Any = None
    for plane in volume.planes():
        present = (plane != 0).any(axis=0) if plane.ndim == 3 else plane != 0
        seen = present if seen is None else seen | present
    if seen is None or not seen.any():
        raise InputError("k-space is zero everywhere")
    columns, share = seen.any(axis=0), float(seen.mean())
    if columns.all() and share >= _FULLY_SAMPLED:
        return None, share
    return columns.astype(np.float32), share


def read_nifti(path: Path, axis: int = 2, frame: int | None = None) -> Volume:
    """Read a 3-D NIfTI image, or one frame of a series of them.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        axis: voxel axis that counts the slices. Of the other two the first becomes the column and the second the row,
            flipped where needed so that row 0 is anterior or superior, as viewers show it. The affine follows every
            permutation and flip.
        frame: which volume of a 4-D file (over time, or of echoes); a 3-D file has frame 0.

    Raises:
        InputError: damaged file, not one 3-D image and no ``frame``, a frame that is not there, or larger
            than any scanner makes.
    """
    with damage_named("damaged NIfTI file"):
        image: Any = nib.load(path)
        shape = tuple(int(size) for size in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        frames = shape[3] if len(shape) == 4 else 1
        if len(shape) == 4 and frame is None:
            raise InputError(
                f"NIfTI of {frames} volumes (over time, or echoes); choose one with --frame 0 to {frames - 1}"
            )
        if len(shape) not in (3, 4) or image.get_data_dtype().kind not in "biufc":
            raise InputError(
                f"NIfTI of shape {image.shape} and type {image.get_data_dtype()}, expected a 3-D image of numbers, "
                "or a series of them"
            )
        if not 0 <= (frame or 0) < frames:
            raise InputError(
                f"NIfTI of {frames} volumes has no frame {frame}; choose one with --frame 0 to {frames - 1}"
            )
        shape = shape[:3]
        order = [axis, *sorted({0, 1, 2} - {axis}, reverse=True)]
        check_size(tuple(shape[k] for k in order), 8, "the NIfTI image")
        missing = missing_voxels(image, path)
        if missing:
            raise InputError(f"the NIfTI image {missing}")
        values = image.dataobj[..., frame or 0] if frames > 1 else np.asanyarray(image.dataobj)
        data = np.asanyarray(values).reshape(shape).transpose(order)
        data, affine = _upright(data, np.asarray(image.affine, float)[:, [*order, 3]])
        return Volume(data.astype(np.complex64 if data.dtype.kind == "c" else np.float32), affine=affine)


def _upright(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip the rows where their index runs to anterior, superior or right."""
    codes = nib.aff2axcodes(affine)
    if codes[1] in ("A", "S", "R"):
        flip = np.eye(4)
        flip[1, 1], flip[1, 3] = -1, data.shape[1] - 1
        data, affine = data[:, ::-1], affine @ flip
    return data, affine
