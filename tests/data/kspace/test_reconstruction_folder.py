# SPDX-License-Identifier: Apache-2.0
"""What inference reads: which k-space is taken as measured, which is undersampled, and what stops it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import assert_within

from fedmonai.data.kspace.folder import ReconstructionFolder, one_volume
from fedmonai.errors import ConfigError


def test_own_mask_and_empty_columns_are_taken_as_measured(tmp_path, make_volume):
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)
    make_volume(tmp_path / "masked.h5", (2, 8, 6), target=None, mask=mask)
    items = {item["volume"]: item for item in ReconstructionFolder(str(tmp_path))}
    assert items["masked"]["sampling"] == "as measured"
    assert torch.equal(items["masked"]["mask"], torch.from_numpy(mask).expand(2, -1))


@pytest.mark.parametrize(("undersampling", "drawn"), [("auto", True), ("none", False)])
def test_full_kspace(tmp_path, make_volume, undersampling, drawn):
    make_volume(tmp_path / "full.h5", (2, 3, 8, 6))
    [item] = ReconstructionFolder(str(tmp_path), undersampling)
    assert ("mask" not in item) == drawn
    assert drawn or torch.equal(item["mask"], torch.ones(2, 6))
    assert [tuple(plane.shape) for plane in item["kspace"]] == [(3, 8, 6)] * 2
    assert item["target"].shape == (2, 1, 8, 6) and item["file"] == ["full.h5"] * 2


def test_dicom_series_with_geometry(tmp_path, make_series):
    make_series(tmp_path, 4)
    [item] = ReconstructionFolder(str(tmp_path))
    assert len(item["kspace"]) == 4 and item["kind"] == "dicom" and item["orientation"] is None
    assert item["affine"].shape == (4, 4) and "undersampled" in item["sampling"]
    image = torch.fft.ifft2(torch.fft.ifftshift(item["kspace"][1], dim=(-2, -1)), norm="ortho")
    magnitude = torch.fft.fftshift(image, dim=(-2, -1)).abs()
    assert_within(magnitude, item["target"][1], 2 * sum(magnitude.shape))


def test_damaged_files_stop_it_unless_skipped(tmp_path, make_volume):
    make_volume(tmp_path / "good.h5")
    (tmp_path / "bad.xyz").write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"first bad\.xyz.*skip_damaged"):
        ReconstructionFolder(str(tmp_path))
    skipping = ReconstructionFolder(str(tmp_path), skip_damaged=True)
    assert len(skipping) == 1 and skipping.skipped[0].startswith("bad.xyz")


def test_what_is_refused(tmp_path, make_volume):
    with pytest.raises(ConfigError, match="there is no HDF5, NIfTI"):
        ReconstructionFolder(str(tmp_path))
    with pytest.raises(ConfigError, match="domain: 'frequency'"):
        ReconstructionFolder(str(tmp_path), domain="frequency")
    path = make_volume(tmp_path / "good.h5")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ConfigError, match=r"good\.h5.*take it out"):
        next(iter(ReconstructionFolder(str(tmp_path))))
    with pytest.raises(ConfigError, match="batch_size to 1"):
        one_volume([{}, {}])
