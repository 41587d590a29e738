# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import EnsureChannelFirst, LoadImage, Orientation
from PIL import Image

from fedmonai.data.cases.read import read_case_file, volume_shape
from fedmonai.errors import ConfigError

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def save(path, values=VALUES, affine=None):
    nib.save(nib.Nifti1Image(values, np.diag([0.5, 0.6, 3.0, 1.0]) if affine is None else affine), path)
    return path


def test_rows_run_to_the_back_and_columns_to_the_left(tmp_path):
    # the file's axes point right, anterior, superior (RAS): rows = -axis 1, columns = -axis 0
    volume = read_case_file(save(tmp_path / "a.nii.gz"))
    assert volume.values.shape == (3, 2, 4) == volume_shape(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.values, VALUES.transpose(1, 0, 2)[::-1, ::-1])
    assert volume.spacing == pytest.approx((0.6, 0.5, 3.0))
    # voxel (row 0, column 0) lies at x = 0.5 * 1, y = 0.6 * 2
    assert volume.affine[:, 3] == pytest.approx([0.5, 1.2, 0.0, 1.0])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_reads_what_monai_reads(tmp_path, order):
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([-0.5, 0.6, 3.0]))[:, order]
    path = save(tmp_path / "a.nii", affine=affine)
    expected = Orientation(axcodes="PLS")(EnsureChannelFirst()(LoadImage(image_only=True)(path)))
    volume = read_case_file(path)
    assert np.array_equal(volume.values, expected[0].numpy())
    assert volume.spacing == pytest.approx(expected.pixdim.tolist())
    assert np.allclose(volume.affine, expected.affine.numpy())
    assert volume.values.shape == volume_shape(path)


def test_orientation_none_keeps_the_axes(tmp_path):
    path = save(tmp_path / "a.nii.gz", VALUES[..., None])
    assert np.array_equal(read_case_file(path, orientation=None).values, VALUES)
    assert volume_shape(path, None) == (2, 3, 4)
    with pytest.raises(ConfigError, match="'PLA' must name each axis once"):
        read_case_file(path, orientation="PLA")


def test_a_picture_is_one_slice_without_spacing(tmp_path):
    Image.fromarray(np.array([[0, 255, 7]], dtype=np.uint8)).save(tmp_path / "a.png")
    volume = read_case_file(tmp_path / "a.png")
    assert volume.values[..., 0].tolist() == [[0, 255, 7]] and volume.spacing is None
    assert volume_shape(tmp_path / "a.png") == (1, 3, 1)


def test_refuses_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_case_file(tmp_path / "no.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no volume")
    with pytest.raises(ConfigError, match=r"text\.nii\.gz is not a NIfTI file"):
        read_case_file(tmp_path / "text.nii.gz")
    whole = save(tmp_path / "whole.nii", np.zeros((30, 30, 30), np.float32)).read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:-5000])
    with pytest.raises(ConfigError, match=r"cut\.nii cannot be read to its end"):
        read_case_file(tmp_path / "cut.nii")
    with pytest.raises(ConfigError, match="expected one 3-D volume"):
        read_case_file(save(tmp_path / "time.nii.gz", np.zeros((2, 2, 2, 2), np.uint8)))
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ConfigError, match="is not a readable picture"):
        read_case_file(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="the ending is unknown"):
        read_case_file(tmp_path / "a.dat")


def test_a_volume_beyond_the_free_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", np.zeros((40, 40, 40), np.int16))
    monkeypatch.setattr("fedmonai.data.cache.available_memory", lambda: 500_000)
    with pytest.raises(ConfigError, match=r"a\.nii\.gz has shape \(40, 40, 40\) and needs 512,000 bytes"):
        read_case_file(path)
    assert volume_shape(path) == (40, 40, 40)
