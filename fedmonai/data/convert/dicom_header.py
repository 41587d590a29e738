# SPDX-License-Identifier: Apache-2.0
"""The few header fields of one DICOM image that a conversion needs, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from fedmonai.data.convert.volume import InputError

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


@dataclass(frozen=True)
class SliceHeader:
    """One image of a series. Lengths are in mm; what the file does not say is None, for ``thickness`` and ``step`` 0.

    Attributes:
        origin: center of the first pixel, LPS+.
        orientation: direction of increasing column index, then of increasing row index, LPS+.
        spacing: distance of rows, then of columns.
        step: SpacingBetweenSlices.
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
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        values = {tag: header.get(tag) for tag in _TAGS}
    except Exception as error:  # pydicom raises a dozen kinds on damaged files, some only when a field is looked at
        raise InputError(f"damaged DICOM file ({(str(error).splitlines() or [''])[0][:120]})") from error
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
