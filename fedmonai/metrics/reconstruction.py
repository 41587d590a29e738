# SPDX-License-Identifier: Apache-2.0
"""NMSE, PSNR and SSIM of volumes, as functions and as ignite metrics that collect slices."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.metrics.volume import Batch, VolumeMetric, _item

__all__ = ["PSNR_CAP", "VolumeNMSE", "VolumePSNR", "VolumeSSIM", "nmse", "psnr", "ssim"]


#: dB given to a prediction that equals its target, instead of infinity: float32 does not resolve more
PSNR_CAP = 150.0

_WINDOW = 7
_K1, _K2 = 0.01, 0.03
# Slices whose SSIM maps are held at a time: one fits the cache of a CPU, a GPU wants more work per kernel.
_SLICES = {"cpu": 1}
_SLICES_GPU = 32


def nmse(pred: Tensor, target: Tensor) -> Tensor:
    """Normalized mean squared error of a volume, ``||y - x||^2 / ||y||^2`` (0 = equal, 1 = as bad as all zero).

    >>> round(float(nmse(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 2.0]]]))), 2)
    0.2

    Args:
        pred: x, (slices, H, W).
        target: y, same shape.

    Returns:
        0-dim tensor on the device of the volumes. An all-zero target: 0 if the prediction is zero too, else 1.
    """
    pred, target = _pair(pred, target)
    error, energy = (target - pred).square().sum(), target.square().sum()
    return torch.where(energy > 0, error / energy, (error > 0).to(error.dtype))


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of a volume in dB, ``10 log10(max(y)^2 / mean((y - x)^2))``.

    >>> target = torch.tensor([[[1.0, 2.0], [0.0, 2.0]]])
    >>> round(float(psnr(target + 0.2, target)), 3)
    20.0

    Args:
        pred: x, (slices, H, W).
        target: y, same shape; its maximum over the volume is the data range.

    Returns:
        0-dim tensor, at most :data:`PSNR_CAP` (the value of an exact prediction; infinity would make every mean
        infinite). A target without a positive value: the cap if the prediction equals it, else 0.
    """
    pred, target = _pair(pred, target)
    error, peak = (target - pred).square().mean(), target.max()
    ratio = (10.0 * torch.log10(peak.square() / error)).clamp(max=PSNR_CAP)
    exact = torch.full_like(ratio, PSNR_CAP)
    return torch.where(error == 0, exact, torch.where(peak > 0, ratio, torch.zeros_like(ratio)))


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of a volume: mean over its slices of the 2-D SSIM (Wang et al., IEEE TIP 2004).

    Uniform 7 x 7 windows that lie within the slice, K1 = 0.01, K2 = 0.03, sample covariance, and the maximum of the
    target *volume* as data range: scikit-image's ``structural_similarity`` per slice with that range.

    Args:
        pred: (slices, H, W).
        target: same shape.

    Returns:
        0-dim tensor in [-1, 1]. A target without a positive value: 1 if the prediction equals it, else 0.

    Raises:
        ConfigError: a slice is smaller than the window.
    """
    pred, target = _pair(pred, target)
    if min(target.shape[-2:]) < _WINDOW:
        raise ConfigError(f"SSIM needs slices of {_WINDOW} x {_WINDOW} pixels or more, not {tuple(target.shape[-2:])}")
    peak = target.max()
    step = _SLICES.get(target.device.type, _SLICES_GPU)
    sums = [_ssim_map(x, y, peak).sum((-2, -1)) for x, y in zip(pred.split(step), target.split(step), strict=True)]
    windows = (target.shape[-2] - _WINDOW + 1) * (target.shape[-1] - _WINDOW + 1)
    value = torch.cat(sums).mean() / windows
    return torch.where(peak > 0, value, (pred == target).all().to(value.dtype))


def _pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both volumes in the target's type, at least float32."""
    if pred.shape != target.shape or target.ndim != 3 or 0 in target.shape:
        raise ConfigError(f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} must be one (slices, H, W)")
    dtype = torch.promote_types(target.dtype, torch.float32)
    return pred.to(dtype), target.to(dtype)


def _ssim_map(x: Tensor, y: Tensor, peak: Tensor) -> Tensor:
    """SSIM of every window: (slices, H - 6, W - 6). One window sum of x^2 + y^2 serves both variances."""
    c1, c2 = (_K1 * peak).square(), (_K2 * peak).square()
    pixels = _WINDOW * _WINDOW
    mean_x, mean_y, squares, products = _window_sums(torch.stack((x, y, x * x + y * y, x * y))).div_(pixels)
    mean_squares, mean_product = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    sample = pixels / (pixels - 1)
    variances, covariance = (squares - mean_squares) * sample, (products - mean_product) * sample
    return (2 * mean_product + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))


def _window_sums(maps: Tensor) -> Tensor:
    """Sums over all 7 x 7 windows, one axis after the other; 7 = 4 + 2 + 1 takes four additions an axis, not six."""
    for axis in (-1, -2):
        length = maps.shape[axis] - _WINDOW + 1
        pairs = maps.narrow(axis, 0, length + 5) + maps.narrow(axis, 1, length + 5)
        fours = pairs.narrow(axis, 0, length) + pairs.narrow(axis, 2, length)
        maps = fours.add_(pairs.narrow(axis, 4, length)).add_(maps.narrow(axis, 6, length))
    return maps


class _VolumeReconstruction(VolumeMetric):
    """Base of the three: a finished volume becomes a number on its device, which is read once, when the epoch ends.

    ``pred`` and ``label`` are images of one channel, (B, 1, H, W), with the normalization undone (postprocessing
    :class:`~fedmonai.transforms.intensity.DenormalizeInstanced`). Volumes still incomplete at the end (a run cut short,
    a sampler that drops slices) are scored on the slices seen, with a warning: right for these slices, but the data
    range is their maximum. Each process of a distributed evaluation must hold whole volumes; nothing is reduced across
    processes but the list of scores.

    Raises:
        ConfigError: two volumes share a name, or pred and label are not images of one channel and one size.
    """

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        """The number for one volume, pred and target (slices, H, W), as a 0-dim tensor on their device."""
        raise NotImplementedError

    def reset(self) -> None:
        super().reset()
        self._scores: dict[str, Tensor] = {}
        self._peaks: dict[str, Tensor] = {}

    def prepare(self, pred: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if pred.shape != label.shape or pred.shape[0] != 1:
            raise ConfigError(
                f"{type(self).__name__} compares images of one channel and one size, not pred {tuple(pred.shape)} with "
                f"label {tuple(label.shape)}: check the network's out_channels and the postprocessing"
            )
        return pred, label

    def _collect(self, pred: Tensor, label: Tensor, batch: Batch, index: int) -> None:
        volume, position = _item(batch, "volume", index), _item(batch, "slice", index)
        if volume in self._scores or (position is not None and int(position) in self._slices.get(volume, {})):
            raise ConfigError(
                f"more slices of volume {volume!r} were evaluated than it has: two files share the name, or the "
                "sampler repeats slices; give every volume a name of its own"
            )
        super()._collect(pred, label, batch, index)

    def _finish(self, volume: str) -> None:
        slices = self._slices.pop(volume)
        del self._info[volume]
        pred = torch.cat([slices[position][0] for position in sorted(slices)])
        label = torch.cat([slices[position][1] for position in sorted(slices)])
        self._scores[volume], self._peaks[volume] = self.volume_score(pred, label), label.max()

    def compute(self) -> float:
        """Return the mean over the volumes; warns of incomplete volumes and of targets without any signal."""
        for volume, slices in list(self._slices.items()):
            warnings.warn(f"{type(self).__name__}: only {len(slices)} slices of volume {volume} were evaluated")
            self._finish(volume)
        if self._scores:
            # the only transfer to the host
            scores, peaks = torch.stack(
                [torch.stack([*part.values()]) for part in (self._scores, self._peaks)]
            ).tolist()
            self._values = dict(zip(self._scores, scores, strict=True))
            for volume, peak in zip(self._peaks, peaks, strict=True):
                if peak <= 0:
                    warnings.warn(
                        f"{type(self).__name__}: the target of volume {volume} has no positive value; its score "
                        f"{self._values[volume]:g} is a convention, not a measurement"
                    )
        return super().compute()


class VolumeNMSE(_VolumeReconstruction):
    """Normalized mean squared error per volume, see :func:`fedmonai.metrics.reconstruction.nmse`; lower is better.

    >>> metric, batch = VolumeNMSE(), {"volume": ["a", "a"], "num_slices": [2, 2]}
    >>> metric.update(({"pred": torch.zeros(2, 1, 8, 8), "label": torch.ones(2, 1, 8, 8)}, batch))
    >>> round(metric.compute(), 2)
    1.0
    """

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return nmse(pred, target)


class VolumePSNR(_VolumeReconstruction):
    """Peak signal-to-noise ratio per volume in dB, see :func:`psnr`; higher is better.

    >>> metric, batch = VolumePSNR(), {"volume": ["a", "a"], "num_slices": [2, 2]}
    >>> metric.update(({"pred": torch.full((2, 1, 8, 8), 0.9), "label": torch.ones(2, 1, 8, 8)}, batch))
    >>> round(metric.compute(), 2)
    20.0
    """

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return psnr(pred, target)


class VolumeSSIM(_VolumeReconstruction):
    """Structural similarity per volume, see :func:`fedmonai.metrics.reconstruction.ssim`; higher is better.

    >>> metric, batch = VolumeSSIM(), {"volume": ["a", "a"], "num_slices": [2, 2]}
    >>> metric.update(({"pred": torch.ones(2, 1, 8, 8), "label": torch.ones(2, 1, 8, 8)}, batch))
    >>> round(metric.compute(), 2)
    1.0
    """

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return ssim(pred, target)
