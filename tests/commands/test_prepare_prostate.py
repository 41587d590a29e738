# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from run_command import run_command

PROSTATE = ("prepare", "prostate", "--dataset_dir")


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "UCL").mkdir()
    label = np.zeros((4, 4, 2), np.uint8)
    label[1, 1] = 1
    for number in range(4):
        image = np.arange(32, dtype=np.float32).reshape(4, 4, 2)
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "UCL" / f"Case{number:02d}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "UCL" / f"Case{number:02d}_segmentation.nii.gz")
    return tmp_path


def test_check_writes_nothing(dataset, monkeypatch, capsys):
    assert run_command(monkeypatch, *PROSTATE, dataset, "--check") == 0
    assert capsys.readouterr().out == "4 cases checked, no problem found\n"
    assert not list(dataset.rglob("*.txt"))


def test_case_lists_are_written(dataset, monkeypatch, capsys):
    assert run_command(monkeypatch, *PROSTATE, dataset, "--sites", "UCL", "--seed", 1) == 0
    assert "UCL: 2 train, 1 val, 1 test" in capsys.readouterr().out
    lines = [(dataset / "UCL" / f"{split}.txt").read_text().split() for split in ("train", "val", "test")]
    assert sorted(case for line in lines for case in line) == ["Case00", "Case01", "Case02", "Case03"]


def test_problems_are_a_table_and_exit_code_1(dataset, monkeypatch, capsys):
    (dataset / "UCL" / "Case02_segmentation.nii.gz").unlink()
    assert run_command(monkeypatch, *PROSTATE, dataset, "--check") == 1
    assert "UCL   Case02  missing mask" in capsys.readouterr().out


def test_a_wrong_folder_is_one_line(tmp_path, monkeypatch):
    assert "is not a folder" in run_command(monkeypatch, *PROSTATE, tmp_path / "no")


def test_a_misspelt_option_does_nothing(dataset, monkeypatch):
    assert "did you mean --check?" in run_command(monkeypatch, *PROSTATE, dataset, "--chek")
    assert not list(dataset.rglob("*.txt"))
