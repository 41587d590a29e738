# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fedmonai.data.cases.check import check_prostate, problem_table
from fedmonai.errors import ConfigError

SHAPE = (8, 8, 4)


def save(path, values, affine=None):
    nib.save(nib.Nifti1Image(values, np.diag([0.5, 0.5, 3.0, 1.0]) if affine is None else affine), path)


def image() -> np.ndarray:
    return np.random.RandomState(0).rand(*SHAPE).astype(np.float32)


def mask(value: int = 1) -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[2:5, 2:5, 1:3] = value
    return values


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "HK"
    folder.mkdir()
    for number in range(9):
        save(folder / f"Case{number:02d}.nii.gz", image())
        save(folder / f"Case{number:02d}_segmentation.nii.gz", mask(2))
    return folder


def test_a_good_folder_has_no_problems(site):
    assert check_prostate(site.parent) == (9, [])


def test_every_problem_is_found_and_said(site):
    (site / "Case00_segmentation.nii.gz").unlink()
    save(site / "Case01_segmentation.nii.gz", mask()[..., :3])
    save(site / "Case02_segmentation.nii.gz", mask(), np.diag([-0.5, 0.5, 3.0, 1.0]))
    save(site / "Case03_segmentation.nii.gz", np.zeros(SHAPE, np.uint8))
    save(site / "Case04_segmentation.nii.gz", 1 - mask())
    broken = image()
    broken[0, 0, 0], broken[1, 1, 1] = np.nan, np.inf
    save(site / "Case05.nii.gz", broken)
    (site / "Case06.nii.gz").write_bytes(b"nothing")
    save(site / "Case07_segmentation.nii.gz", (mask() * 0.4).astype(np.float32))
    save(site / "Case08.nii.gz", np.full(SHAPE, 3.0, np.float32))
    count, problems = check_prostate(site.parent)
    assert count == 9
    assert [(entry.case, entry.problem) for entry in problems] == [
        ("Case00", "missing mask"),
        ("Case01", "shape mismatch"),
        ("Case02", "affine mismatch"),
        ("Case03", "empty mask"),
        ("Case04", "inverted mask"),
        ("Case05", "not finite"),
        ("Case06", "unreadable image"),
        ("Case07", "not a mask"),
        ("Case08", "constant image"),
    ]
    details = {entry.case: entry.detail for entry in problems}
    assert details["Case01"] == "image (8, 8, 4), mask (8, 8, 3)"
    assert "2 NaN or infinite voxels" in details["Case05"]
    table = problem_table(problems).splitlines()
    assert table[0].split() == ["site", "case", "problem", "detail"] and len(table) == 11
    assert table[2].startswith("HK    Case00  missing mask")


def test_small_differences_of_headers_are_no_problem(site):
    affine = np.diag([0.5, 0.5, 3.0, 1.0])
    affine[0, 3] = 1e-4
    save(site / "Case00_segmentation.nii.gz", mask(), affine)
    assert check_prostate(site.parent, ["HK"])[1] == []


def test_refuses_a_folder_without_cases(tmp_path):
    with pytest.raises(ConfigError, match="holds no <site>"):
        check_prostate(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        check_prostate(tmp_path / "no")
