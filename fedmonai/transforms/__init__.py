# SPDX-License-Identifier: Apache-2.0
"""MR transforms: masks, k-space to image, intensity; as functions, as MONAI dictionary transforms, and per batch."""

from __future__ import annotations

from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.density_mask import VariableDensityMask
from fedmonai.transforms.dictionary import (
    CenterCropd,
    DenormalizeInstanced,
    MaskKspaced,
    NormalizeInstanced,
    RandMaskKspaced,
    ZeroFilledd,
)
from fedmonai.transforms.fixed_mask import ArrayMask, FixedMask, MixedMask
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
from fedmonai.transforms.mask_kinds import MASK_KINDS, sampling_mask
from fedmonai.transforms.masks import CartesianMask, KspaceMask
from fedmonai.transforms.plane import ClassesInPlaned, classes_in_plane, fit_plane
from fedmonai.transforms.radial_mask import RadialMask
from fedmonai.transforms.rand_geometry import (
    RandQuarterTurnFlip,
    RandQuarterTurnFlipd,
    RandRotateFill,
    RandRotateFilld,
)
from fedmonai.transforms.slices import (
    KeepLabeledSlicesd,
    MergeLabelsd,
    NormalizeVolumed,
    StackNeighborsd,
    labeled_slices,
    merge_labels,
    neighbor_indices,
    normalize_volume,
    stack_neighbors,
)
from fedmonai.transforms.weak_labeling import (
    WEAK_FORMS,
    WeakLabel,
    WeakLabeld,
    weak_label,
    weak_label_statistics,
    weak_labels,
)

__all__ = [
    "MASK_KINDS",
    "WEAK_FORMS",
    "ArrayMask",
    "CartesianMask",
    "CenterCropd",
    "ClassesInPlaned",
    "DenormalizeInstanced",
    "FixedMask",
    "KeepLabeledSlicesd",
    "KspaceMask",
    "MaskKspaced",
    "MergeLabelsd",
    "MixedMask",
    "NormalizeInstanced",
    "NormalizeVolumed",
    "PrepareKspace",
    "RadialMask",
    "RandMaskKspaced",
    "RandQuarterTurnFlip",
    "RandQuarterTurnFlipd",
    "RandRotateFill",
    "RandRotateFilld",
    "StackNeighborsd",
    "VariableDensityMask",
    "WeakLabel",
    "WeakLabeld",
    "ZeroFilledd",
    "center_crop",
    "classes_in_plane",
    "coil_magnitude",
    "column_phase",
    "denormalize_instance",
    "fft2c",
    "fit_plane",
    "hybrid_kspace",
    "ifft2c",
    "instance_statistics",
    "labeled_slices",
    "merge_labels",
    "neighbor_indices",
    "normalize_instance",
    "normalize_volume",
    "sampling_mask",
    "stack_neighbors",
    "weak_label",
    "weak_label_statistics",
    "weak_labels",
    "zero_filled",
]
