# SPDX-License-Identifier: Apache-2.0
"""Dataset of the images in a folder (NIfTI files, DICOM series), to segment slice by slice with context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel import orientations

from fedmonai.data.cases.read import read_case_file, turn_to
from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.volume import Source
from fedmonai.data.folder import VolumeFolder
from fedmonai.errors import ConfigError
from fedmonai.io import InputPath
from fedmonai.transforms.slices import NORMALIZATIONS, normalize_volume, stack_neighbors

__all__ = ["SegmentationFolder"]


class SegmentationFolder(VolumeFolder):
    """Dataset of whole volumes, for inference, prepared as in :class:`~fedmonai.data.cases.dataset.CaseSliceDataset`.

    An item holds, for n slices: ``image`` float32 (n, 2 * context_slices + 1, H, W), every slice between its neighbors,
    normalized over the volume and turned to ``orientation``; ``volume``, ``source`` and ``kind`` of
    :class:`VolumeFolder`; ``affine``, float64 (4, 4), and ``shape`` of
    the input's own voxel grid, for DICOM (column, row, slice); ``orientation``.

    A NIfTI file that is named after another one (``Case00_segmentation`` beside ``Case00``) is its mask and left out.
    A DICOM series without positions is taken as axial slices from below, one unit apart.

    Args:
        data: folder, searched with its sub-folders, or one file.
        normalization: ``zscore``, ``minmax`` or ``none``, as in training.
        context_slices: neighbors on each side, as in training.
        orientation: of rows, columns and slices, as in training; see :func:`fedmonai.data.cases.read.read_case_file`.
        skip_damaged: go on without files that cannot be read instead of stopping before the first volume.

    Example:
        >>> import nibabel, numpy
        >>> from tempfile import TemporaryDirectory
        >>> volume = nibabel.Nifti1Image(numpy.arange(240, dtype=numpy.float32).reshape(8, 6, 5), numpy.eye(4))
        >>> with TemporaryDirectory() as folder:
        ...     nibabel.save(volume, f"{folder}/Case00.nii.gz")
        ...     item = SegmentationFolder(folder)[0]
        >>> item["volume"], tuple(item["image"].shape)
        ('Case00', (5, 3, 6, 8))

    Raises:
        ConfigError: nothing to segment, or a file that is unknown or damaged; the message names it.
    """

    kinds = ("nifti", "dicom")
    expected = "NIfTI or DICOM image"

    def __init__(
        self,
        data: InputPath,
        normalization: str = "zscore",
        context_slices: int = 1,
        orientation: str = "PLS",
        skip_damaged: bool = False,
    ) -> None:
        if normalization not in NORMALIZATIONS:
            allowed = ", ".join(NORMALIZATIONS)
            raise ConfigError(f"normalization: '{normalization}' is unknown; choose one of {allowed}.")
        super().__init__(data, skip_damaged)
        self.normalization = normalization
        self.context_slices = context_slices
        self.orientation = orientation

    def find(self, root: Path) -> tuple[list[Source], list[tuple[str, str]]]:
        """The images in a folder, without the masks beside them."""
        images, failed = super().find(root)
        return [source for source in images if not _is_mask(source, images)], failed

    def read(self, source: Source) -> dict[str, Any]:
        """The prepared slices and the geometry of one volume."""
        values, affine = _grid(source)
        turned = orientations.apply_orientation(values, turn_to(affine, self.orientation))
        image = torch.from_numpy(np.ascontiguousarray(turned).astype(np.float32))
        image = stack_neighbors(normalize_volume(image, self.normalization)[None], self.context_slices)
        return {
            "image": image.movedim(-1, 0).contiguous(),
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
