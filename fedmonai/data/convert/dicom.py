# SPDX-License-Identifier: Apache-2.0
"""DICOM series as volumes: the header's geometry, gaps and duplicates, the pixel data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_rescale

from fedmonai.data.convert.volume import Volume, check_size
from fedmonai.data.damage import InputError, damage_named

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
    "SeriesDescription",
    "ProtocolName",
]


@dataclass(frozen=True)
class SliceHeader:
    """One image of a series. Lengths are in mm; a value that the file lacks is None, for ``thickness`` and ``step`` 0.

    Attributes:
        origin: center of the first pixel, LPS+.
        orientation: direction of increasing column index, then of increasing row index, LPS+.
        spacing: distance of rows, then of columns.
        step: SpacingBetweenSlices.
        description: free text on the series, from which only a contrast is taken; never written.
    """

    path: Path
    series: str
    study: str
    patient: str
    rows: int
    columns: int
    number: int | None
    origin: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float
    step: float
    description: str = ""

    @property
    def position(self) -> float | None:
        """Place along the slice normal."""
        if self.origin is None or self.orientation is None:
            return None
        return float(np.cross(self.orientation[:3], self.orientation[3:]) @ np.array(self.origin))


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix (files of a series often have no suffix)."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_slice_header(path: Path) -> SliceHeader:
    """Read the fields, no pixel data and no patient name.

    Raises:
        InputError: not a DICOM file, damaged, or not a single-frame MR magnitude image.
    """
    with damage_named("damaged DICOM file"):
        _refuse_compressed(path)
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        values = {tag: header.get(tag) for tag in _TAGS}
    if values["Modality"] not in (None, "", "MR"):
        raise InputError(f"DICOM of modality {values['Modality']}, expected MR")
    missing = [tag for tag in ("SeriesInstanceUID", "Rows", "Columns") if values[tag] in (None, "")]
    if missing:
        raise InputError(f"DICOM without {', '.join(missing)}")
    if (_numbers(values, "NumberOfFrames", 1) or (1,))[0] > 1:
        raise InputError("multi-frame DICOM; convert it to NIfTI first (e.g. with dcm2niix)")
    if (_numbers(values, "SamplesPerPixel", 1) or (1,))[0] != 1 or values["PhotometricInterpretation"] != "MONOCHROME2":
        raise InputError(f"DICOM with {values['PhotometricInterpretation']} pixels, expected MONOCHROME2")
    number = _numbers(values, "InstanceNumber", 1)
    return SliceHeader(
        path=path,
        series=str(values["SeriesInstanceUID"]),
        study=str(values["StudyInstanceUID"] or values["SeriesInstanceUID"]),
        patient=str(values["PatientID"] or ""),
        rows=int((_numbers(values, "Rows", 1) or (0,))[0]),
        columns=int((_numbers(values, "Columns", 1) or (0,))[0]),
        number=None if number is None else int(number[0]),
        origin=_numbers(values, "ImagePositionPatient", 3),
        orientation=_numbers(values, "ImageOrientationPatient", 6),
        spacing=_numbers(values, "PixelSpacing", 2),
        thickness=(_numbers(values, "SliceThickness", 1) or (0.0,))[0],
        step=(_numbers(values, "SpacingBetweenSlices", 1) or (0.0,))[0],
        description=str(values["SeriesDescription"] or values["ProtocolName"] or ""),
    )


def _refuse_compressed(path: Path) -> None:
    """Refuse compressed files before any decoder sees them: which decoders there are differs between installations."""
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is not None and (syntax.is_deflated or syntax.is_compressed):
        raise InputError(
            f"compressed DICOM ({syntax.name}); decompress it first (gdcmconv -w, dcmdjpeg, or dcm2niix to NIfTI)"
        )


def _numbers(values: dict[str, object], tag: str, count: int) -> tuple[float, ...] | None:
    """The finite numbers of a field, None if it is absent or empty."""
    value = values[tag]
    if value is None or value == "":
        return None
    try:
        numbers = np.atleast_1d(np.array(value, dtype=float))
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"damaged DICOM file ({tag} is {str(value)[:40]!r}, expected {count} number(s))")
    return tuple(float(number) for number in numbers)


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
    with damage_named(f"{path.name}: pixel data cannot be read"):
        dataset = pydicom.dcmread(path)
        return apply_rescale(dataset.pixel_array, dataset).astype(np.float32)


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
