# SPDX-License-Identifier: Apache-2.0
"""Writing a converted volume as HDF5, and the summary of a conversion."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedmonai.data.convert.readers import PlaneSize, kspace_and_target, kspace_to_image, sampled
from fedmonai.data.convert.volume import Volume
from fedmonai.data.damage import InputError
from fedmonai.io import atomic_path


def write_volume(path: Path, volume: Volume, pad: int, max_size: int, attributes: dict[str, Any]) -> Volume:
    """Write ``kspace``, the target where there is one, ``mask`` where the volume was undersampled, and attributes.

    Attributes written: ``max`` and ``norm`` (L2) of the target, ``spacing`` (mm) and ``affine`` (index (slice, row,
    column) to RAS+ mm) where the geometry is known, and ``attributes``. Where slices are unevenly spaced, the dataset
    ``slice_positions`` (mm) holds their positions and the affine the average spacing.

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
    return volume


def _write_planes(file: h5py.File, volume: Volume, size: PlaneSize) -> None:
    count, coils = len(volume), volume.coils
    shape = (count, *size.final) if coils is None else (count, coils, *size.final)
    kspace = file.create_dataset("kspace", shape, np.complex64)
    target, largest, power = None, 0.0, 0.0
    for index, (plane, image) in enumerate(kspace_and_target(volume, size)):
        if image is None and volume.mask is None:  # fully sampled
            image = kspace_to_image(plane).numpy()
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


def _placed(volume: Volume, size: PlaneSize) -> np.ndarray:
    first = np.eye(4)
    first[0, 3] = volume.first
    return size.affine(volume.affine @ first)  # type: ignore[operator]


def _unchanged(plane: tuple[int, int]) -> PlaneSize:
    return PlaneSize(plane, plane, plane)


ORDER = ("checked", "written", "kept", "skipped", "failed")


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input.

    Attributes:
        status: ``checked``, ``written``, ``kept`` (there already, by --resume), ``skipped`` (a copy of another
            input, a label map, another contrast), or ``failed`` (unknown or damaged).
        label: the input.
        result: the output file, or why there is none.
        notes: facts and warnings, one per line.
    """

    status: str
    label: str
    result: str
    notes: tuple[str, ...] = ()


@dataclass
class Summary:
    """Outcomes of all inputs; ``str(summary)`` is the report, ``exit_code`` is 1 if any failed or none was used.

    Attributes:
        found: lines on subjects and the rules that found them.
        problems: what prevents the conversion as requested.
        left_out: number of files that patterns of the user leave out.

    Example:
        >>> summary = Summary()
        >>> summary.add("failed", "a.nii", "is empty")
        >>> print(summary)
        failed: a.nii -> is empty
        summary: 1 failed
        >>> summary.exit_code
        1
    """

    outcomes: list[Outcome] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, status: str, label: str, result: str, notes: tuple[str, ...] | list[str] = ()) -> None:
        self.outcomes.append(Outcome(status, label, result, tuple(notes)))

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 if there was an image, no input failed and there are no ``problems``, else 1."""
        taken = self.count("checked") + self.count("written") + self.count("kept")
        return int(not taken or self.count("failed") > 0 or bool(self.problems))

    def __str__(self) -> str:
        lines = []
        for outcome in sorted(self.outcomes, key=lambda outcome: ORDER.index(outcome.status)):
            lines.append(f"{outcome.status}: {outcome.label} -> {outcome.result}")
            lines += [f"    {note}" for note in outcome.notes]
        if self.ignored:
            suffixes = Counter("." + name.rsplit(".", 1)[-1] if "." in name else name for name in self.ignored)
            listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
            lines.append(f"ignored (no images): {listed}")
        if self.left_out:
            lines.append(f"left out by --include and --exclude: {self.left_out} files")
        lines += self.found
        counts = [f"{self.count(status)} {status}" for status in ORDER if self.count(status)]
        return "\n".join([*lines, f"summary: {', '.join(counts) or 'no volumes found'}", *self.hints, *self.problems])
