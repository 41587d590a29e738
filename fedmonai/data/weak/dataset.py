# SPDX-License-Identifier: Apache-2.0
"""Dataset of slices with weak labels: one kind of annotation per site, full masks in evaluation only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedmonai.data.cache import available_memory, refuse_if_larger
from fedmonai.data.facts import FileFacts, weak_facts
from fedmonai.data.provenance import VolumeFingerprint, weak_fingerprint
from fedmonai.data.weak.read import (
    count_slices,
    min_max_normalize,
    read_h5_image,
    read_h5_label,
    read_pair,
)
from fedmonai.errors import ConfigError
from fedmonai.io import InputEntries
from fedmonai.transforms.slices import RESIZE_MODES, fit_plane
from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_label

__all__ = ["WeakSliceDataset"]


CACHES = ("none", "memory")


class WeakSliceDataset(Dataset):
    """Slices ``{image, label, volume, slice, num_slices}``; with split ``val`` or ``test`` also ``mask``.

    - ``image`` float32 ``(C, H, W)``, scaled to [0, 1] per slice over all channels.
    - ``label`` uint8 ``(1, H, W)``. In training the site's kind of annotation, in which ``num_classes`` means
      unlabeled. In ``val`` and ``test`` the full mask: models are never selected or evaluated by weak labels.
    - ``mask`` uint8 ``(1, H, W)``, the full mask. Training items never have it.

    Files with the ending ``.h5`` are FedICRA's (keys image, mask, scribble, ...) or volumes with slices first. Others
    are picture files with a ``mask`` in the entry: these have no weak labels, which are then made from the mask, the
    same in every run.

    Args:
        files: from :func:`~fedmonai.data.weak.list.weak_files`.
        num_classes: classes K; ids are 0 .. K - 1, and K is unlabeled.
        annotation: ``keypoint``, ``scribble``, ``scribble_noisy``, ``block``, ``box``, or ``mask`` for full
            supervision; for HDF5 files any key they hold.
        split: ``train``, ``val`` or ``test``.
        size: side of the square image, None keeps what the files have.
        resize_mode: how ``size`` is reached: ``resize``, or ``pad`` (centered; cropped where the image is larger).
            Padding is 0 in images, 0 in masks, unlabeled in training labels.
        image_channels: expected channels; picture files are converted to it.
        label_map: class of each gray level of mask pictures, e.g. ``{255: 0, 128: 2, 0: 1}``.
        threshold: for lossy mask pictures with two levels, instead of ``label_map``.
        transform: applied to every item, as MONAI does it.
        cache: ``none`` or ``memory``, which keeps slices before ``transform``.
        seed: of weak labels made from masks.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     Image.linear_gradient("L").save(f"{folder}/a.png")
        ...     Image.new("L", (256, 256)).save(f"{folder}/a_mask.png")
        ...     files = [{"image": f"{folder}/a.png", "mask": f"{folder}/a_mask.png", "volume": "a"}]
        ...     item = WeakSliceDataset(files, num_classes=2, split="val", size=32)[0]
        >>> tuple(item["image"].shape), tuple(item["mask"].shape)
        ((1, 32, 32), (1, 32, 32))

    Raises:
        ConfigError: for wrong settings at once; for a file that is unreadable, has other channels or unknown classes,
            when it is read, with its name.
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("without_transform",)

    def __init__(
        self,
        files: InputEntries,
        num_classes: int,
        annotation: str = "scribble",
        split: str = "train",
        size: int | None = None,
        resize_mode: str = "resize",
        image_channels: int | None = None,
        label_map: Mapping[int, int] | None = None,
        threshold: int | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache: str = "none",
        seed: int = 0,
    ) -> None:
        for name, value, allowed in (
            ("split", split, ("train", "val", "test")),
            ("resize_mode", resize_mode, RESIZE_MODES),
            ("cache", cache, CACHES),
        ):
            if value not in allowed:
                raise ConfigError(f"{name}: '{value}' is unknown; choose one of {', '.join(allowed)}.")
        if not 2 <= num_classes <= 254:
            raise ConfigError(f"num_classes is {num_classes}; allowed are 2 to 254.")
        if size is not None and size < 1:
            raise ConfigError(f"size is {size}; it is the side of the image in pixels.")
        self.files = list(files)
        self.num_classes = num_classes
        self.annotation = annotation if split == "train" else "mask"
        self.split = split
        self.size = size
        self.resize_mode = resize_mode
        self.image_channels = image_channels
        self.label_map = label_map
        self.threshold = threshold
        self.transform = transform
        self.seed = seed
        self._slices = self._index()
        self._cached: list[dict[str, Any]] | None = None
        if cache == "memory":
            image = self._read(0)["image"]
            needed = len(self) * (image.nelement() * image.element_size() + 2 * image[0].nelement())
            refuse_if_larger(cache, needed, available_memory(), "main memory")
            # Filled at once, because loader workers end with the epoch and their caches are lost.
            self._cached = [self._read(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        item = self._read(index) if self._cached is None else dict(self._cached[index])
        return item if self.transform is None else self.transform(item)

    def without_transform(self) -> WeakSliceDataset:
        """The same items as they are before ``transform``; the cache is shared."""
        plain = copy.copy(self)
        plain.transform = None
        return plain

    def volume_fingerprints(self) -> Iterator[VolumeFingerprint]:
        """Content and subject of every volume, read from its file: how splits are compared."""
        return (weak_fingerprint(entry) for entry in self.files)

    def file_facts(self) -> Iterator[FileFacts]:
        """Channels, values and gray levels of masks of every file, as it is stored and as it is read."""
        return (weak_facts(entry, self.image_channels, self.threshold) for entry in self.files)

    def _index(self) -> list[tuple[int, int, int]]:
        """(file, slice, slices of the file) of every item; settings that cannot work are refused here."""
        if not self.files:
            raise ConfigError("files: the list is empty; there is nothing to train or evaluate on.")
        index = []
        for number, entry in enumerate(self.files):
            is_h5 = entry["image"].lower().endswith(".h5")
            if not is_h5 and "mask" not in entry:
                raise ConfigError(f"{entry['image']} has no 'mask' beside it; list pairs with paired_files.")
            if not is_h5 and self.annotation not in (*ANNOTATIONS, "mask"):
                raise ConfigError(
                    f"annotation: '{self.annotation}' is unknown; choose one of {', '.join((*ANNOTATIONS, 'mask'))}."
                )
            count = count_slices(entry["image"]) if is_h5 else 1
            index += [(number, place, count) for place in range(count)]
        return index

    def _read(self, index: int) -> dict[str, Any]:
        number, place, count = self._slices[index]
        entry = self.files[number]
        image, label = self._read_h5(entry, place) if "mask" not in entry else self._read_pair(entry)
        if self.image_channels is not None and image.shape[0] != self.image_channels:
            raise ConfigError(
                f"{entry['image']} has {image.shape[0]} channels, expected {self.image_channels}; set 'image_channels'."
            )
        self._check_classes(label, entry["image"])
        target = torch.from_numpy(label.astype(np.uint8))[None]
        item = {"image": image, "label": target, "volume": entry["volume"], "slice": place, "num_slices": count}
        if self.split != "train":
            item["mask"] = target.clone()
        return item

    def _check_classes(self, label: np.ndarray, source: str) -> None:
        found = sorted(int(value) for value in np.unique(label))
        highest = self.num_classes if self.split == "train" else self.num_classes - 1
        if found[0] < 0 or found[-1] > highest:
            raise ConfigError(
                f"{source}: labels '{self.annotation}' hold {found[:8]}; classes are 0 to {self.num_classes - 1}, and "
                f"{self.num_classes} is unlabeled (in training only). Set num_classes, label_map or threshold."
            )

    def _read_h5(self, entry: Mapping[str, str], place: int) -> tuple[Tensor, np.ndarray]:
        label = read_h5_label(entry["image"], self.annotation, place)
        pad_value = 0 if self.split != "train" else self.num_classes
        label = self._fitted(torch.from_numpy(label)[None], pad_value)[0].numpy()
        return self._image(read_h5_image(entry["image"], place), entry["image"]), label

    def _read_pair(self, entry: Mapping[str, str]) -> tuple[Tensor, np.ndarray]:
        image, mask = read_pair(entry, self.label_map, self.threshold, self.image_channels)
        if self.split != "train" or self.resize_mode == "resize":
            mask = self._fitted(torch.from_numpy(mask)[None], 0)[0].numpy()
        label = weak_label(mask, self.annotation, self.num_classes, seed=self.seed)
        if self.split == "train" and self.resize_mode == "pad":
            label = self._fitted(torch.from_numpy(label)[None], self.num_classes)[0].numpy()
        return self._image(image, entry["image"]), label

    def _image(self, values: np.ndarray, source: str) -> Tensor:
        if self.resize_mode == "resize":  # resizing before scaling, so that the range is [0, 1] afterwards too
            values = self._fitted(torch.from_numpy(values.astype(np.float32)), 0).numpy()
        return self._fitted(torch.from_numpy(min_max_normalize(values, source)), 0)

    def _fitted(self, values: Tensor, pad_value: int) -> Tensor:
        return fit_plane(values, self.size, self.resize_mode, pad_value)
