# SPDX-License-Identifier: Apache-2.0
"""MONAI dictionary transforms for one slice (or, but for the masks, a batch) of MR data; the functions do the work."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple

from fedmonai.errors import ConfigError
from fedmonai.transforms.intensity import denormalize_instance, instance_statistics, normalize_instance
from fedmonai.transforms.kspace import center_crop, zero_filled
from fedmonai.transforms.masks import KspaceMask
from fedmonai.transforms.sampling import choose_mask

__all__ = [
    "CenterCropd",
    "DenormalizeInstanced",
    "MaskKspaced",
    "NormalizeInstanced",
    "RandMaskKspaced",
    "ZeroFilledd",
]

Data = Mapping[Hashable, Any]


class MaskKspaced(MapTransform):
    """Multiply k-space with the mask that belongs to its file: the same for all slices and in every run.

    A mask already stored under ``mask_key`` is the slice's own and is used instead; the mask used is stored there.

    Args:
        keys: complex64 k-space (coils, H, W), one slice.
        mask: draws the mask.
        mask_key: where the mask is looked for and stored, (W,) for a column mask.
        file_key: the file's name with suffix, which seeds the generator.
        hybrid_key: whether k-space is transformed along its rows' axis already (absent = no).

    Raises:
        ConfigError: k-space has another form, the mask does not fit, or the file name is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask: KspaceMask,
        mask_key: str = "mask",
        file_key: str = "file",
        hybrid_key: str = "hybrid_kspace",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.mask_key = mask_key
        self.file_key = file_key
        self.hybrid_key = hybrid_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        if data.get(self.file_key) is None:
            raise ConfigError(f"a mask fixed by the file needs the file's name: add the key {self.file_key!r}")
        return self._masked(data, None)

    def _masked(self, data: Data, rng: Any) -> dict[Hashable, Any]:
        result = dict(data)
        file = str(data.get(self.file_key, "this slice"))
        for key in self.key_iterator(result):
            own, hybrid_kspace = result.get(self.mask_key), bool(data.get(self.hybrid_key, False))
            mask = choose_mask(result[key], self.mask, rng, file, own, hybrid_kspace)
            assert mask is not None  # noqa: S101 - there is a sampler
            result[self.mask_key] = mask.to(result[key].device)
            result[key] = result[key] * result[self.mask_key]
        return result


class RandMaskKspaced(MaskKspaced, Randomizable):
    """:class:`MaskKspaced` with a fresh mask at every call, from the transform's own generator (``set_random_state``).

    With several keys all of them get the first one's mask.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask: KspaceMask,
        mask_key: str = "mask",
        file_key: str = "file",
        hybrid_key: str = "hybrid_kspace",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, mask, mask_key, file_key, hybrid_key, allow_missing_keys)
        self.set_random_state()

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        return self._masked(data, self.R)


class ZeroFilledd(MapTransform):
    """Reconstruct k-space (coils, H, W) to its zero-filled magnitude (1, h, w), see :func:`zero_filled`.

    Args:
        keys: masked complex k-space; replaced by the image unless ``output_keys`` names other places.
        resolution: the image is cropped to min(resolution, size).
        output_keys: one for each key.
        hybrid_key: whether k-space is transformed along its rows' axis already (absent = no).
    """

    def __init__(
        self,
        keys: KeysCollection,
        resolution: int = 256,
        output_keys: KeysCollection | None = None,
        hybrid_key: str = "hybrid_kspace",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resolution = resolution
        self.output_keys = self.keys if output_keys is None else ensure_tuple(output_keys)
        self.hybrid_key = hybrid_key
        if len(self.output_keys) != len(self.keys):
            raise ConfigError(f"output_keys {self.output_keys} must name one place for each of keys {self.keys}")

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            hybrid_kspace = bool(data.get(self.hybrid_key, False))
            result[output] = zero_filled(data[key], self.resolution, hybrid_kspace=hybrid_kspace).unsqueeze(-3)
        return result


class CenterCropd(MapTransform):
    """Crop (..., H, W) to its central min(resolution, size) rows and columns, see :func:`center_crop`."""

    def __init__(self, keys: KeysCollection, resolution: int = 256, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resolution = resolution

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = center_crop(result[key], self.resolution)
        return result


class NormalizeInstanced(MapTransform):
    """Map images with the mean and standard deviation of one of them and store both.

    Args:
        keys: images (..., 1, H, W), usually image and target.
        reference_key: the image whose statistics are used, usually the zero-filled one.
        mean_key, std_key: where the statistics (..., 1, 1, 1) are stored.
        clamp: limit in standard deviations, or None.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str = "image",
        mean_key: str = "mean",
        std_key: str = "std",
        clamp: float | None = 6.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.mean_key = mean_key
        self.std_key = std_key
        self.clamp = clamp

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        mean, std = instance_statistics(data[self.reference_key])
        result[self.mean_key], result[self.std_key] = mean, std
        for key in self.key_iterator(result):
            result[key] = normalize_instance(data[key], mean, std, self.clamp)
        return result


class DenormalizeInstanced(MapTransform):
    """Undo :class:`NormalizeInstanced` (or :class:`PrepareKspace`), for postprocessing before metrics and files.

    Works on one example and on a batch, so an engine may run with ``decollate: false``. A value of None (no label) is
    passed on. Predictions of reduced precision come back as float32. What the clamp cut off stays lost.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mean_key: str = "mean",
        std_key: str = "std",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mean_key = mean_key
        self.std_key = std_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            if result[key] is not None:
                result[key] = denormalize_instance(result[key], data[self.mean_key], data[self.std_key])
        return result
