# SPDX-License-Identifier: Apache-2.0
"""Segmented volumes as masks on the voxel grid of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine
from nibabel import orientations

from fedmonai.handlers.volume_results import VolumeResults
from fedmonai.handlers.whole_file import write_whole

__all__ = ["SaveSegmentation"]

RED = np.array([1.0, 0.15, 0.1])


class SaveSegmentation(VolumeResults):
    """Write the mask of every volume of an evaluator over a :class:`fedmonai.data.cases.folder.SegmentationFolder`, whole or not.

    ``<volume>_mask.nii.gz`` (uint8 class numbers, the largest logit wins) has the shape and the affine of its input,
    voxel by voxel; that of a DICOM series is (column, row, slice) in the patient space of the series.
    ``previews/<volume>.png`` shows the slice with the largest mask (the middle one if there is none): the image, and
    beside it the image with the outline. ``segmentations.csv`` lists all of it.

    Args:
        output_dir: folder of the results.
        preview: write the pictures.
        overwrite: replace results of an earlier run; without it an existing one is an error.
        image_channel: the channel of ``image`` that is the slice itself, between its neighbors.

    Raises:
        ConfigError: an existing result, a folder that cannot be written.
    """

    table = "segmentations.csv"
    columns = ("volume", "source", "columns", "rows", "slices", "foreground_voxels", "foreground_ml", "file")

    def __init__(self, output_dir: str, preview: bool = True, overwrite: bool = False, image_channel: int = 1) -> None:
        super().__init__(output_dir, preview, overwrite)
        self.image_channel = image_channel

    def path(self, volume: str, kind: str) -> Path:
        """See :meth:`VolumeResults.path`; the same for every kind."""
        return self.output_dir / f"{volume}_mask.nii.gz"

    def __call__(self, engine: Engine) -> None:
        """Write the volume of this iteration."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        mask = output["pred"].detach().argmax(dim=1).to("cpu").numpy().astype(np.uint8)  # (slices, rows, columns)
        path, affine = self.path(batch["volume"], batch["kind"]), batch["affine"].numpy()
        restored = _restored(mask.transpose(1, 2, 0), affine, batch["orientation"])
        if restored.shape != tuple(batch["shape"]):
            raise RuntimeError(f"{batch['source']}: the mask is {restored.shape}, the image {tuple(batch['shape'])}")
        write_whole(path, lambda partial: nib.save(_nifti(restored, affine), partial))
        if self.preview:
            images = output["image"][:, self.image_channel].detach().float().cpu().numpy()
            self.write_preview(batch["volume"], _outlined(images, mask > 0))
        count = int((restored > 0).sum())
        volume_ml = count * float(abs(np.linalg.det(affine[:3, :3]))) / 1000
        self.add_row(batch["volume"], batch["source"], *restored.shape, count, f"{volume_ml:.3f}", path.name)

    def found(self, row: dict[str, Any]) -> str:
        """See :meth:`VolumeResults.found`."""
        size = f"{row['foreground_ml']} ml" if row["foreground_voxels"] else "nothing found"
        return f"{row['slices']} slices, {size}"


def _restored(mask: np.ndarray, affine: np.ndarray, orientation: str) -> np.ndarray:
    """(rows, columns, slices) as the network saw them, back on the voxel grid that ``affine`` belongs to."""
    seen = orientations.axcodes2ornt(tuple(orientation))
    back = orientations.ornt_transform(seen, orientations.io_orientation(affine))
    return np.ascontiguousarray(orientations.apply_orientation(mask, back))


def _nifti(mask: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(mask, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def _outlined(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The slice with the largest mask: gray, and gray with the mask's outline in red, side by side (H, 2 W, 3)."""
    areas = masks.sum(axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else len(images) // 2
    low, high = np.percentile(images[index], (1, 99.5))
    gray = np.clip((images[index] - low) / max(float(high - low), 1e-6), 0.0, 1.0)
    plain = np.repeat(gray[..., None], 3, axis=-1)
    padded = np.pad(masks[index], 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outlined = np.where((masks[index] & ~inner)[..., None], RED, plain)
    return np.hstack([plain, outlined])
