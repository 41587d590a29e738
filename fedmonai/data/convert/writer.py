# SPDX-License-Identifier: Apache-2.0
"""One volume to one fastMRI-style HDF5 file, complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedmonai.data.atomic import atomic_path
from fedmonai.data.convert.kspace import PlaneSize, image_to_kspace, kspace_to_image, sampled
from fedmonai.data.convert.volume import InputError, Volume
from fedmonai.errors import ConfigError

Planes = Iterator[tuple[np.ndarray, np.ndarray | None]]


def write_volume(path: Path, volume: Volume, pad: int, max_size: int, attributes: dict[str, Any]) -> Volume:
    """Write ``kspace``, the target where there is one, ``mask`` where the volume was undersampled, and attributes.

    Attributes written: ``max`` and ``norm`` (L2) of the target, ``spacing`` (mm) and ``affine`` (index (slice, row,
    column) to RAS+ mm) where the geometry is known, and ``attributes``. Where slices are unevenly spaced, the dataset
    ``slice_positions`` (mm) holds the truth and the affine the average.

    Returns:
        The volume as written (its geometry follows padding and reduction).

    Raises:
        InputError: not finite, or zero everywhere; no file is left behind.
        ConfigError: the file cannot be written (disk full, no rights).
    """
    size = PlaneSize.plan(volume.plane, pad, max_size) if volume.domain == "image" else _unchanged(volume.plane)
    if volume.domain == "kspace" and volume.target is None and volume.mask is None:
        volume = replace(volume, mask=sampled(volume)[0])
    volume = replace(volume, affine=None if volume.affine is None else _placed(volume, size))
    try:
        with atomic_path(path) as partial, h5py.File(partial, "w") as file:
            _write_planes(file, volume, size)
            for key, value in attributes.items():
                file.attrs[key] = value
            if volume.affine is not None:
                file.attrs["affine"] = volume.affine
                file.attrs["spacing"] = volume.spacing
            if volume.positions is not None:
                file["slice_positions"] = volume.positions[volume.first : volume.last]
            if volume.mask is not None:
                file["mask"] = volume.mask
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"output: {path} cannot be written ({error}); nothing of it is left behind.") from error
    return volume


def _write_planes(file: h5py.File, volume: Volume, size: PlaneSize) -> None:
    count, coils = len(volume), volume.coils
    shape = (count, *size.final) if coils is None else (count, coils, *size.final)
    kspace = file.create_dataset("kspace", shape, np.complex64)
    target, largest, power = None, 0.0, 0.0
    for index, (plane, image) in enumerate(_planes(volume, size)):
        if not np.isfinite(plane).all() or (image is not None and not np.isfinite(image).all()):
            raise InputError(f"slice {volume.first + index} holds values that are not finite")
        kspace[index] = plane
        if image is None:
            continue
        if target is None:
            name = "reconstruction_esc" if coils is None else "reconstruction_rss"
            target = file.create_dataset(name, (count, *image.shape), np.float32)
        target[index] = image
        largest, power = max(largest, float(image.max())), power + float(np.square(image, dtype=np.float64).sum())
    if target is not None:
        if largest <= 0:
            raise InputError("the image is zero everywhere")
        file.attrs["max"], file.attrs["norm"] = largest, float(np.sqrt(power))


def _planes(volume: Volume, size: PlaneSize) -> Planes:
    """Yield (k-space, target or None) of each slice."""
    if volume.domain == "image":
        for plane in volume.planes():
            kspace, image = image_to_kspace(plane, size)
            yield kspace.numpy(), image.numpy()
    elif volume.target is not None:
        yield from zip(volume.planes(), volume.targets(), strict=True)
    else:
        for plane in volume.planes():
            yield plane, None if volume.mask is not None else kspace_to_image(plane).numpy()


def _placed(volume: Volume, size: PlaneSize) -> np.ndarray:
    first = np.eye(4)
    first[0, 3] = volume.first
    return size.affine(volume.affine @ first)  # type: ignore[operator]


def _unchanged(plane: tuple[int, int]) -> PlaneSize:
    return PlaneSize(plane, plane, plane)
