# SPDX-License-Identifier: Apache-2.0
"""Dataset of the volumes in a folder (k-space files, DICOM series, NIfTI images, arrays), to reconstruct."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.loadsave import load as load_nifti
from nibabel.orientations import aff2axcodes
from torch import Tensor

from fedmonai.data.convert.file_names import is_label_name
from fedmonai.data.convert.readers import PlaneSize, kspace_and_target, open_source, sampled
from fedmonai.data.convert.volume import Source, Volume, label_values
from fedmonai.data.damage import InputError
from fedmonai.data.folder import VolumeFolder
from fedmonai.errors import ConfigError
from fedmonai.io import InputPath

__all__ = ["UNDERSAMPLING", "ReconstructionFolder", "one_volume"]


UNDERSAMPLING = ("auto", "none")


class ReconstructionFolder(VolumeFolder):
    """Dataset of whole volumes, for inference.

    k-space that the scanner undersampled (a stored mask, or empty columns) is taken as it was measured. Fully sampled
    k-space and magnitude images, whose k-space is computed by the centered orthonormal FFT, are undersampled with the
    bundle's mask unless ``undersampling`` is ``none``; ``sampling`` in the item says which of it happened.

    An item holds, for n slices: ``kspace``, n tensors complex64 (coils, H, W); ``file``, n times the name that seeds
    the volume's mask; ``mask`` where nothing is to be undersampled (ones) or the file has its own, (n, W); ``target``
    float32 (n, 1, h, w) where one is known; ``hybrid_kspace`` False; ``volume``, ``source`` and ``kind`` of
    :class:`VolumeFolder`; ``sampling``; ``affine``, float64 (4, 4), index (slice, row, column)
    to RAS+ mm, or None; ``orientation``, axis codes of a NIfTI input, or None.

    Label maps are no images: files that are called so (``..._seg``) are left out, others are refused.

    Args:
        data: folder, searched with its sub-folders, or one file.
        undersampling: ``auto`` or ``none``, see above.
        axis: NIfTI voxel axis that counts the slices.
        domain: of ``.npy`` and ``.mat`` arrays: ``image`` or ``kspace``.
        axes: names of their axes, e.g. ``[coil, row, column]``; None = by rank.
        key: variable of ``.mat`` files; None = the only numeric one.
        skip_damaged: go on without files that cannot be read instead of stopping before the first volume.

    Example:
        >>> import numpy
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     numpy.save(f"{folder}/head.npy", numpy.ones((2, 8, 6), numpy.float32))
        ...     item = ReconstructionFolder(folder, undersampling="none")[0]
        >>> item["volume"], len(item["kspace"]), tuple(item["kspace"][0].shape)
        ('head', 2, (1, 8, 6))

    Raises:
        ConfigError: nothing to reconstruct, or a file that is unknown or damaged; the message names it.
    """

    kinds = ("hdf5", "nifti", "dicom", "array")
    expected = "HDF5, NIfTI, DICOM, .npy or .mat file"

    def __init__(
        self,
        data: InputPath,
        undersampling: str = "auto",
        axis: int = 2,
        domain: str = "image",
        axes: Sequence[str] | None = None,
        key: str | None = None,
        skip_damaged: bool = False,
    ) -> None:
        for name, value, allowed in (
            ("undersampling", undersampling, UNDERSAMPLING),
            ("domain", domain, ("image", "kspace")),
        ):
            if value not in allowed:
                raise ConfigError(f"{name}: '{value}' is unknown; choose one of {', '.join(allowed)}.")
        self.undersampling = undersampling
        self.reading = (axis, domain, None if axes is None else tuple(axes), key)
        super().__init__(data, skip_damaged)

    def find(self, root: Path) -> tuple[list[Source], list[tuple[str, str]]]:
        """The images in a folder, without the label maps that lie beside them and are called so."""
        sources, failed = super().find(root)
        return [source for source in sources if not self._is_label_map(source)], failed

    def _is_label_map(self, source: Source) -> bool:
        if not is_label_name(source.files[0].name):
            return False
        with contextlib.suppress(InputError), open_source(source, *self.reading) as volume:
            return label_values(volume) is not None
        return False  # damage is told when the volume's turn comes

    def read(self, source: Source) -> dict[str, Any]:
        """k-space, target and geometry of one volume."""
        with open_source(source, *self.reading) as volume:
            if label_values(volume) is not None:
                raise InputError("holds nothing but a few whole values, which is a label map and no image")
            return self._item(source, volume)

    def _item(self, source: Source, volume: Volume) -> dict[str, Any]:
        planes, target = _kspace_and_target(volume)
        mask, measured = _own_mask(volume)
        simulate = self.undersampling == "auto" and not measured
        count = len(planes)
        item: dict[str, Any] = {
            "kspace": planes,
            "hybrid_kspace": False,
            "file": [source.files[0].name] * count,
            "sampling": "undersampled by the mask of the bundle" if simulate else "as measured",
            "affine": None if volume.affine is None else torch.from_numpy(np.asarray(volume.affine, np.float64)),
            "orientation": _orientation(source),
        }
        if not simulate:
            item["mask"] = (torch.ones(planes[0].shape[-1]) if mask is None else mask).expand(count, -1)
        if target is not None:
            item["target"] = target
        return item


def one_volume(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate function of a loader whose batch is one volume: the item itself.

    Raises:
        ConfigError: with a batch size other than 1.
    """
    if len(batch) != 1:
        raise ConfigError(
            f"a batch is one volume here, not {len(batch)}; set the loader's batch_size to 1 and slices_per_pass to "
            "the number of slices the network takes at a time."
        )
    return batch[0]


def _kspace_and_target(volume: Volume) -> tuple[list[Tensor], Tensor | None]:
    planes: list[Tensor] = []
    images: list[Tensor] = []
    for number, (plane, image) in enumerate(kspace_and_target(volume, PlaneSize.plan(volume.plane, 0, 0))):
        kspace = torch.from_numpy(np.array(plane, dtype=np.complex64))
        if not torch.isfinite(torch.view_as_real(kspace)).all():
            raise InputError(f"slice {number} holds values that are not finite")
        planes.append(kspace if kspace.ndim == 3 else kspace[None])
        if image is not None:
            images.append(torch.from_numpy(np.array(image, dtype=np.float32)))
    return planes, torch.stack(images).unsqueeze(1) if images else None


def _own_mask(volume: Volume) -> tuple[Tensor | None, bool]:
    """The column mask the data came with, and whether the scanner undersampled them."""
    if volume.domain == "image":
        return None, False
    if volume.mask is not None:
        return torch.from_numpy(np.asarray(volume.mask, np.float32)), True
    if volume.target is not None:
        return None, False
    mask, _ = sampled(volume)
    return (None, False) if mask is None else (torch.from_numpy(mask), True)


def _orientation(source: Source) -> str | None:
    """Axis codes of a NIfTI file, such as RAS, so that the result can be written on the same voxel grid."""
    if source.kind != "nifti":
        return None
    affine: Any = load_nifti(source.files[0]).affine  # type: ignore[attr-defined]
    return "".join(code or "?" for code in aff2axcodes(affine))
