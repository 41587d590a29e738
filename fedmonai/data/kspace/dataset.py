# SPDX-License-Identifier: Apache-2.0
"""Dataset of slices of fastMRI-style volumes, and its collate function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.data
import torch

from fedmonai.data.cache import DiskCache, MemoryCache, NoCache, SliceCache, VolumeSlices, fits_on_device
from fedmonai.data.facts import FileFacts, kspace_facts
from fedmonai.data.kspace.read import KspaceHeader, SliceSpec, open_volume, read_header, read_mask
from fedmonai.data.provenance import VolumeFingerprint, kspace_fingerprint
from fedmonai.errors import ConfigError
from fedmonai.io import InputEntries, OutputPath

CACHES = ("none", "memory", "disk", "device", "fastest")


class KspaceDataset(monai.data.Dataset):
    """Dataset of slices of k-space volumes (Guo et al., CVPR 2021, with the data layout of fastMRI).

    An item holds ``kspace`` complex64 (coils, h, W), inverse-transformed along its rows and cropped to
    min(resolution, size) rows if ``hybrid_kspace`` (else (coils, H, W)); ``target`` float32 (1, h, w), cropped alike,
    where the volume has one; ``volume``, ``slice`` (index in the file), ``num_slices`` (of this volume in this
    dataset), ``file`` (name with suffix: it seeds the volume's mask in evaluation), ``hybrid_kspace``, and ``mask``
    float32 (W,) if the file carries its own. Tensors may be views of the cache: do not write to them.

    Deviation from the authors' program: files are opened once instead of once per slice, and the inverse FFT along
    the fully sampled rows, which commutes with any column mask, is done once instead of in every epoch.

    Args:
        data: volumes, dicts with ``kspace`` (path) and ``volume`` (name), see
            :func:`~fedmonai.data.kspace.list.kspace_volumes`.
        slice_range: ``[first, last)`` of the slices to use, None = all. The paper's BraTS range is ``[14, 135]``.
        resolution: largest height and width of an image, in pixels.
        cache: ``none`` reads the file at every access; ``memory`` holds everything, read now (shared by forked
            workers); ``device`` holds it on ``device`` (needs ``num_workers: 0`` on a GPU); ``disk`` keeps
            memory-mapped arrays in ``cache_dir`` for this and later runs; ``fastest`` is ``device`` on a GPU with room
            for them and ``memory`` elsewhere. Sizes are checked before reading.
        cache_dir: folder of the disk cache; it holds image data, so keep it where the images may be.
        device: of ``cache: device``.
        hybrid_kspace: False for masks that vary along the rows (radial, 2-D random): k-space stays as stored.
        target_from_kspace: compute a missing target as the root-sum-of-squares magnitude of the k-space, which then
            must be fully sampled. False: a volume without target has no ``target`` (inference only), with a warning.
        open_files: how many files stay open per process.
        transform: applied to each item, e.g. a ``monai.transforms.Compose``.

    Example:
        >>> import h5py
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with h5py.File(f"{folder}/a.h5", "w") as file:
        ...         file["kspace"] = torch.ones(3, 8, 6, dtype=torch.complex64).numpy()
        ...     data = [{"kspace": f"{folder}/a.h5", "volume": "a"}]
        ...     dataset = KspaceDataset(data, resolution=4, cache="memory", target_from_kspace=True)
        >>> len(dataset), tuple(dataset[0]["kspace"].shape), tuple(dataset[0]["target"].shape)
        (3, (1, 4, 6), (1, 4, 4))

    Raises:
        ConfigError: no volumes; a file that is missing, damaged or of another form (each error names it); a slice
            range outside a volume; targets in some volumes only; a cache that does not fit or lacks its setting.
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("on_host",)

    def __init__(
        self,
        data: InputEntries,
        slice_range: Sequence[int] | None = None,
        resolution: int = 256,
        cache: str = "none",
        cache_dir: OutputPath | None = None,
        device: str | torch.device | None = None,
        hybrid_kspace: bool = True,
        target_from_kspace: bool = False,
        open_files: int = 16,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__([_named(volume) for volume in data], transform)
        if not self.data:
            raise ConfigError("data: the list of volumes is empty; see fedmonai.data.kspace.list.kspace_volumes.")
        if resolution < 1:
            raise ConfigError(f"resolution: {resolution} is not a positive number of pixels.")
        self.spec = SliceSpec(int(resolution), bool(hybrid_kspace), bool(target_from_kspace))
        volumes = [_select(read_header(volume["kspace"]), slice_range) for volume in self.data]
        _check_targets(volumes, self.spec)
        self._masks = [_mask_of(volume) for volume in volumes]
        self.slices = [(v, index) for v, volume in enumerate(volumes) for index in range(volume.first, volume.last)]
        self.cache = _make_cache(cache, volumes, self.spec, cache_dir, device, open_files)

    @property
    def on_host(self) -> bool:
        """Whether items come from main memory, as a loader that pins its batches needs them."""
        return not isinstance(self.cache, MemoryCache) or self.cache.device.type == "cpu"

    def __len__(self) -> int:
        """Number of slices (not of volumes, which is ``len(dataset.data)``)."""
        return len(self.slices)

    def volume_fingerprints(self) -> Iterator[VolumeFingerprint]:
        """Content and subject of every volume, read from its file: how splits are compared."""
        return (kspace_fingerprint(entry) for entry in self.data)

    def file_facts(self) -> Iterator[FileFacts]:
        """Coils, largest value, spacing and contrast of every volume, as its file says."""
        return (kspace_facts(entry) for entry in self.data)

    def _transform(self, index: int) -> Any:
        position, number = self.slices[index]
        volume = self.data[position]
        kspace, target = self.cache.read(position, number)
        item = {
            "kspace": kspace,
            "hybrid_kspace": self.spec.hybrid_kspace,
            "volume": volume["volume"],
            "slice": number,
            "num_slices": len(self.cache.volumes[position]),
            "file": Path(volume["kspace"]).name,
        }
        if target is not None:
            item["target"] = target
        if self._masks[position] is not None:
            item["mask"] = self._masks[position]
        return item if self.transform is None else self.transform(item)


def collate_slices(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put slices into a batch: lists for ``kspace`` (its shape may differ), ``volume`` and ``file``; the rest stacked.

    ``mask`` is a list too where the masks have different lengths or only some slices have one (None for the others).

    Raises:
        ConfigError: targets of different sizes, or targets for a part of the batch; the message names the files.
    """
    out: dict[str, Any] = {key: [item[key] for item in batch] for key in ("kspace", "volume", "file")}
    for key in ("slice", "num_slices", "hybrid_kspace"):
        out[key] = torch.tensor([item[key] for item in batch])
    targets = [item.get("target") for item in batch]
    if any(target is not None for target in targets):
        shapes = {
            None if target is None else tuple(target.shape): item["file"]
            for target, item in zip(targets, batch, strict=True)
        }
        if len(shapes) > 1:
            found = ", ".join(f"{shape and shape[1:]} ({file})" for shape, file in shapes.items())
            raise ConfigError(
                f"target: one batch holds different sizes, {found}; set batch_size: 1, or a resolution no larger than "
                "the smallest."
            )
        out["target"] = torch.stack([target for target in targets if target is not None])
    masks = [item.get("mask") for item in batch]
    if any(mask is not None for mask in masks):
        same = len({None if mask is None else mask.shape for mask in masks}) == 1
        out["mask"] = torch.stack([mask for mask in masks if mask is not None]) if same else masks
    return out


def _named(volume: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(volume.get("kspace"), str):
        raise ConfigError(f"data: {dict(volume)} has no path 'kspace'; see fedmonai.data.kspace.list.kspace_volumes.")
    return {"volume": Path(volume["kspace"]).stem, **volume}


def _select(header: KspaceHeader, slice_range: Sequence[int] | None) -> VolumeSlices:
    if slice_range is None:
        return VolumeSlices(header, 0, header.slices)
    if len(slice_range) != 2 or not 0 <= slice_range[0] < slice_range[1]:
        raise ConfigError(f"slice_range: {list(slice_range)} is not [first, last) with 0 <= first < last.")
    first, last = int(slice_range[0]), min(int(slice_range[1]), header.slices)
    if first >= last:
        raise ConfigError(f"slice_range: {list(slice_range)} leaves nothing of {header.path} ({header.slices} slices).")
    return VolumeSlices(header, first, last)


def _check_targets(volumes: Sequence[VolumeSlices], spec: SliceSpec) -> None:
    """All volumes have a target or none has: a batch with holes could be neither trained on nor scored."""
    without = [v.header.path for v in volumes if spec.target_shape(v.header) is None]
    if not without:
        return
    if len(without) < len(volumes):
        raise ConfigError(
            f"target: {len(without)} of {len(volumes)} volumes have no reconstruction_esc or reconstruction_rss, first "
            f"{without[0]}; take them out, or set target_from_kspace: true if their k-space is fully sampled."
        )
    warnings.warn(
        f"none of the {len(volumes)} volumes has a target (reconstruction_esc or reconstruction_rss), first "
        f"{without[0]}: the slices serve for inference only. "
        "target_from_kspace: true computes it from fully sampled k-space.",
        stacklevel=3,
    )


def _mask_of(volume: VolumeSlices) -> torch.Tensor | None:
    if not volume.header.has_mask:
        return None
    with open_volume(volume.header.path) as file:
        return read_mask(file, volume.header)


def _make_cache(
    cache: str,
    volumes: Sequence[VolumeSlices],
    spec: SliceSpec,
    cache_dir: str | Path | None,
    device: str | torch.device | None,
    open_files: int,
) -> SliceCache:
    if cache == "none":
        return NoCache(volumes, spec, open_files)
    if cache == "fastest":
        place = torch.device(device or "cpu")
        needed = NoCache(volumes, spec, open_files).nbytes()
        fits = place.type != "cpu" and fits_on_device(needed, place)
        return MemoryCache(volumes, spec, place if fits else None)
    if cache == "memory":
        return MemoryCache(volumes, spec)
    if cache == "device":
        if device is None:
            raise ConfigError("cache: 'device' needs 'device', e.g. device: '@device'.")
        return MemoryCache(volumes, spec, torch.device(device))
    if cache == "disk":
        if cache_dir is None:
            raise ConfigError("cache: 'disk' needs 'cache_dir', a folder for the prepared arrays.")
        return DiskCache(volumes, spec, Path(cache_dir), open_files)
    raise ConfigError(f"cache: '{cache}' is unknown; choose one of {', '.join(CACHES)}.")
