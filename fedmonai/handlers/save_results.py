# SPDX-License-Identifier: Apache-2.0
"""Handlers that save results of an inference: reconstructions, segmentations, masks, and their table."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from nibabel import orientations
from PIL import Image

from fedmonai.errors import ConfigError
from fedmonai.io import OutputPath, atomic_path

__all__ = ["SaveMasks", "SaveReconstruction", "SaveSegmentation", "VolumeResults"]


class VolumeResults(ABC):
    """Handler that writes one file per iteration of an evaluator over a folder of volumes; no file is ever incomplete.

    Before the first iteration it refuses results of an earlier run; after the last one it writes the table and prints
    a line per file, and one per file that the folder's data set left out (its ``skipped``).

    Args:
        output_dir: folder of the results.
        preview: write ``previews/<volume>.png``.
        overwrite: replace results of an earlier run; without it an existing one is an error.

    Raises:
        ConfigError: an existing result, a folder that cannot be written.
    """

    table: str  #: file name of the table
    columns: tuple[str, ...]  #: of the table

    def __init__(self, output_dir: OutputPath, preview: bool, overwrite: bool) -> None:
        self.output_dir = Path(output_dir)
        self.preview = preview
        self.overwrite = overwrite
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    @abstractmethod
    def __call__(self, engine: Engine) -> None:
        """Write the volume of this iteration."""

    @abstractmethod
    def path(self, volume: str, kind: str) -> Path:
        """File of a volume's result, by the kind of its input."""

    @abstractmethod
    def found(self, row: dict[str, Any]) -> str:
        """Note in brackets on the printed line of a row."""

    def add_row(self, *values: Any) -> None:
        """Note a line of the table."""
        self.rows.append(dict(zip(self.columns, values, strict=True)))

    def write_preview(self, volume: str, picture: np.ndarray, **options: Any) -> None:
        """Write a picture in [0, 1], (H, W) with a color map in ``options`` or (H, W, 3)."""
        place = self.output_dir / "previews" / f"{volume}.png"
        with atomic_path(place) as partial:
            imsave(partial, picture, **options)

    def _begin(self, engine: Engine) -> None:
        self.rows = []
        for source in getattr(_dataset(engine), "data", None) or []:
            path = self.path(source.name, source.kind)
            if path.exists() and not self.overwrite:
                raise ConfigError(f"output_dir: {path} exists; choose another folder or set overwrite: true.")

    def _finish(self, engine: Engine) -> None:
        self._write_table(self.output_dir / self.table)
        for row in self.rows:
            print(f"{row['source']} ({self.found(row)}) -> {self.output_dir / row['file']}")
        for reason in getattr(_dataset(engine), "skipped", None) or []:
            print(f"left out: {reason}")

    def _write_table(self, table: Path) -> None:
        """The rows of this run, after those of earlier runs whose ``file`` is still valid."""
        new = {row["file"] for row in self.rows}
        with atomic_path(table) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            if table.exists():
                with open(table, newline="", encoding="utf-8") as earlier:
                    writer.writerows(row for row in csv.DictReader(earlier) if row["file"] not in new)
            writer.writerows(self.rows)


def _dataset(engine: Engine) -> Any:
    return getattr(engine.state.dataloader, "dataset", None)


SUFFIXES = {"nifti": ".nii.gz", "hdf5": ".h5"}


class SaveReconstruction(VolumeResults):
    """Write every volume of a :class:`~fedmonai.data.kspace.folder.ReconstructionFolder` as one complete file.

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

    Example:
        >>> SaveReconstruction("results").path("head", kind="dicom").as_posix()
        'results/head_reconstruction.nii.gz'

    Raises:
        ConfigError: an unknown format, an existing result, a folder that cannot be written.
    """

    table = "reconstructions.csv"
    columns = ("volume", "source", "slices", "rows", "columns", "sampling", "file")

    def __init__(
        self, output_dir: OutputPath, output_format: str = "auto", preview: bool = True, overwrite: bool = False
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
            with atomic_path(path) as partial:
                _write_hdf5(partial, volume, affine, batch["sampling"])
        else:
            with atomic_path(path) as partial:
                nib.save(_nifti(volume, affine, batch["orientation"]), partial)
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


def _write_hdf5(path: Path, volume: np.ndarray, affine: np.ndarray | None, sampling: str) -> None:
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


RED = np.array([1.0, 0.15, 0.1])


class SaveSegmentation(VolumeResults):
    """Write the mask of every volume of a :class:`~fedmonai.data.cases.folder.SegmentationFolder` as one complete file.

    ``<volume>_mask.nii.gz`` (uint8 class numbers, the largest logit wins) has the shape and the affine of its input,
    voxel by voxel; that of a DICOM series is (column, row, slice) in the patient space of the series.
    ``previews/<volume>.png`` shows the slice with the largest mask (the middle one if there is none): the image, and
    beside it the image with the outline. ``segmentations.csv`` lists all of it.

    Args:
        output_dir: folder of the results.
        preview: write the pictures.
        overwrite: replace results of an earlier run; without it an existing one is an error.
        image_channel: the channel of ``image`` that is the slice itself, between its neighbors.

    Example:
        >>> SaveSegmentation("results").path("pelvis", kind="nifti").as_posix()
        'results/pelvis_mask.nii.gz'

    Raises:
        ConfigError: an existing result, a folder that cannot be written.
    """

    table = "segmentations.csv"
    columns = ("volume", "source", "columns", "rows", "slices", "foreground_voxels", "foreground_ml", "file")

    def __init__(
        self, output_dir: OutputPath, preview: bool = True, overwrite: bool = False, image_channel: int = 1
    ) -> None:
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
        with atomic_path(path) as partial:
            nib.save(_mask_nifti(restored, affine), partial)
        if self.preview:
            images = output["image"][:, self.image_channel].detach().float().cpu().numpy()
            self.write_preview(batch["volume"], _red_outline(images, mask > 0))
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


def _mask_nifti(mask: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(mask, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def _red_outline(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
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


#: outline of class 1, 2, ... in previews
COLORS = np.array([[1.0, 0.15, 0.1], [0.1, 0.8, 1.0], [1.0, 0.85, 0.1], [0.4, 1.0, 0.3]])
MASK_SUFFIXES = {"picture": ".png", "hdf5": ".h5"}


class SaveMasks(VolumeResults):
    """Write the mask of every file of a :class:`~fedmonai.data.weak.folder.PictureFolder` as one complete file.

    Predictions are classes ``(N, rows, columns)`` (:class:`fedmonai.transforms.slices.ClassesInPlaned`). A picture gets
    ``<volume>_mask.png``, gray, with the size of the picture; an HDF5 file ``<volume>_mask.h5`` with ``mask`` uint8 of
    the shape of its planes. ``previews/<volume>.png`` shows what the network saw of the slice with the largest mask
    and the mask's outlines on it. ``masks.csv`` lists all of it, with the pixels of every class above 0.

    Args:
        output_dir: folder of the results.
        gray_levels: of class 0, 1, ... in PNG masks; None writes class numbers, which look black.
        preview: write the pictures.
        overwrite: replace results of an earlier run; without it an existing one is an error.

    Example:
        >>> SaveMasks("results", gray_levels=[0, 255]).path("eye", kind="picture").as_posix()
        'results/eye_mask.png'

    Raises:
        ConfigError: gray levels outside 0 to 255, equal ones, or too few; an existing result; a folder that cannot be
            written.
    """

    table = "masks.csv"
    columns = ("volume", "source", "slices", "rows", "columns", "pixels", "file")

    def __init__(
        self,
        output_dir: OutputPath,
        gray_levels: Sequence[int] | None = None,
        preview: bool = True,
        overwrite: bool = False,
    ) -> None:
        levels = list(range(256)) if gray_levels is None else list(gray_levels)
        if not all(0 <= level <= 255 for level in levels) or len(set(levels)) < len(levels):
            raise ConfigError(f"gray_levels is {levels}; give different numbers from 0 to 255, one for each class.")
        super().__init__(output_dir, preview, overwrite)
        self.levels = np.array(levels, np.uint8)

    def path(self, volume: str, kind: str) -> Path:
        """See :meth:`VolumeResults.path`."""
        return self.output_dir / f"{volume}_mask{MASK_SUFFIXES[kind]}"

    def __call__(self, engine: Engine) -> None:
        """Write the masks of this iteration's file."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        masks = output["pred"].cpu().numpy()
        if masks.max(initial=0) >= len(self.levels):
            raise ConfigError(f"gray_levels names {len(self.levels)} classes, the network found class {masks.max()}.")
        path = self.path(batch["volume"], batch["kind"])
        if path.suffix == ".png":
            with atomic_path(path) as partial:
                Image.fromarray(self.levels[masks[0]]).save(partial)
        else:
            with atomic_path(path) as partial:
                _write_mask_hdf5(partial, masks if batch["slices"] > 1 else masks[0])
        if self.preview:
            self.write_preview(
                batch["volume"], _colored_outlines(output["image"].detach().float().cpu().numpy(), masks)
            )
        pixels = " ".join(f"{label}:{int((masks == label).sum())}" for label in np.unique(masks[masks > 0]))
        self.add_row(batch["volume"], batch["source"], *masks.shape, pixels, path.name)

    def found(self, row: dict[str, Any]) -> str:
        """See :meth:`VolumeResults.found`."""
        return row["pixels"] or "nothing found"


def _write_mask_hdf5(path: Path, masks: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("mask", data=masks, compression="gzip")


def _colored_outlines(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The slice with the largest mask: what the network saw, and that with colored outlines, (side, 2 side, 3)."""
    areas = (masks > 0).sum(axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else len(images) // 2
    plain = np.repeat(images[index], 3, axis=0) if len(images[index]) == 1 else images[index][:3]
    plain = np.clip(plain.transpose(1, 2, 0), 0.0, 1.0)
    rows, columns = (np.arange(n) * m // n for n, m in zip(plain.shape, masks.shape[1:], strict=False))
    mask = masks[index][np.ix_(rows, columns)]
    padded = np.pad(mask, 1, mode="edge")
    neighbors = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (mask > 0) & np.any([mask != other for other in neighbors], axis=0)
    marked = plain.copy()
    marked[edge] = COLORS[(mask[edge].astype(int) - 1) % len(COLORS)]
    return np.hstack([plain, marked])
