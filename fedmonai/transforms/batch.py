# SPDX-License-Identifier: Apache-2.0
"""The trainer's ``prepare_batch`` for MR: undersample, transform and normalize a whole batch on the training device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.engines.utils import PrepareBatch
from monai.transforms import Randomizable
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.transforms.intensity import normalize_instance, standardize_instance_
from fedmonai.transforms.kspace import center_crop, column_phase, hybrid_magnitude, zero_filled
from fedmonai.transforms.masks import KspaceMask

__all__ = ["PrepareKspace"]

# k-space planes transformed at a time. On a CPU the complex temporaries of more fall out of the cache; on a GPU the
# bound keeps batches of many coils within memory.
_PLANES = {"cpu": 4}
_PLANES_GPU = 256


@dataclass
class _Slice:
    """One slice of a batch: k-space (coils, H, W), its mask (W,) or (H, W), and the file it came from."""

    kspace: Tensor
    mask: Tensor | None
    hybrid_kspace: bool
    file: str

    @property
    def form(self) -> tuple[Any, ...]:
        """What slices must share to be transformed together."""
        return self.hybrid_kspace, *self.kspace.shape

    def image_size(self, limit: tuple[int, int]) -> tuple[int, int]:
        return min(limit[0], self.kspace.shape[-2]), min(limit[1], self.kspace.shape[-1])


class PrepareKspace(Randomizable, PrepareBatch):
    """``prepare_batch`` that turns a batch of k-space slices into a normalized (image, label).

    x = sqrt(sum_c |crop(IFFT(m * kspace_c))|^2); x and the target are mapped with the mean and standard deviation of x
    and limited to [-clamp, clamp] (Guo et al., CVPR 2021). The statistics are written to ``batchdata["mean"]`` and
    ``batchdata["std"]``, (B, 1, 1, 1), for :class:`~fedmonai.transforms.intensity.DenormalizeInstanced`.

    Reads ``kspace`` (list of complex64 (coils, H, W), or one stacked tensor; shapes may differ), ``file`` and, where
    present, ``hybrid_kspace``, ``mask`` (the slice's own (W,) sampling mask: it is used instead of a drawn one) and
    ``target`` (B, 1, h, w). Image and target are cropped to their common size, at most ``resolution``.

    >>> from fedmonai.transforms.masks import CartesianMask
    >>> kspace = [torch.randn(2, 40, 36, dtype=torch.complex64), torch.randn(2, 32, 30, dtype=torch.complex64)]
    >>> batch = {"kspace": kspace, "target": torch.rand(2, 1, 24, 24), "file": ["a.h5", "b.h5"]}
    >>> image, label = PrepareKspace(CartesianMask(), resolution=24)(batch)
    >>> image.shape, label.shape, batch["mean"].shape
    (torch.Size([2, 1, 24, 24]), torch.Size([2, 1, 24, 24]), torch.Size([2, 1, 1, 1]))

    Args:
        mask: draws the masks; None takes k-space as it is (undersampled by the scanner, or not at all).
        resolution: largest height and width of the image.
        seed_from_file: one mask per volume, fixed by its file name (validation, test), instead of a fresh one per
            slice from this object's own generator (training; seed it with ``set_random_state``).
        clamp: limit in standard deviations, or None for no limit.
        with_kspace: also return what a network that works on k-space needs: the arguments (masked k-space, mask,
            mean, std), see :class:`~fedmonai.networks.dual_domain.DualDomainUNet`. k-space must not be hybrid then, and
            of one shape within a batch.

    Raises:
        ConfigError: k-space of another type or shape, a mask that does not fit, or images of several sizes in one
            batch; the message names the file.
    """

    def __init__(
        self,
        mask: KspaceMask | None,
        resolution: int = 256,
        seed_from_file: bool = False,
        clamp: float | None = 6.0,
        with_kspace: bool = False,
    ) -> None:
        if resolution < 1:
            raise ConfigError(f"resolution {resolution} is not allowed: it is the image size in pixels, e.g. 256")
        if clamp is not None and not clamp > 0:
            raise ConfigError(f"clamp {clamp} is not allowed: it must be positive, or null for no limit")
        self.mask = mask
        self.resolution = resolution
        self.seed_from_file = seed_from_file
        self.clamp = clamp
        self.with_kspace = with_kspace
        self.set_random_state()  # its own generator, not the one MONAI shares between all transforms

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Return image and label (None without ``target``), float32 (B, 1, h, w) on ``device``.

        ``with_kspace``: (image, label, (k-space complex64 (B, coils, H, W), mask (B, 1, H, W), mean, std), {}).
        """
        slices = self._slices(batchdata)
        target = batchdata.get("target")
        limit = (self.resolution, self.resolution)
        if target is not None:
            limit = (min(self.resolution, target.shape[-2]), min(self.resolution, target.shape[-1]))
        image = _zero_filled(slices, limit, torch.device(device or slices[0].kspace.device), non_blocking)
        mean, std = standardize_instance_(image, self.clamp)
        batchdata["mean"], batchdata["std"] = mean, std
        image = image.to(device=image.device, **kwargs)
        label = None
        if target is not None:
            target = center_crop(target, image.shape[-2:])
            target = target.to(device=image.device, dtype=torch.float32, non_blocking=non_blocking)
            label = normalize_instance(target, mean, std, self.clamp).to(device=image.device, **kwargs)
        if not self.with_kspace:
            return image, label
        kspace, mask = _stack_masked(slices, image.device, non_blocking)
        return image, label, (kspace, mask, mean, std), {}

    def _slices(self, batchdata: dict[str, Any]) -> list[_Slice]:
        """Split the batch and draw the masks, in the order of the batch, for any mix of shapes."""
        kspace = batchdata["kspace"]
        hybrid_kspace, own, files = (
            _per_slice(batchdata, key, len(kspace)) for key in ("hybrid_kspace", "mask", "file")
        )
        if self.seed_from_file and self.mask is not None and None in files:
            raise ConfigError("seed_from_file needs the file name of every slice: add the key 'file' to the dataset")
        rng = None if self.seed_from_file else self.R
        slices = []
        for index, data in enumerate(kspace):
            name = files[index] if files[index] is not None else f"slice {index} of the batch"
            mask = _choose_mask(data, self.mask, rng, name, own[index], bool(hybrid_kspace[index]))
            slices.append(_Slice(data, mask, bool(hybrid_kspace[index]), name))
        return slices


def _zero_filled(slices: Sequence[_Slice], limit: tuple[int, int], device: torch.device, non_blocking: bool) -> Tensor:
    """Transform slices of one form together; return the magnitudes (B, 1, h, w) in the order of the batch."""
    size = slices[0].image_size(limit)
    forms: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(slices):
        forms[item.form].append(index)
        if item.image_size(limit) != size:
            raise ConfigError(
                f"images of {slices[0].file} {size} and {item.file} {item.image_size(limit)} differ in size and cannot "
                "share a batch: lower resolution to the smallest, or set batch_size to 1"
            )
    image = torch.empty(len(slices), 1, *size, device=device)
    order: list[int] = []
    for members in forms.values():
        coils = slices[members[0]].kspace.shape[0]
        step = max(1, _PLANES.get(device.type, _PLANES_GPU) // coils)
        for start in range(0, len(members), step):
            chunk = members[start : start + step]
            _transform([slices[index] for index in chunk], image[len(order) : len(order) + len(chunk), 0], non_blocking)
            order += chunk
    return image if len(forms) == 1 else image[torch.tensor(order).argsort().to(device, non_blocking=True)]


def _transform(chunk: Sequence[_Slice], out: Tensor, non_blocking: bool) -> None:
    """Write the zero-filled magnitudes of slices of one form to ``out`` (n, h, w)."""
    weights = _weights(chunk, out.device)
    work = torch.empty(len(chunk), *chunk[0].kspace.shape, dtype=torch.complex64, device=out.device)
    if weights is not None and all(item.kspace.device == out.device for item in chunk):
        for index, item in enumerate(chunk):  # mask while gathering: one pass over the data, not two
            torch.mul(item.kspace, weights[index], out=work[index])
    else:
        for index, item in enumerate(chunk):
            work[index].copy_(item.kspace, non_blocking=non_blocking)
        if weights is not None:
            work.mul_(weights)
    if chunk[0].hybrid_kspace:
        hybrid_magnitude(work, out.shape[-2:], out)
    else:
        out.copy_(zero_filled(work, out.shape[-2:]))


def _per_slice(batchdata: dict[str, Any], key: str, count: int) -> list[Any]:
    """Entry of every slice under ``key``: from a list, a stacked tensor or one value for all; None if absent."""
    values = batchdata.get(key)
    if isinstance(values, Tensor):
        return list(values.unbind()) if values.ndim > 0 else [values] * count
    return list(values) if isinstance(values, (list, tuple)) else [values] * count


def _weights(chunk: Sequence[_Slice], device: torch.device) -> Tensor | None:
    """Factors of k-space, (n, 1, H or 1, W): the masks, and for hybrid k-space the columns' phase."""
    columns = chunk[0].kspace.shape[-1]
    phase = column_phase(columns) if chunk[0].hybrid_kspace else None
    if all(item.mask is None for item in chunk):
        return None if phase is None else phase.expand(len(chunk), 1, 1, columns).to(device, non_blocking=True)
    full = torch.ones(columns)
    masks = torch.broadcast_tensors(*((full if item.mask is None else item.mask.cpu()) for item in chunk))
    stacked = torch.stack(masks)
    stacked = stacked.unflatten(0, (-1, 1, 1)) if stacked.ndim == 2 else stacked.unsqueeze(1)
    # never waited for: the driver takes a copy of what is not pinned
    return (stacked if phase is None else stacked * phase).to(device, non_blocking=True)


def _check_kspace(kspace: Tensor, file: str) -> None:
    """Refuse anything but a complex64 tensor (coils, H, W).

    Raises:
        ConfigError: names the file, what was found and what is needed.
    """
    if not isinstance(kspace, Tensor) or kspace.ndim != 3 or 0 in kspace.shape or kspace.dtype != torch.complex64:
        found = f"{kspace.dtype} {tuple(kspace.shape)}" if isinstance(kspace, Tensor) else type(kspace).__name__
        raise ConfigError(
            f"k-space of {file} is {found}, not complex64 (coils, H, W): store kspace as complex64, "
            "(slices, H, W) or (slices, coils, H, W)"
        )


def _choose_mask(
    kspace: Tensor,
    sampler: KspaceMask | None,
    rng: np.random.RandomState | None,
    file: str,
    own: Tensor | None = None,
    hybrid_kspace: bool = False,
) -> Tensor | None:
    """Return the mask for one slice, float32 on the CPU or wherever ``own`` lies, or None for k-space as it is.

    A mask that comes with the file (``own``) describes what the scanner measured and is used instead of ``sampler``.
    With ``rng`` the sampler draws from it, without it draws the file's fixed mask.

    Raises:
        ConfigError: k-space is not complex64 (coils, H, W), the file's mask has another width, or k-space is hybrid
            and the mask does not keep or drop whole columns.
    """
    _check_kspace(kspace, file)
    plane = tuple(kspace.shape[-2:])
    if own is not None:
        if (
            own.ndim not in (1, 2)
            or own.shape[-1] != plane[-1]
            or (own.ndim == 2 and own.shape[0] not in (1, plane[0]))
        ):
            raise ConfigError(
                f"the mask in {file} has shape {tuple(own.shape)}, its k-space {plane}: the mask needs one value per "
                f"column ({plane[-1]})"
            )
        mask = own.to(torch.float32)
    elif sampler is None:
        return None
    elif rng is None:
        mask = sampler.from_file_name(file, plane)
    else:
        mask = sampler.sample(plane, rng)
    if hybrid_kspace and ((own is None and sampler is not None and not sampler.is_column) or mask.numel() != plane[-1]):
        name = "its own mask" if own is not None else type(sampler).__name__
        raise ConfigError(
            f"{file}: {name} is not a mask over whole columns, but its k-space is cached in hybrid form: "
            "set hybrid_kspace: false"
        )
    return mask


def _stack_masked(slices: Sequence[_Slice], device: torch.device, non_blocking: bool) -> tuple[Tensor, Tensor]:
    """Masked k-space, complex64 (B, coils, H, W), and the masks, float32 (B, 1, H, W), on ``device``.

    Raises:
        ConfigError: hybrid k-space, or k-space of different shapes; the message names the files.
    """
    first = slices[0]
    shape = tuple(first.kspace.shape)
    if first.hybrid_kspace:
        raise ConfigError(
            f"{first.file}: k-space is in hybrid form, a dual-domain network needs it whole: set hybrid_kspace: false"
        )
    for item in slices:
        if tuple(item.kspace.shape) != shape:
            raise ConfigError(
                f"k-space of {first.file} {shape} and {item.file} {tuple(item.kspace.shape)} differ and cannot share a "
                "batch of a dual-domain network: set batch_size to 1"
            )
    full = torch.ones(shape[-2:])
    masks = [full if item.mask is None else item.mask.cpu().expand(shape[-2:]) for item in slices]
    mask = torch.stack(masks).unsqueeze(1).to(device, non_blocking=True)
    kspace = torch.stack([item.kspace.to(device, non_blocking=non_blocking) for item in slices])
    return kspace.mul_(mask), mask
