# SPDX-License-Identifier: Apache-2.0
"""Small generated volumes and series for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from dicom_files import write_dicom


@pytest.fixture
def make_volume() -> Callable[..., Path]:
    """Write an HDF5 volume with random k-space: make_volume(path, shape=(3, 8, 6), target=(8, 6), mask=None)."""

    def make(
        path: Path,
        shape: tuple[int, ...] = (3, 8, 6),
        target: tuple[int, int] | None = (8, 6),
        mask: np.ndarray | None = None,
        seed: int = 0,
        **attributes: Any,
    ) -> Path:
        rng = np.random.RandomState(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["kspace"] = (rng.randn(*shape) + 1j * rng.randn(*shape)).astype(np.complex64)
            if target is not None:
                key = "reconstruction_esc" if len(shape) == 3 else "reconstruction_rss"
                file[key] = rng.rand(shape[0], *target).astype(np.float32)
            if mask is not None:
                file["mask"] = mask
            for name, value in attributes.items():
                file.attrs[name] = value
        return path

    return make


@pytest.fixture
def make_slice() -> Callable[..., Path]:
    """Write one DICOM slice: make_slice(path, pixels, z=0.0, number=1, series="1.2.3", **tags)."""

    def make(
        path: Path, pixels: np.ndarray, z: float = 0.0, number: int = 1, series: str = "1.2.3", **tags: Any
    ) -> Path:
        own = {"SOPInstanceUID": f"{series}.{number}", "SeriesInstanceUID": series, "StudyInstanceUID": f"{series}.0"}
        own |= {"PatientID": "HOSPITAL-4711", "PatientName": "Doe^Jane", "InstanceNumber": number}
        return write_dicom(path, pixels, **{**own, "ImagePositionPatient": [-10.0, -20.0, z], **tags})

    return make


@pytest.fixture
def make_series(make_slice: Callable[..., Path]) -> Callable[..., list[Path]]:
    """Write a series of axial slices 2 mm apart; ``skip`` leaves slice numbers out: make_series(folder, count=5)."""

    def make(folder: Path, count: int = 5, skip: tuple[int, ...] = (), seed: int = 0, **tags: Any) -> list[Path]:
        rng = np.random.RandomState(seed)
        pixels = rng.randint(0, 900, (count, 6, 4))
        return [
            make_slice(folder / f"im{k:03d}.dcm", pixels[k], z=2.0 * k, number=k + 1, **tags)
            for k in range(count)
            if k not in skip
        ]

    return make
