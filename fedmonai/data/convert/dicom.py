# SPDX-License-Identifier: Apache-2.0
"""DICOM series: told apart by SeriesInstanceUID, sorted by position, checked for gaps and duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_rescale

from fedmonai.data.convert.volume import InputError, Volume, check_size

_TAGS = [
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "Modality",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
]
_SAME_PLACE_MM = 1e-3
_GAP = 1.5  # a step this many times the expected one is a gap
_NAMED_GAPS = 12


@dataclass(frozen=True)
class Slice:
    """Header of one image of a series."""

    path: Path
    header: pydicom.Dataset
    position: float | None
    number: int | None


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix (files of a series often have no suffix)."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_headers(path: Path) -> pydicom.Dataset:
    """Read the few tags that are needed, no pixel data and no patient name.

    Raises:
        InputError: not a DICOM file, damaged, or not a single-frame MR magnitude image.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError, KeyError) as error:
        raise InputError(f"damaged DICOM file ({error})") from error
    if header.get("Modality", "MR") != "MR":
        raise InputError(f"DICOM of modality {header.Modality}, expected MR")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise InputError("multi-frame DICOM; convert it to NIfTI first (e.g. with dcm2niix)")
    needed = [tag for tag in ("SeriesInstanceUID", "Rows", "Columns") if header.get(tag) in (None, "")]
    if needed:
        raise InputError(f"DICOM without {', '.join(needed)}")
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation", "") != "MONOCHROME2":
        raise InputError(f"DICOM with {header.get('PhotometricInterpretation')} pixels, expected MONOCHROME2")
    return header


def group_series(headers: Iterable[tuple[Path, pydicom.Dataset]]) -> dict[str, list[Path]]:
    """Files of each series, keyed by SeriesInstanceUID."""
    series: dict[str, list[Path]] = defaultdict(list)
    for path, header in headers:
        series[str(header.SeriesInstanceUID)].append(path)
    return dict(series)


def read_series(paths: Iterable[Path]) -> Volume:
    """Read one series as (slice, row, column), sorted along the slice normal.

    Raises:
        InputError: damaged or compressed pixel data, slices of different size or orientation, different images at one
            position (several echoes or time points in one series).
    """
    slices = [_slice(path) for path in paths]
    headers = [item.header for item in slices]
    for tag in ("Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"):
        if len({_rounded(header.get(tag)) for header in headers}) > 1:
            raise InputError(f"the series mixes images of different {tag}; separate them")
    check_size((len(slices), int(headers[0].Rows), int(headers[0].Columns)), 4, "the series")
    placed = all(item.position is not None for item in slices)
    if not placed and any(item.number is None for item in slices):
        raise InputError("neither ImagePositionPatient nor InstanceNumber tells the order of the slices")
    slices.sort(key=lambda item: (item.position if placed else item.number, str(item.path)))
    slices, pixels, notes = _without_copies(slices, placed)
    if not placed:
        notes.append("no ImagePositionPatient: sorted by InstanceNumber, geometry unknown")
        return Volume(pixels, warnings=tuple(notes))
    positions = np.array([item.position for item in slices])
    notes += find_gaps(slices, positions)
    return Volume(pixels, affine=_affine(slices), positions=positions, warnings=tuple(notes))


def find_gaps(slices: list[Slice], positions: np.ndarray) -> list[str]:
    """Name the places where slices are missing.

    The expected step is SpacingBetweenSlices; without it the median step if the instance numbers run without a hole,
    else SliceThickness. A step of more than 1.5 times that is a gap.
    """
    if len(slices) < 2:
        return []
    steps = np.diff(positions)
    numbers = [item.number for item in slices]
    known = all(number is not None for number in numbers)
    increments = np.abs(np.diff(np.array(numbers, dtype=float))) if known else np.zeros(0)
    expected = float(slices[0].header.get("SpacingBetweenSlices") or 0)
    if expected <= 0:
        thickness = float(slices[0].header.get("SliceThickness") or 0)
        consecutive = known and bool((increments == 1).all())
        expected = float(np.median(steps)) if consecutive or thickness <= 0 else thickness
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


def _slice(path: Path) -> Slice:
    header = read_headers(path)
    number = header.get("InstanceNumber")
    origin, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    position = None
    if origin and orientation and len(origin) == 3 and len(orientation) == 6:
        normal = np.cross(np.array(orientation[:3], float), np.array(orientation[3:], float))
        position = float(normal @ np.array(origin, float))
        if not np.isfinite(position):
            raise InputError(f"{path.name}: ImagePositionPatient is not a number")
    return Slice(path, header, position, None if number in (None, "") else int(number))


def _without_copies(slices: list[Slice], placed: bool) -> tuple[list[Slice], np.ndarray, list[str]]:
    """Read the pixels and drop exact copies of a slice (the same export twice in a folder)."""
    kept: list[Slice] = []
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
        raise InputError(f"{path.name}: pixel data cannot be read ({str(error).splitlines()[0][:160]})") from error


def _affine(slices: list[Slice]) -> np.ndarray | None:
    """Index (slice, row, column) to RAS+ mm; DICOM's own axes are LPS+, hence the signs."""
    header = slices[0].header
    spacing = header.get("PixelSpacing")
    if spacing is None or len(spacing) != 2:
        return None
    orientation = np.array(header.ImageOrientationPatient, float)
    first = np.array(header.ImagePositionPatient, float)
    if len(slices) > 1:
        step = (np.array(slices[-1].header.ImagePositionPatient, float) - first) / (len(slices) - 1)
    else:
        step = np.cross(orientation[:3], orientation[3:]) * float(header.get("SliceThickness") or 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = orientation[3:] * float(spacing[0])
    affine[:3, 2] = orientation[:3] * float(spacing[1])
    affine[:3, 3] = first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _rounded(value: object) -> object:
    return tuple(round(float(v), 3) for v in value) if isinstance(value, (list, pydicom.multival.MultiValue)) else value


def _where(item: Slice) -> str:
    return f"{item.path.name} at {item.position:.1f} mm"
