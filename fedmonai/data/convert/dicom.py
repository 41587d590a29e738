# SPDX-License-Identifier: Apache-2.0
"""DICOM series: sorted by position, checked for gaps and duplicates, read as one volume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_rescale

from fedmonai.data.convert.dicom_header import SliceHeader, read_slice_header
from fedmonai.data.convert.volume import InputError, Volume, check_size

_SAME_PLACE_MM = 1e-3
_GAP = 1.5  # a step this many times the expected one is a gap
_NAMED_GAPS = 12


def read_series(paths: Iterable[Path]) -> Volume:
    """Read the files of one series as (slice, row, column), sorted along the slice normal.

    Raises:
        InputError: damaged or compressed pixel data, slices of different size or orientation, different images at one
            position (several echoes or time points in one series).
    """
    slices = [read_slice_header(path) for path in paths]
    for what in ("rows", "columns", "orientation", "spacing"):
        if len({_rounded(getattr(item, what)) for item in slices}) > 1:
            raise InputError(f"the series mixes images of different {what}; separate them")
    check_size((len(slices), slices[0].rows, slices[0].columns), 4, "the series")
    placed = all(item.position is not None for item in slices)
    if not placed and any(item.number is None for item in slices):
        raise InputError("neither ImagePositionPatient nor InstanceNumber tells the order of the slices")
    slices.sort(key=lambda item: ((item.position if placed else item.number) or 0, str(item.path)))
    slices, pixels, notes = _without_copies(slices, placed)
    if not placed:
        notes.append("no ImagePositionPatient: sorted by InstanceNumber, geometry unknown")
        return Volume(pixels, warnings=tuple(notes))
    positions = np.array([item.position for item in slices])
    notes += find_gaps(slices, positions)
    return Volume(pixels, affine=_affine(slices), positions=positions, warnings=tuple(notes))


def find_gaps(slices: list[SliceHeader], positions: np.ndarray) -> list[str]:
    """Name the places where slices are missing.

    The expected step is SpacingBetweenSlices; without it the median step if the instance numbers run without a hole,
    else SliceThickness. A step of more than 1.5 times that is a gap.
    """
    if len(slices) < 2:
        return []
    steps = np.diff(positions)
    expected = slices[0].step
    if expected <= 0:
        numbers = [item.number for item in slices if item.number is not None]
        consecutive = len(numbers) == len(slices) and bool((np.abs(np.diff(numbers)) == 1).all())
        unknown = slices[0].thickness <= 0
        expected = float(np.median(steps)) if consecutive or unknown else slices[0].thickness
    found = np.flatnonzero(steps > _GAP * expected)
    if not found.size:
        return []
    missing = np.round(steps[found] / expected).astype(int) - 1
    where = [
        f"{_where(slices[i])} and {_where(slices[i + 1])} ({count} missing)"
        for i, count in zip(found, missing, strict=True)
    ]
    more = f", and {len(where) - _NAMED_GAPS} more" if len(where) > _NAMED_GAPS else ""
    return [
        f"{len(where)} gaps, about {missing.sum()} slices missing at {expected:.3g} mm per slice: between "
        f"{'; '.join(where[:_NAMED_GAPS])}{more}"
    ]


def _without_copies(slices: list[SliceHeader], placed: bool) -> tuple[list[SliceHeader], np.ndarray, list[str]]:
    """Read the pixels and drop exact copies of a slice (the same export twice in a folder)."""
    kept: list[SliceHeader] = []
    pixels: list[np.ndarray] = []
    notes: list[str] = []
    for item in slices:
        image = _pixels(item.path)
        place = item.position if placed else item.number
        before = (kept[-1].position if placed else kept[-1].number) if kept else None
        if before is not None and place is not None and abs(place - before) < _SAME_PLACE_MM:
            if not np.array_equal(image, pixels[-1]):
                raise InputError(
                    f"different images at one position ({kept[-1].path.name}, {item.path.name}): several echoes or "
                    "time points in one series; separate them"
                )
            notes.append(f"duplicate slice left out: {item.path.name} equals {kept[-1].path.name}")
            continue
        kept.append(item)
        pixels.append(image)
    return kept, np.stack(pixels), notes


def _pixels(path: Path) -> np.ndarray:
    try:
        dataset = pydicom.dcmread(path)
        return apply_rescale(dataset.pixel_array, dataset).astype(np.float32)
    except Exception as error:  # pydicom and its decoders raise many kinds; each means this file cannot be read
        raise InputError(
            f"{path.name}: pixel data cannot be read ({(str(error).splitlines() or [''])[0][:160]})"
        ) from error


def _affine(slices: list[SliceHeader]) -> np.ndarray | None:
    """Index (slice, row, column) to RAS+ mm; DICOM's own axes are LPS+, hence the signs."""
    first, last = slices[0], slices[-1]
    if first.spacing is None or first.orientation is None or first.origin is None or last.origin is None:
        return None
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    step = np.cross(along_row, along_column) * (first.thickness or 1.0)
    if len(slices) > 1:
        step = (np.array(last.origin) - np.array(first.origin)) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, first.origin
    affine[:3, 1] = along_column * first.spacing[0]
    affine[:3, 2] = along_row * first.spacing[1]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _rounded(value: int | tuple[float, ...] | None) -> object:
    return tuple(round(number, 3) for number in value) if isinstance(value, tuple) else value


def _where(item: SliceHeader) -> str:
    return f"{item.path.name} at {item.position:.1f} mm"
