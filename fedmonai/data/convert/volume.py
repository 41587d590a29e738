# SPDX-License-Identifier: Apache-2.0
"""Volumes found in a folder and read, before they are written as HDF5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.data.cache import fits_in_memory
from fedmonai.data.damage import InputError, damage_named
from fedmonai.data.kspace.read import MAX_COILS, MAX_SIDE, MAX_SLICES

PLANE_AXES = ("row", "column")


@dataclass(frozen=True)
class Source:
    """One volume found in the input folder.

    Attributes:
        kind: ``dicom``, ``nifti``, ``array`` (.npy, .mat) or ``hdf5``.
        label: how reports name it, e.g. the path relative to the input folder; never written to a file.
        files: its files, for DICOM those of one series.
        subject: pseudonym of the subject.
        name: stem of the output file.
        notes: what was noticed while searching, e.g. that no patient id could be used.
        rule: how the subject was found, for reports.
        identity: what the pseudonym was made from, for the person at the screen; never written to a file.
        contrast: contrast that names or header state (``T1``, ``FLAIR``, ...), None where they state none.
    """

    kind: str
    label: str
    files: tuple[Path, ...]
    subject: str
    name: str
    notes: tuple[str, ...] = ()
    rule: str = ""
    identity: str = ""
    contrast: str | None = None


@dataclass(frozen=True)
class Volume:
    """Image or k-space of one source, not yet padded or transformed.

    Attributes:
        data: (slices, rows, columns) or (slices, coils, rows, columns), real or complex; anything that can be indexed
            by slice (array, memory map, HDF5 dataset).
        domain: ``image`` or ``kspace``.
        affine: index (slice, row, column) to RAS+ mm, 4x4, or None if unknown.
        positions: mm of each slice along the slice normal, or None.
        target: given ground truth (slices, rows, columns), or None.
        mask: given column sampling mask, or None.
        acquisition: fastMRI's attribute; a protocol code, never free text of a header.
        warnings: what a reader noticed: gaps, duplicates, assumptions.
    """

    data: Any
    domain: str = "image"
    affine: np.ndarray | None = None
    positions: np.ndarray | None = None
    target: Any = None
    mask: np.ndarray | None = None
    acquisition: str | None = None
    first: int = 0
    last: int = -1
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.last < 0:
            object.__setattr__(self, "last", self.data.shape[0])

    def __len__(self) -> int:
        """Number of slices in use, ``first`` to ``last - 1``."""
        return self.last - self.first

    @property
    def plane(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.data.shape[-2], self.data.shape[-1]

    @property
    def coils(self) -> int | None:
        """Number of coils, None without a coil axis."""
        return self.data.shape[1] if len(self.data.shape) == 4 else None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(slice, row, column) spacing in mm."""
        if self.affine is None:
            return None
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    def planes(self) -> Iterator[np.ndarray]:
        """The slices in use, one at a time, complex64 or float32."""
        for index in range(self.first, self.last):
            plane = _read(self.data, index)
            yield plane.astype(np.complex64 if plane.dtype.kind == "c" else np.float32, copy=False)

    def targets(self) -> Iterator[np.ndarray]:
        """The given ground truth of the slices in use."""
        for index in range(self.first, self.last):
            yield _read(self.target, index).astype(np.float32, copy=False)

    def select(self, first: int, last: int) -> Volume:
        """The slices ``first`` to ``last - 1`` of those in use; indices beyond the end are cut."""
        start = min(self.first + first, self.last)
        return replace(self, first=start, last=min(self.first + last, self.last))


def _read(data: Any, index: int) -> np.ndarray:
    with damage_named(f"slice {index} cannot be read"):
        return np.asarray(data[index])


#: an image has more gray levels than this; a label map (BraTS: 4, OASIS: 35) has fewer
MAX_LABELS = 40


def label_values(volume: Volume) -> list[int] | None:
    """The values of a volume that looks like a label map: few, and all of them whole; None for an image or k-space."""
    found: set[float] = set()
    if volume.domain == "kspace":
        return None
    for plane in volume.planes():
        if plane.dtype.kind == "c":
            return None
        found.update(np.unique(plane).tolist())
        if len(found) > MAX_LABELS or not all(value.is_integer() for value in found):
            return None
    return sorted(int(value) for value in found) if len(found) > 1 else None


def check_size(shape: tuple[int, ...], itemsize: int, what: str) -> None:
    """Refuse a declared (slices, [coils,] rows, columns) that no scanner makes or that memory cannot hold.

    Raises:
        InputError: before anything is allocated.
    """
    limits = (MAX_SLICES, MAX_COILS, MAX_SIDE, MAX_SIDE) if len(shape) == 4 else (MAX_SLICES, MAX_SIDE, MAX_SIDE)
    if len(shape) not in (3, 4) or any(not 1 <= n <= limit for n, limit in zip(shape, limits, strict=True)):
        raise InputError(f"{what} has shape {shape}; at most {limits} is accepted")
    needed = int(np.prod(shape, dtype=np.int64)) * itemsize
    if not fits_in_memory(needed):
        raise InputError(f"{what} declares {needed:,} bytes, more than the memory that is free")


def arrange(data: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """Bring an array with named axes to (slice, row, column) or (slice, coil, row, column)."""
    if len(axes) != data.ndim:
        raise InputError(f"the array has shape {data.shape} but --axes names {len(axes)} axes: {','.join(axes)}")
    order = [axes.index(name) for name in ("slice", "coil", *PLANE_AXES) if name in axes]
    arranged = data.transpose(order)
    return arranged if "slice" in axes else arranged[None]
