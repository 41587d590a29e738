# SPDX-License-Identifier: Apache-2.0
"""Reconstructed volumes as files that a viewer opens in the right place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from ignite.engine import Engine

from fedmonai.errors import ConfigError
from fedmonai.handlers.volume_results import VolumeResults
from fedmonai.handlers.whole_file import write_whole

__all__ = ["SaveReconstruction"]

SUFFIXES = {"nifti": ".nii.gz", "hdf5": ".h5"}


class SaveReconstruction(VolumeResults):
    """Write every volume of an evaluator over a :class:`fedmonai.data.kspace.folder.ReconstructionFolder`, whole or not at all.

    ``<volume>_reconstruction.nii.gz`` lies in the patient space of its input: DICOM and HDF5 as (column, row, slice),
    NIfTI on the voxel grid of the input. ``<volume>_reconstruction.h5`` holds ``reconstruction`` float32 (slices, rows,
    columns) and the attributes ``affine`` (index (slice, row, column) to RAS+ mm), ``spacing`` (mm) and ``sampling``.
    ``previews/<volume>.png`` shows the middle slice: zero-filled, reconstruction and, where known, target and five
    times the error. ``reconstructions.csv`` lists all of it.

    Args:
        output_dir: folder of the results.
        output_format: ``nifti``, ``hdf5``, or ``auto`` (HDF5 for HDF5 input, NIfTI for the rest).
        preview: write the pictures.
        overwrite: replace results of an earlier run; without it an existing one is an error.

    Raises:
        ConfigError: an unknown format, an existing result, a folder that cannot be written.
    """

    table = "reconstructions.csv"
    columns = ("volume", "source", "slices", "rows", "columns", "sampling", "file")

    def __init__(
        self, output_dir: str, output_format: str = "auto", preview: bool = True, overwrite: bool = False
    ) -> None:
        if output_format not in ("auto", *SUFFIXES):
            raise ConfigError(f"output_format: '{output_format}' is unknown; choose auto, {' or '.join(SUFFIXES)}.")
        super().__init__(output_dir, preview, overwrite)
        self.output_format = output_format

    def path(self, volume: str, kind: str) -> Path:
        """See :meth:`VolumeResults.path`."""
        form = self.output_format
        if form == "auto":
            form = "hdf5" if kind == "hdf5" else "nifti"
        return self.output_dir / f"{volume}_reconstruction{SUFFIXES[form]}"

    def __call__(self, engine: Engine) -> None:
        """Write the volume of this iteration."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        images = {
            name: output[key][:, 0].detach().float().cpu().numpy()
            for key, name in (("image", "zero_filled"), ("pred", "reconstruction"), ("label", "target"))
            if output.get(key) is not None
        }
        volume = images["reconstruction"]
        path = self.path(batch["volume"], batch["kind"])
        affine = _cropped(batch["affine"], batch["kspace"][0].shape[-2:], volume.shape[1:])
        if path.suffix == ".h5":
            write_whole(path, lambda partial: _write_hdf5(partial, volume, affine, batch["sampling"]))
        else:
            write_whole(path, lambda partial: nib.save(_nifti(volume, affine, batch["orientation"]), partial))
        if self.preview:
            picture = _side_by_side(images)
            self.write_preview(batch["volume"], picture, cmap="gray", vmin=0.0, vmax=1.0)
        self.add_row(batch["volume"], batch["source"], *volume.shape, batch["sampling"], path.name)

    def found(self, row: dict[str, Any]) -> str:
        """See :meth:`VolumeResults.found`."""
        return f"{row['slices']} slices, {row['sampling']}"


def _cropped(affine: Any, plane: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray | None:
    """The affine of the central ``size`` rows and columns of ``plane``."""
    if affine is None:
        return None
    shift = np.eye(4)
    shift[1, 3], shift[2, 3] = (plane[0] - size[0]) // 2, (plane[1] - size[1]) // 2
    return affine.numpy() @ shift


def _nifti(volume: np.ndarray, affine: np.ndarray | None, orientation: str | None) -> nib.Nifti1Image:
    """(slice, row, column) to a NIfTI image (column, row, slice), turned to the axis order of a NIfTI input."""
    reverse = np.eye(4)[[2, 1, 0, 3]]
    image = nib.Nifti1Image(
        np.ascontiguousarray(volume.transpose(2, 1, 0)), np.eye(4) if affine is None else affine @ reverse
    )
    if orientation is not None and affine is not None:
        wanted = nib.orientations.axcodes2ornt(tuple(orientation))
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="aligned" if affine is None else "scanner")
    image.set_qform(image.affine, code="aligned" if affine is None else "scanner")
    return image


def _write_hdf5(path: str, volume: np.ndarray, affine: np.ndarray | None, sampling: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("reconstruction", data=volume, compression="gzip")
        file.attrs["sampling"] = sampling
        if affine is not None:
            file.attrs["affine"] = affine
            file.attrs["spacing"] = np.linalg.norm(affine[:3, :3], axis=0)


def _side_by_side(images: dict[str, np.ndarray]) -> np.ndarray:
    """The middle slice of each volume in one row, in [0, 1] of the brightest percentile."""
    middle = {name: volume[len(volume) // 2] for name, volume in images.items()}
    window = float(np.percentile(middle.get("target", middle["reconstruction"]), 99.5)) or 1.0
    panels = list(middle.values())
    if "target" in middle:
        panels.append(np.abs(middle["reconstruction"] - middle["target"]) * 5)
    return np.clip(np.hstack(panels) / window, 0.0, 1.0)
