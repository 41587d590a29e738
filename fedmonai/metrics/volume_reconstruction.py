# SPDX-License-Identifier: Apache-2.0
"""NMSE, PSNR and SSIM per volume as ignite metrics, over engines that reconstruct slice by slice."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.metrics.reconstruction import nmse, psnr, ssim
from fedmonai.metrics.volume import Batch, VolumeMetric, _item

__all__ = ["VolumeNMSE", "VolumePSNR", "VolumeSSIM"]


class _VolumeReconstruction(VolumeMetric):
    """Base of the three: a finished volume becomes a number on its device, which is read once, when the epoch ends.

    ``pred`` and ``label`` are images of one channel, (B, 1, H, W), with the normalization undone (postprocessing
    :class:`~fedmonai.transforms.DenormalizeInstanced`). Volumes still incomplete at the end (a run cut short, a
    sampler that drops slices) are scored on the slices seen, with a warning: right for these slices, but the data
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
    """Normalized mean squared error per volume, see :func:`fedmonai.metrics.nmse`; lower is better."""

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return nmse(pred, target)


class VolumePSNR(_VolumeReconstruction):
    """Peak signal-to-noise ratio per volume in dB, see :func:`fedmonai.metrics.psnr`; higher is better."""

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return psnr(pred, target)


class VolumeSSIM(_VolumeReconstruction):
    """Structural similarity per volume, see :func:`fedmonai.metrics.ssim`; higher is better."""

    def volume_score(self, pred: Tensor, target: Tensor) -> Tensor:
        return ssim(pred, target)
