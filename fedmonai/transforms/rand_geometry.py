# SPDX-License-Identifier: Apache-2.0
"""Random rotations and flips of an image together with its labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple_rep
from scipy import ndimage

from fedmonai.errors import ConfigError

__all__ = ["RandQuarterTurnFlip", "RandQuarterTurnFlipd", "RandRotateFill", "RandRotateFilld"]


class RandQuarterTurnFlip(RandomizableTransform):
    """Turn ``(C, H, W)`` by a random multiple of 90 degrees, then flip it along a random axis (FedICRA's program).

    Images that are not square are turned by 0 or 180 degrees only, so that their size stays.

    >>> RandQuarterTurnFlip(prob=1.0)(np.zeros((1, 4, 6))).shape
    (1, 4, 6)

    Args:
        prob: probability of the transform, in [0, 1]; 0 returns the input.
    """

    def __init__(self, prob: float = 0.5) -> None:
        RandomizableTransform.__init__(self, prob)
        self.quarters = 0
        self.axis = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether, how often and along which axis; always three numbers, so that streams stay aligned."""
        super().randomize(None)
        self.quarters = int(self.R.randint(4))
        self.axis = int(self.R.randint(2))

    def __call__(self, image: Any, randomize: bool = True) -> Any:
        if randomize:
            self.randomize()
        if not self._do_transform:
            return image
        quarters = self.quarters if image.shape[-1] == image.shape[-2] else self.quarters // 2 * 2
        if isinstance(image, torch.Tensor):
            return torch.rot90(image, quarters, (-2, -1)).flip(self.axis - 2).contiguous()
        return np.ascontiguousarray(np.flip(np.rot90(image, quarters, (-2, -1)), self.axis - 2))


class RandRotateFill(RandomizableTransform):
    """Rotate ``(C, H, W)`` by a random whole angle; pixels from outside get ``pad_value``; nearest neighbor, same size.

    Nearest neighbor for images too is what FedICRA's program does: it keeps image and label aligned to the pixel.

    >>> turned = RandRotateFill(prob=1.0, angles=(45, 45), pad_value=9.0)(np.ones((1, 4, 4)))
    >>> turned.shape, float(turned[0, 0, 0])
    ((1, 4, 4), 9.0)

    Args:
        prob: probability of a rotation, in [0, 1].
        angles: smallest and largest angle in degrees, both included.
        pad_value: value outside of the picture; for labels the id of unlabeled pixels, which a loss leaves
            out.
    """

    def __init__(self, prob: float = 0.5, angles: Sequence[int] = (-45, 44), pad_value: float = 0.0) -> None:
        RandomizableTransform.__init__(self, prob)
        if len(angles) != 2 or angles[0] > angles[1]:
            raise ConfigError(
                f"angles: {angles} must be the smallest and the largest angle in degrees, e.g. (-45, 44)."
            )
        self.angles = (int(angles[0]), int(angles[1]))
        self.pad_value = pad_value
        self.angle = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether and by which angle; always two numbers."""
        super().randomize(None)
        self.angle = int(self.R.randint(self.angles[0], self.angles[1] + 1))

    def __call__(self, image: Any, randomize: bool = True, pad_value: float | None = None) -> Any:
        if randomize:
            self.randomize()
        if not self._do_transform:
            return image
        value = self.pad_value if pad_value is None else pad_value
        values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        turned = ndimage.rotate(values, self.angle, axes=(-2, -1), reshape=False, order=0, mode="constant", cval=value)
        return torch.as_tensor(turned, device=image.device) if isinstance(image, torch.Tensor) else turned


class _RandTogetherd(RandomizableTransform, MapTransform):
    """Base of dictionary versions that draw once for all keys."""

    transform: RandomizableTransform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _RandTogetherd:
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self


class RandQuarterTurnFlipd(_RandTogetherd):
    """Dictionary version of :class:`RandQuarterTurnFlip`; all keys are turned and flipped alike.

    >>> image = np.arange(16).reshape(1, 4, 4)
    >>> moved = RandQuarterTurnFlipd(["image", "label"], prob=1.0)({"image": image, "label": image})
    >>> np.array_equal(moved["image"], moved["label"])
    True
    """

    transform: RandQuarterTurnFlip

    def __init__(self, keys: KeysCollection, prob: float = 0.5, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = RandQuarterTurnFlip(prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        self.transform.randomize()
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key], randomize=False)
        return result


class RandRotateFilld(_RandTogetherd):
    """Dictionary version of :class:`RandRotateFill`; one angle for all keys.

    >>> data = {"image": np.ones((1, 4, 4)), "label": np.ones((1, 4, 4))}
    >>> turned = RandRotateFilld(["image", "label"], pad_value=(0.0, 2), prob=1.0, angles=(45, 45))(data)
    >>> float(turned["image"][0, 0, 0]), float(turned["label"][0, 0, 0])
    (0.0, 2.0)

    Args:
        keys: usually ``image`` and ``label``.
        pad_value: value outside of the picture, one for each key; FedICRA takes 0.8 (avascular zone) or 0 (cup and
            disc) for images and the number of classes for labels.
    """

    transform: RandRotateFill

    def __init__(
        self,
        keys: KeysCollection,
        pad_value: Sequence[float] | float,
        prob: float = 0.5,
        angles: Sequence[int] = (-45, 44),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = RandRotateFill(prob, angles)
        self.pad_value = ensure_tuple_rep(pad_value, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        self.transform.randomize()
        for key, pad_value in self.key_iterator(result, self.pad_value):
            result[key] = self.transform(result[key], randomize=False, pad_value=pad_value)
        return result
