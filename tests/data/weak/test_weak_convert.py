# SPDX-License-Identifier: Apache-2.0
"""NIfTI images with scribbles and masks as HDF5 volumes; RGB masks by color."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fedmonai.data.weak.convert import convert_nifti
from fedmonai.data.weak.dataset import WeakSliceDataset
from fedmonai.data.weak.list import weak_files
from fedmonai.data.weak.read import read_picture_mask
from fedmonai.errors import ConfigError

LABELS = {"scribble": "_scribble", "mask": "_manual"}
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])  # voxel axes to the left, to the back, upward


def _save(path: Path, values: np.ndarray, affine: np.ndarray = LPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


@pytest.fixture
def mscmr(tmp_path: Path) -> Path:
    """Five subjects; a mask whose class 1 is the pixel (column 1, row 2) of every slice, alone seen by the scribble."""
    for k in range(5):
        image, mask = np.random.RandomState(k).rand(8, 6, 3).astype(np.float32), np.zeros((8, 6, 3), np.uint8)
        mask[1, 2], mask[4:, 4:] = 1, 2
        scribble = np.full_like(mask, 255)
        scribble[1, 2], scribble[0, 0] = 1, 0
        _save(tmp_path / "raw" / "images" / f"subject{k}_DE.nii.gz", image)
        _save(tmp_path / "raw" / "labels" / f"subject{k}_DE_manual.nii.gz", mask)
        _save(tmp_path / "raw" / "labels" / f"subject{k}_DE_scribble.nii.gz", scribble)
    return tmp_path / "raw"


def test_scribbles_become_what_the_dataset_trains_on(mscmr: Path, tmp_path: Path) -> None:
    rows = convert_nifti(str(mscmr), str(tmp_path / "h5"), 3, LABELS, {255: 3})
    assert [(row["volume"], row["slices"], row["mask labeled"]) for row in rows] == [
        (f"subject{k}_DE", 3, 1.0) for k in range(5)
    ]
    assert rows[0]["scribble labeled"] == 2 / 48
    train, test = (
        WeakSliceDataset(weak_files(tmp_path / "h5", split, "volumes"), 3, "scribble", split)
        for split in ("train", "test")
    )
    label, mask = train[0]["label"][0], test[0]["mask"][0]
    assert (len(train), len(test), tuple(label.shape)) == (9, 3, (6, 8))
    assert label[2, 1] == mask[2, 1] == 1 and label[0, 0] == 0 and mask[5, 5] == 2
    assert int((label == 3).sum()) == 46


def test_check_writes_nothing(mscmr: Path, tmp_path: Path) -> None:
    assert len(convert_nifti(str(mscmr), None, 3, LABELS, {255: 3}, check=True)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_values_that_are_no_class_are_named_with_a_remedy(mscmr: Path) -> None:
    with pytest.raises(ConfigError, match=r"scribble.nii.gz holds 255; classes are 0 to 2, 3 is .* '\{255: 3\}'"):
        convert_nifti(str(mscmr), None, 3, LABELS, check=True)


def test_missing_and_misplaced_labels(mscmr: Path) -> None:
    with pytest.raises(ConfigError, match=r"no NIfTI file in .* has label files of its name with _lab"):
        convert_nifti(str(mscmr), None, 3, {"mask": "_lab"}, check=True)
    _save(mscmr / "labels" / "subject0_DE_manual.nii.gz", np.zeros((8, 6, 3), np.uint8), np.diag([2.0, 2.0, 3.0, 1.0]))
    with pytest.raises(ConfigError, match=r"subject0_DE_manual\.nii\.gz: its affine differs"):
        convert_nifti(str(mscmr), None, 3, LABELS, {255: 3}, check=True)
    (mscmr / "labels" / "subject0_DE_manual.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"0 label files called subject0_DE_manual\.nii"):
        convert_nifti(str(mscmr), None, 3, LABELS, {255: 3}, check=True)


def _colors(path: Path) -> str:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :, 0], pixels[2:, :3, 1] = 255, 255
    Image.fromarray(pixels).save(path)
    return str(path)


def test_masks_by_color(tmp_path: Path) -> None:
    path = _colors(tmp_path / "m.png")
    found = read_picture_mask(path, {"255,0,0": 1, "0,255,0": 2, "0,0,0": 0}, None)
    assert found[:2].tolist() == [[1] * 6] * 2 and found[2:].tolist() == [[2, 2, 2, 0, 0, 0]] * 2


def test_color_that_is_not_named(tmp_path: Path) -> None:
    path = _colors(tmp_path / "m.png")
    with pytest.raises(ConfigError, match=r"25\.0% of the mask has colors such as 0,255,0 that"):
        read_picture_mask(path, {"255,0,0": 1, "0,0,0": 0}, None)
    with pytest.raises(ConfigError, match=r"is in color .* such as \{'255,0,0': 1, "):
        read_picture_mask(path, {0: 0, 255: 1}, None)
    with pytest.raises(ConfigError, match="'1,2' is no color"):
        read_picture_mask(path, {"1,2": 1}, None)
