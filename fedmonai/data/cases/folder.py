# SPDX-License-Identifier: Apache-2.0
"""Whatever images lie in a folder (NIfTI files, DICOM series) as 2.5-D volumes to segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.data
import numpy as np
import torch
from nibabel import orientations

from fedmonai.data.cases.read import read_case_file, turn_to
from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.scan import Naming, find_sources
from fedmonai.data.convert.volume import InputError, Source
from fedmonai.errors import ConfigError
from fedmonai.transforms.slices import NORMALIZATIONS, normalize_volume, stack_neighbors

__all__ = ["SegmentationFolder"]


KINDS = ("nifti", "dicom")


class SegmentationFolder(monai.data.Dataset):
    """One example = one whole volume, for inference; prepared as :class:`CaseSliceDataset` does it.

    An item holds, for n slices: ``image`` float32 (n, 2 * context_slices + 1, H, W), every slice between its neighbors,
    normalized over the volume and turned to ``orientation``; ``volume``, a name that is unique in the folder;
    ``source``, the path it came from; ``kind`` (``nifti`` or ``dicom``); ``affine``, float64 (4, 4), and ``shape`` of
    the input's own voxel grid, for DICOM (column, row, slice); ``orientation``.

    A NIfTI file that is named after another one (``Case00_segmentation`` beside ``Case00``) is its mask and left out.
    A DICOM series without positions is taken as axial slices from below, one unit apart.

    Args:
        data: folder, searched with its sub-folders, or one file.
        normalization: ``zscore``, ``minmax`` or ``none``, as in training.
        context_slices: neighbors on each side, as in training.
        orientation: of rows, columns and slices, as in training; see :func:`fedmonai.data.cases.read.read_case_file`.
        skip_damaged: go on without files that cannot be read instead of stopping before the first volume.

    Raises:
        ConfigError: nothing to segment, or a file that is unknown or damaged; the message names it.
    """

    def __init__(
        self,
        data: str,
        normalization: str = "zscore",
        context_slices: int = 1,
        orientation: str = "PLS",
        skip_damaged: bool = False,
    ) -> None:
        if normalization not in NORMALIZATIONS:
            allowed = ", ".join(NORMALIZATIONS)
            raise ConfigError(f"normalization: '{normalization}' is unknown; choose one of {allowed}.")
        found = find_sources(Path(data), Naming())
        foreign = [(source.label, f"is of kind {source.kind}") for source in found.sources if source.kind not in KINDS]
        failed = [*found.failed, *foreign]
        if failed and not skip_damaged:
            label, reason = failed[0]
            raise ConfigError(
                f"dataset_dir: {len(failed)} files in {data} cannot be used, first {label}: {reason}; give NIfTI or "
                "DICOM images, take the others out or set skip_damaged: true."
            )
        images = [source for source in found.sources if source.kind in KINDS]
        super().__init__([source for source in images if not _is_mask(source, images)])
        if not self.data:
            raise ConfigError(f"dataset_dir: there is no NIfTI or DICOM image in {data}.")
        self.skipped = [f"{label}: {reason}" for label, reason in failed]
        self.normalization = normalization
        self.context_slices = context_slices
        self.orientation = orientation

    def _transform(self, index: int) -> dict[str, Any]:
        source: Source = self.data[index]
        try:
            values, affine = _grid(source)
            turned = orientations.apply_orientation(values, turn_to(affine, self.orientation))
            image = torch.from_numpy(np.ascontiguousarray(turned).astype(np.float32))
            image = stack_neighbors(normalize_volume(image, self.normalization)[None], self.context_slices)
        except (InputError, ConfigError) as error:
            raise ConfigError(f"{source.label}: {error}; take it out of the folder.") from error
        return {
            "image": image.movedim(-1, 0).contiguous(),
            "volume": source.name,
            "source": source.label,
            "kind": source.kind,
            "affine": torch.from_numpy(affine),
            "shape": tuple(values.shape),
            "orientation": self.orientation,
        }


def _is_mask(source: Source, others: list[Source]) -> bool:
    if source.kind != "nifti":
        return False
    folder, stem = source.files[0].parent, _stem(source)
    stems = {_stem(other) for other in others if other.kind == "nifti" and other.files[0].parent == folder}
    return any(stem[:end] in stems for end, letter in enumerate(stem) if end and letter == "_")


def _stem(source: Source) -> str:
    return source.files[0].name.split(".nii")[0]


def _grid(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The values on the input's own voxel grid and its affine (index to RAS+ mm)."""
    if source.kind == "nifti":
        volume = read_case_file(source.files[0], orientation=None)
        return volume.values, np.asarray(volume.affine)
    series = read_series(source.files)
    values = np.asarray(series.data).transpose(2, 1, 0)
    if series.affine is None:
        return values, np.diag([-1.0, -1.0, 1.0, 1.0])
    return values, np.asarray(series.affine, np.float64) @ np.eye(4)[[2, 1, 0, 3]]
