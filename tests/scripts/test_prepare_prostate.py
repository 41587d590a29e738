# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_prostate.py"


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("prepare_prostate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


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


def test_check_writes_nothing(main, dataset, capsys):
    main(str(dataset), check=True)
    assert capsys.readouterr().out == "4 cases checked, no problem found\n"
    assert not list(dataset.rglob("*.txt"))


def test_case_lists_are_written(main, dataset, capsys):
    main(str(dataset), sites="UCL", seed=1)
    assert "UCL: 2 train, 1 val, 1 test" in capsys.readouterr().out
    lines = [(dataset / "UCL" / f"{split}.txt").read_text().split() for split in ("train", "val", "test")]
    assert sorted(case for line in lines for case in line) == ["Case00", "Case01", "Case02", "Case03"]


def test_problems_are_a_table_and_exit_code_1(main, dataset, capsys):
    (dataset / "UCL" / "Case02_segmentation.nii.gz").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(str(dataset), check=True)
    assert stopped.value.code == 1
    assert "UCL   Case02  missing mask" in capsys.readouterr().out


def test_a_wrong_folder_is_one_line(main, tmp_path):
    with pytest.raises(SystemExit, match="is not a folder"):
        main(str(tmp_path / "no"))


def test_a_misspelt_option_does_nothing(dataset):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dataset_dir", str(dataset), "--chek"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "did you mean --check?" in done.stderr
    assert not list(dataset.rglob("*.txt"))
