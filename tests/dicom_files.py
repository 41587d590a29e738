# SPDX-License-Identifier: Apache-2.0
"""DICOM files of one slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"


def write_dicom(path: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """Write one MR slice of 16 bits per pixel; ``tags`` win over what it has, and None leaves a tag out."""
    instance = str(tags.pop("SOPInstanceUID", "1.2.3.1"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MR_IMAGE_STORAGE, instance
    meta.TransferSyntaxUID = syntax
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR_IMAGE_STORAGE, instance
    dataset.Modality, dataset.SeriesInstanceUID, dataset.InstanceNumber = "MR", "1.2.3", 1
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.5, 0.25], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient, dataset.SliceThickness = [0, 0, 0], 2
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
