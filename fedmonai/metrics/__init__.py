# SPDX-License-Identifier: Apache-2.0
"""Metrics of whole volumes, as functions and as ignite metrics."""

from __future__ import annotations

from fedmonai.metrics.reconstruction import PSNR_CAP, nmse, psnr, ssim
from fedmonai.metrics.released_dice import ReleaseDice, release_dice
from fedmonai.metrics.segmentation import CaseASSD, CaseDice, CaseHD95
from fedmonai.metrics.targets import TargetDice, target_metrics
from fedmonai.metrics.volume import VolumeMetric
from fedmonai.metrics.volume_reconstruction import VolumeNMSE, VolumePSNR, VolumeSSIM

__all__ = [
    "PSNR_CAP",
    "CaseASSD",
    "CaseDice",
    "CaseHD95",
    "ReleaseDice",
    "TargetDice",
    "VolumeMetric",
    "VolumeNMSE",
    "VolumePSNR",
    "VolumeSSIM",
    "nmse",
    "psnr",
    "release_dice",
    "ssim",
    "target_metrics",
]
