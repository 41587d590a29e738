# SPDX-License-Identifier: Apache-2.0
"""From stored k-space slices to the form a training step starts from."""

from __future__ import annotations

from dataclasses import dataclass

import h5py
import numpy as np
import torch
from torch import Tensor

from fedmonai.data.kspace_file import KspaceHeader, read_slice
from fedmonai.errors import ConfigError
from fedmonai.transforms.kspace import center_crop, hybrid_kspace, zero_filled


@dataclass(frozen=True)
class SliceForm:
    """How slices are delivered.

    Attributes:
        resolution: largest image height and width; rows of hybrid k-space and the target are center-cropped to it.
        hybrid: whether the rows are inverse-transformed and cropped already (see ``hybrid_kspace``).
        target_from_kspace: whether a file without a target gets the root-sum-of-squares magnitude of its full k-space.
    """

    resolution: int
    hybrid: bool
    target_from_kspace: bool

    def kspace_shape(self, header: KspaceHeader) -> tuple[int, int, int]:
        """(coils, h or H, W) of one slice."""
        rows = header.image_size(self.resolution)[0] if self.hybrid else header.rows
        return header.coils, rows, header.columns

    def target_shape(self, header: KspaceHeader) -> tuple[int, int, int] | None:
        """(1, h, w) of one slice's target, None for a volume without one."""
        if header.target_key is None and not self.target_from_kspace:
            return None
        return 1, *header.image_size(self.resolution)

    def slice_bytes(self, header: KspaceHeader) -> int:
        """Bytes of one slice in this form: complex64 k-space and float32 target."""
        target = self.target_shape(header)
        return 8 * int(np.prod(self.kspace_shape(header))) + (4 * int(np.prod(target)) if target else 0)


def read_slices(
    file: h5py.File, header: KspaceHeader, first: int, last: int, form: SliceForm
) -> tuple[Tensor, Tensor | None]:
    """Read slices ``first`` to ``last - 1`` of an open volume.

    Returns:
        k-space, complex64 (n, coils, h or H, W), and target, float32 (n, 1, h, w) or None.

    Raises:
        ConfigError: unreadable data, or a target asked of k-space that is not fully sampled.
    """
    block = slice(first, last)
    stored = read_slice(file, "kspace", block)
    if not header.multicoil:
        stored = stored[:, None]
    kspace = torch.from_numpy(np.ascontiguousarray(stored, dtype=np.complex64))
    size = header.image_size(form.resolution)
    target: Tensor | None = None
    if header.target_key is not None:
        image = read_slice(file, header.target_key, block).astype(np.float32, copy=False)
        target = center_crop(torch.from_numpy(image), size).unsqueeze(1).contiguous()
    elif form.target_from_kspace:
        _refuse_undersampled(header, kspace)
        target = zero_filled(kspace, form.resolution).unsqueeze(1)
    return hybrid_kspace(kspace, size[0]) if form.hybrid else kspace, target


def read_mask(file: h5py.File, header: KspaceHeader) -> Tensor | None:
    """The file's own sampling mask, float32 (W,), or None."""
    if not header.has_mask:
        return None
    return torch.from_numpy(read_slice(file, "mask", slice(None)).astype(np.float32))


def _refuse_undersampled(header: KspaceHeader, kspace: Tensor) -> None:
    """A magnitude image of undersampled k-space is no ground truth."""
    empty = int((kspace == 0).all(dim=-2).all(dim=-2).any(dim=0).sum())
    if header.has_mask or empty:
        found = "it carries a sampling mask" if header.has_mask else f"{empty} of its columns are empty"
        raise ConfigError(
            f"target_from_kspace: {header.path} is not fully sampled ({found}), so no target can be computed from it; "
            "set target_from_kspace: false and use the file for inference only."
        )
