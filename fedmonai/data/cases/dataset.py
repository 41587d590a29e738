# SPDX-License-Identifier: Apache-2.0
"""Dataset of 2.5-D slices of labeled or unlabeled cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedmonai.data.cache import available_memory, refuse_if_larger
from fedmonai.data.cases.read import CaseVolume, affine_shift, read_case_file, volume_shape
from fedmonai.data.facts import FileFacts, case_facts
from fedmonai.data.provenance import VolumeFingerprint, case_fingerprint
from fedmonai.errors import ConfigError
from fedmonai.io import InputEntries
from fedmonai.transforms.slices import NORMALIZATIONS, labeled_slices, merge_labels, neighbor_indices, normalize_volume

__all__ = ["CaseSliceDataset"]


Case = tuple[Tensor, Tensor | None, Tensor | None]


class CaseSliceDataset(Dataset):
    """Slices ``{image, label, volume, slice, num_slices, spacing}`` of cases in NIfTI volumes or pictures.

    - ``image`` float32 (2 * context_slices + 1, H, W): the slice between its neighbors in the volume, normalized per
      volume.
    - ``label`` uint8 (1, H, W); absent when ``labeled`` is False.
    - ``volume`` name of the case, ``slice`` its position in the file, ``num_slices`` slices of the case in this
      dataset.
    - ``spacing`` float32 (3,): row, column and slice in mm; absent for pictures unless given.

    Args:
        cases: dicts with ``image``, ``label`` and ``volume``, from :func:`fedmonai.data.cases.list.prostate_cases` or
            :func:`fedmonai.data.cases.list.prostate_pictures`.
        labeled: False drops the labels' paths: no label is opened, and items have none. Test-time adaptation
            gets this form.
        slices: ``labeled`` keeps the slices with foreground, ``all`` every slice; None (default) = ``labeled`` where
            there are labels.
        central_share: with ``all``, the share of every volume's slices that is kept around its middle, in (0, 1]: a
            choice of slices that needs no label.
        normalization: ``zscore``, ``minmax`` or ``none``: see :func:`fedmonai.transforms.slices.normalize_volume`.
        context_slices: neighbors on each side; 0 gives one channel.
        merge_labels: every class above 0 becomes 1.
        inverted: masks with 0 = foreground; they become 0 and 1.
        orientation: of rows, columns, slices; see :func:`fedmonai.data.cases.read.read_case_file`.
        spacing: in mm for files without it (pictures); [1, 1, 1] measures in pixels.
        transform: applied to every item, as MONAI does it.
        cache: ``memory`` (default) reads all cases once, at construction; ``none`` keeps the last case only.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     Image.linear_gradient("L").save(f"{folder}/a.png")
        ...     dataset = CaseSliceDataset([{"image": f"{folder}/a.png", "volume": "a"}], labeled=False)
        >>> tuple(dataset[0]["image"].shape)
        (3, 256, 256)

    Raises:
        ConfigError: wrong settings, no cases, a case without label or foreground, an image or mask that cannot be
            read, mask and image that do not lie on one grid.
    """

    def __init__(
        self,
        cases: InputEntries,
        labeled: bool = True,
        slices: str | None = None,
        central_share: float = 1.0,
        normalization: str = "zscore",
        context_slices: int = 1,
        merge_labels: bool = True,
        inverted: bool = False,
        orientation: str | None = "PLS",
        spacing: Sequence[float] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache: str = "memory",
    ) -> None:
        slices = slices or ("labeled" if labeled else "all")
        _check_settings(cases, labeled, slices, central_share, normalization, cache)
        keys = ("image", "label", "volume") if labeled else ("image", "volume")
        for case in cases:
            missing = [key for key in keys if key not in case]
            if missing:
                raise ConfigError(
                    f"case {dict(case)} has no '{missing[0]}'; list cases with labels, or set labeled: false."
                )
        self.cases = [{key: case[key] for key in keys} for case in cases]
        self.labeled = labeled
        self.slices = slices
        self.central_share = central_share
        self.normalization = normalization
        self.context_slices = context_slices
        self.merge_labels = merge_labels
        self.inverted = inverted
        self.orientation = orientation
        self.spacing = spacing
        self.transform = transform
        self._cached: dict[int, Case] = {}
        self._keep_all = cache == "memory"
        if self._keep_all:
            voxels = sum(int(np.prod(volume_shape(case["image"], orientation))) for case in self.cases)
            refuse_if_larger(cache, 5 * voxels, available_memory(), "main memory")  # float32 image, uint8 label
        self._index = [
            (number, position, len(kept))
            for number in range(len(self.cases))
            for kept in [self._kept_slices(number)]
            for position in kept
        ]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Any:
        number, position, count = self._index[index]
        image, label, spacing = self._case(number)
        neighbors = neighbor_indices(position, image.shape[-1], self.context_slices)
        item = {
            "image": image[..., neighbors].movedim(-1, 0).contiguous(),
            "volume": self.cases[number]["volume"],
            "slice": position,
            "num_slices": count,
        }
        if label is not None:
            item["label"] = label[None, ..., position].clone()
        if spacing is not None:
            item["spacing"] = spacing.clone()
        return item if self.transform is None else self.transform(item)

    def volume_fingerprints(self) -> Iterator[VolumeFingerprint]:
        """Content and subject of every volume, read from its file: how splits are compared."""
        return (case_fingerprint(entry) for entry in self.cases)

    def file_facts(self) -> Iterator[FileFacts]:
        """Channels, values, spacing and gray levels of masks of every case, read from its file."""
        return (case_facts(entry) for entry in self.cases)

    def _kept_slices(self, number: int) -> list[int]:
        _, label, _ = self._case(number) if self._keep_all else (None, self._read_label(number), None)
        if self.slices == "labeled" and label is not None:
            kept = labeled_slices(label)
            if not kept:
                raise ConfigError(
                    f"{self.cases[number]['label']} has no foreground; check the mask or take the case out of the list."
                )
            return kept
        count = self._num_slices(number)
        first = round((1 - self.central_share) / 2 * count)
        return list(range(first, max(first + 1, count - first)))

    def _num_slices(self, number: int) -> int:
        if number in self._cached:
            return self._cached[number][0].shape[-1]
        return volume_shape(self.cases[number]["image"], self.orientation)[-1]

    def _case(self, number: int) -> Case:
        """Image (H, W, slices), label of the same shape or None, and spacing of a case, from the cache or the files."""
        if number not in self._cached:
            case = self._read(number)
            if not self._keep_all:
                self._cached.clear()
            self._cached[number] = case
        return self._cached[number]

    def _read(self, number: int) -> Case:
        path = self.cases[number]["image"]
        volume = read_case_file(path, self.orientation)
        try:
            image = normalize_volume(torch.from_numpy(volume.values.astype(np.float32)), self.normalization)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        label = self._read_label(number, volume)
        spacing = self.spacing if volume.spacing is None else volume.spacing
        return image, label, None if spacing is None else torch.tensor(spacing, dtype=torch.float32)

    def _read_label(self, number: int, image: CaseVolume | None = None) -> Tensor | None:
        if not self.labeled:
            return None
        path = self.cases[number]["label"]
        mask = read_case_file(path, self.orientation)
        if image is not None:
            _check_grid(mask, image, path)
        values = mask.values == 0 if self.inverted else mask.values
        if not (values.min() >= 0 and values.max() <= 255):  # NaN, too, is neither
            raise ConfigError(f"{path}: labels are {values.min()} to {values.max()}; classes are 0 to 255.")
        label = torch.from_numpy(np.rint(values).astype(np.uint8))
        return merge_labels(label) if self.merge_labels else label


def _check_settings(
    cases: Sequence[Mapping[str, str]],
    labeled: bool,
    slices: str,
    central_share: float,
    normalization: str,
    cache: str,
) -> None:
    for name, value, allowed in (
        ("slices", slices, ("labeled", "all")),
        ("normalization", normalization, NORMALIZATIONS),
        ("cache", cache, ("memory", "none")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name}: '{value}' is unknown; choose one of {', '.join(allowed)}.")
    if not cases:
        raise ConfigError("cases: the list is empty; there is nothing to train or evaluate on.")
    if not labeled and slices == "labeled":
        raise ConfigError("slices: 'labeled' needs labels; use 'all' (with central_share) for unlabeled cases.")
    if not 0 < central_share <= 1:
        raise ConfigError(f"central_share: {central_share} is not in (0, 1]; 1 keeps every slice.")


def _check_grid(mask: CaseVolume, image: CaseVolume, path: str) -> None:
    """Mask and image must have one shape and, after reorientation, affines that agree to a tenth of a voxel."""
    if mask.values.shape != image.values.shape:
        raise ConfigError(f"{path} has shape {mask.values.shape}, its image {image.values.shape}; they must fit.")
    if shift := affine_shift(image, mask):
        raise ConfigError(
            f"{path}: its affine is not that of the image (they differ by {shift:.3g} mm), so they may be flipped "
            "against each other; run fedmonai prepare prostate --check and repair the header."
        )
