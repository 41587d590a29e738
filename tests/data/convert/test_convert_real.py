# SPDX-License-Identifier: Apache-2.0
"""Real scans: DICOM of two vendors with gaps, a NIfTI volume, and undersampled 8-coil k-space without ground truth."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.data import DataLoader
from numerics import assert_within

from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.kspace.dataset import KspaceDataset, collate_slices
from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.data.provenance import read_manifest, verify_manifest
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.masks import CartesianMask

DATA = os.environ.get("FEDMONAI_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FEDMONAI_TEST_DATA (folder of real images) is not set")


@pytest.fixture
def mri() -> Path:
    return Path(str(DATA)) / "mri"


def _slices(root):
    return {
        split: [read["slices"] for read in read_manifest(root)[section]]
        for split, section in {"train": "training", "val": "validation", "test": "test"}.items()
    }


def _psnr(root, split):
    """PSNR of the zero-filled reconstruction of four-fold undersampled data: worse than perfect, better than noise."""
    dataset = KspaceDataset(kspace_volumes(root, split))
    batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=collate_slices)))
    image, label = PrepareKspace(CartesianMask(), seed_from_file=True, clamp=None)(batch)
    assert image.shape == label.shape == (2, 1, 256, 256)
    return 10 * np.log10(float((label - label.min()).max() ** 2 / (image - label).square().mean()))


def test_uih_dicom(mri, tmp_path):
    text = str(prepare_mri(str(mri / "uih_t1_dicom"), check=True))
    assert "train/session1" in text and "14 slices x 512 rows x 460 columns" in text
    assert "6 slices x 512 rows x 460 columns" in text and "spacing 15.8 x 0.5 x 0.5 mm" in text
    assert "13 gaps, about 66 slices missing at 1 mm per slice" in text and "slice118.dcm" in text
    assert "PatientID '***' identifies no subject" in text and "nothing is cropped" in text
    train, test = str(mri / "uih_t1_dicom" / "train"), str(mri / "uih_t1_dicom" / "test")
    for source, split in ((train, "slices:11,3,0"), (test, "test")):
        assert prepare_mri(source, str(tmp_path / "UIH"), split=split, max_size=256).exit_code == 0
    assert _slices(tmp_path / "UIH") == {"train": [11], "val": [3], "test": [6]}
    assert verify_manifest(tmp_path / "UIH") == []
    assert 20 < _psnr(tmp_path / "UIH", "test") < 40


def test_studyforrest_dicom_in_full_size(mri, tmp_path):
    source = mri / "studyforrest_t1_dicom"
    assert prepare_mri(str(source), str(tmp_path / "SF"), split="slices:24,4,8").exit_code == 0
    assert _slices(tmp_path / "SF") == {"train": [24], "val": [4], "test": [8]}
    # one series over two folders, sorted by position: the last block is the folder "test"
    with h5py.File(kspace_volumes(tmp_path / "SF", "test")[0]["kspace"]) as file:
        stored, affine = file["reconstruction_esc"][()], file.attrs["affine"]
    paths = sorted((source / "test").glob("*.dcm"))
    for index, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(
            dataset.get("RescaleIntercept", 0)
        )
        np.testing.assert_array_equal(stored[index], expected)
    lps = np.array(pydicom.dcmread(paths[0]).ImagePositionPatient, float)
    np.testing.assert_allclose((affine @ [0, 0, 0, 1])[:3], lps * [-1, -1, 1], atol=1.0)  # slices are unevenly spaced
    assert stored.shape == (8, 384, 274)


def test_mccausland_nifti(mri, tmp_path):
    source = mri / "mccausland_pd_nifti"
    text = str(prepare_mri(str(source), check=True))
    assert "54 slices x 256 rows x 191 columns" in text and "zero-padded to 256x256" in text
    assert prepare_mri(str(source), str(tmp_path / "PD"), split="slices:38,6,10").exit_code == 0
    assert _slices(tmp_path / "PD") == {"train": [38], "val": [6], "test": [10]}
    image = nib.load(source / "chris_PD.nii.gz")
    voxels, back = np.asanyarray(image.dataobj), np.linalg.inv(image.affine)
    with h5py.File(kspace_volumes(tmp_path / "PD", "test")[0]["kspace"]) as file:
        stored, affine = file["reconstruction_esc"][()], file.attrs["affine"]
    for index in [(0, 100, 130), (9, 140, 80), (4, 60, 128)]:
        i, j, k = np.round(back @ affine @ [*index, 1]).astype(int)[:3]
        assert stored[index] == voxels[i, j, k] and k == 44 + index[0]
    assert 20 < _psnr(tmp_path / "PD", "test") < 45


def test_eight_coil_kspace(mri, tmp_path):
    source = str(mri / "kspace_8coil_undersampled")
    options = {"domain": "kspace", "axes": "coil,row,column", "split": "test"}
    text = str(prepare_mri(source, check=True, **options))
    assert "1 slices x 8 coils x 230 rows x 180 columns" in text and "12.4% of the samples, 179 of 180 columns" in text
    assert "a 2-D pattern" in text and "no target (inference only)" in text
    assert prepare_mri(source, str(tmp_path / "KS"), **options).exit_code == 0
    with pytest.warns(UserWarning, match="inference only"):
        dataset = KspaceDataset(kspace_volumes(tmp_path / "KS", "test"))
    batch = collate_slices([dataset[0]])
    assert batch["kspace"][0].shape == (8, 230, 180) and batch["mask"].sum() == 179
    image, label = PrepareKspace(CartesianMask())(batch)  # the slice's own mask is used, not a drawn one
    assert image.shape == (1, 1, 230, 180) and label is None
    plain = PrepareKspace(None)({**batch, "mask": None})[0]
    assert_within(image, plain, 2 * (230 + 180) + 8)
