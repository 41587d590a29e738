# SPDX-License-Identifier: Apache-2.0
"""MR transforms: masks, k-space to image, intensity; as functions, as MONAI dictionary transforms, and per batch."""

from __future__ import annotations

from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.dictionary import (
    CenterCropd,
    DenormalizeInstanced,
    MaskKspaced,
    NormalizeInstanced,
    RandMaskKspaced,
    ZeroFilledd,
)
from fedmonai.transforms.intensity import denormalize_instance, instance_statistics, normalize_instance
from fedmonai.transforms.kspace import (
    center_crop,
    coil_magnitude,
    column_phase,
    fft2c,
    hybrid_kspace,
    ifft2c,
    zero_filled,
)
from fedmonai.transforms.masks import CartesianMask, KspaceMask
from fedmonai.transforms.rand_geometry import (
    RandQuarterTurnFlip,
    RandQuarterTurnFlipd,
    RandRotateFill,
    RandRotateFilld,
)
from fedmonai.transforms.weak_labels import (
    WEAK_FORMS,
    WeakLabel,
    WeakLabeld,
    weak_label,
    weak_label_statistics,
)

__all__ = [
    "WEAK_FORMS",
    "CartesianMask",
    "CenterCropd",
    "DenormalizeInstanced",
    "KspaceMask",
    "MaskKspaced",
    "NormalizeInstanced",
    "PrepareKspace",
    "RandMaskKspaced",
    "RandQuarterTurnFlip",
    "RandQuarterTurnFlipd",
    "RandRotateFill",
    "RandRotateFilld",
    "WeakLabel",
    "WeakLabeld",
    "ZeroFilledd",
    "center_crop",
    "coil_magnitude",
    "column_phase",
    "denormalize_instance",
    "fft2c",
    "hybrid_kspace",
    "ifft2c",
    "instance_statistics",
    "normalize_instance",
    "weak_label",
    "weak_label_statistics",
    "zero_filled",
]
