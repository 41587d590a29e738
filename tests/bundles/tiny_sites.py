# SPDX-License-Identifier: Apache-2.0
"""A site of the kind that a bundle trains on, as small as can be: what the tests of all bundles give to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from fedmonai.transforms.weak_labeling import WEAK_FORMS, weak_labels

SPLITS = ("train", "val", "test")
COMMON = {"channels": 2, "batch_size": 4, "device": "cpu"}


@dataclass(frozen=True)
class TinySite:
    """How to make a site's data, the ids that make a bundle small, what it measures, and mistakes with its data.

    ``write(root, bad)`` fills ``root``; ``bad`` is ``None`` or the name of one entry of ``bad_files``, whose training
    case is then spoilt and must be named in the error by the text given there.
    """

    write: Callable[[Path, str | None], None]
    ids: dict[str, Any]
    metrics: set[str]
    mistakes: list[tuple[dict[str, Any], tuple[str, ...]]]
    bad_files: dict[str, str] = field(default_factory=dict)


def write_kspace(path: Path, generator: np.random.RandomState, shape: tuple[int, ...] = (4, 32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = generator.rand(*shape).astype(np.float32)
    shifted = np.fft.ifftshift(images, axes=(-2, -1))
    kspace = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)).astype(np.complex64)
    with h5py.File(path, "w") as stream:
        stream["kspace"], stream["reconstruction_esc"] = kspace, images
        stream.attrs["max"], stream.attrs["norm"] = images.max(), np.linalg.norm(images)


def write_mr_site(root: Path, bad: str | None = None) -> None:
    generator = np.random.RandomState(0)
    for split in SPLITS:
        write_kspace(root / split / f"{split}.h5", generator)
    path = root / "train" / "train.h5"
    if bad == "empty":
        path.unlink()
    elif bad == "unreadable":
        path.write_bytes(b"not hdf5 at all")
    elif bad == "misshapen":
        write_kspace(path, generator, (32, 32))


def write_prostate_site(root: Path, bad: str | None = None) -> None:
    """Three cases, one for each split: a bright box (1 and 2) in noise, 5 slices of 32 x 32 with 3 of them labeled."""
    generator = np.random.RandomState(0)
    root.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-0.6, -0.6, 3.0, 1.0])
    for split in SPLITS:
        label = np.zeros((32, 32, 5), np.uint8)
        label[10:22, 8:24, 1:4] = 1
        label[10:22, 8:14, 1:4] = 2
        image = (generator.rand(32, 32, 5) + 2 * (label > 0)).astype(np.float32)
        if split == "train" and bad == "misshapen":
            label = label[:-1]
        nib.save(nib.Nifti1Image(image, affine), root / f"{split}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), root / f"{split}_segmentation.nii.gz")
        (root / f"{split}.txt").write_text(f"{split}\n")
    if bad == "empty":
        (root / "train.txt").write_text("")
    elif bad == "unreadable":
        (root / "train.nii.gz").write_bytes(b"not nifti at all")


def write_weak_site(root: Path, bad: str | None = None) -> None:
    """Four training pictures and two each to validate and test: a dark disc in noise, with every weak label."""
    generator = np.random.RandomState(0)
    rows, columns = np.mgrid[:32, :32]
    for split, count in zip(SPLITS, (4, 2, 2), strict=True):
        (root / split).mkdir(parents=True)
        for number in range(count):
            center, radius = generator.uniform(13, 18, 2), generator.uniform(6, 9)
            mask = (np.hypot(rows - center[0], columns - center[1]) < radius).astype(np.uint8)
            image = (0.3 * generator.rand(32, 32) + 0.6 * (mask == 0)).astype(np.float32)
            labels = {"mask": mask, **(weak_labels(mask, WEAK_FORMS, 2) if split == "train" else {})}
            with h5py.File(root / split / f"{split}{number}.h5", "w") as stream:
                stream["image"] = image if bad != "misshapen" or split != "train" else image[None].repeat(3, 0)
                for form, label in labels.items():
                    stream[form] = label
    if bad == "empty":
        for path in (root / "train").iterdir():
            path.unlink()
    elif bad == "unreadable":
        (root / "train" / "train0.h5").write_bytes(b"not hdf5 at all")


MR = TinySite(
    write_mr_site,
    {**COMMON, "resolution": 32, "sequence": None},
    {"psnr", "ssim", "nmse"},
    [
        ({"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all", "<train|val|test>")),
        ({"accelerations": [0.5]}, ("0.5",)),
        ({"center_fractions": [0.0]}, ("center_fraction", "(0, 1]")),
    ],
    {"empty": "train", "unreadable": "train.h5", "misshapen": "train.h5"},
)
PROSTATE = TinySite(
    write_prostate_site,
    {**COMMON, "num_pool": 2, "folder": "."},
    {"dice", "hd95", "assd", "release_dice"},
    [
        ({"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all", "CaseXX.nii.gz")),
        ({"normalization": "zscroe"}, ("zscroe", "zscore")),
        ({"slices": "some"}, ("slices", "some", "labeled")),
        ({"layout": "nifty"}, ("layout", "nifty", "nifti")),
    ],
    {"empty": "train", "unreadable": "train.nii.gz", "misshapen": "train_segmentation.nii.gz"},
)
WEAK = TinySite(
    write_weak_site,
    {"image_size": 32, "batch_size": 2, "channels": [2, 2, 2, 2, 16], "head_channels": 2, "device": "cpu"},
    {"dice", "dice_faz", "hd95_faz", "assd_faz"},
    [
        ({"dataset_dir": "/nowhere/at/all"}, ("dataset_dir", "/nowhere/at/all", "<train|val|test>")),
        ({"form": "scribbel"}, ("scribbel", "scribble", "keypoint")),
        ({"layout": "released"}, ("released", "release, pairs, volumes")),
        ({"tree_weight": -1.0}, ("tree_weight", "-1", "at least 0")),
        ({"contrast_mode": "other"}, ("other", "intended, released")),
    ],
    {"empty": "train", "unreadable": "train0.h5", "misshapen": "train0.h5"},
)
TINY_SITES = {"fedicra": WEAK, "fedmri": MR, "fl_mr": MR, "fl_mrcm": MR, "iop_fl": PROSTATE}
