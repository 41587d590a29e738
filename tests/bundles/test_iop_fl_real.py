# SPDX-License-Identifier: Apache-2.0
"""IOP-FL on real images: slices of six prostate sites (inverted masks), a NIfTI case with zones, a DICOM series."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

DATA = os.environ.get("FEDMONAI_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FEDMONAI_TEST_DATA (folder of real images) is not set")
CONFIGS = Path(__file__).parents[2] / "bundles" / "iop_fl" / "configs"
TINY = {"base_channels": 2, "num_pool": 4, "batch_size": 3}
INSIDE = ("BIDMC", "BMC", "HK", "RUNMC", "UCL")
OUTSIDE = "I2CVB"  # has a test picture only


@pytest.fixture
def prostate() -> Path:
    return Path(str(DATA)) / "prostate"


def run(out: Path, *files: str, **ids: Any) -> None:
    own = {"bundle_root": str(CONFIGS.parent), "output_dir": str(out), "device": "cpu"}
    workflow = ConfigWorkflow(
        [str(CONFIGS / name) for name in files], workflow_type="train", logging_file=False, **{**own, **ids}
    )
    workflow.initialize()
    workflow.run()


def values(path: Path, **wanted: str) -> list[float]:
    with path.open() as stream:
        rows = [row for row in csv.DictReader(stream) if all(row[k] == v for k, v in wanted.items())]
    return [float(row["value"]) for row in rows]


def test_five_sites_train_and_the_sixth_is_adapted_to(prostate: Path, tmp_path: Path) -> None:
    local = {f"local::{key}": value for key, value in TINY.items()}
    own = {"overlay": "configs/data/prostate_pictures.yaml", "dataset_dir": str(prostate / "slices")}
    run(tmp_path / "run", "federated.yaml", sites=dict.fromkeys(INSIDE, own), num_rounds=2, **local)
    for site in INSIDE:  # global and personal, before and after training
        assert len(values(tmp_path / "run" / "metrics.csv", site=site, split="test", metric="dice")) == 4
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "rounds.jsonl").open()]
    assert set(losses[-1]) == set(INSIDE) and all(losses[-1][site] < losses[0][site] for site in INSIDE)
    files = ("train.json", "data/prostate_pictures.yaml", "outside.yaml")
    ids = {"dataset_dir": own["dataset_dir"], "run_dir": str(tmp_path / "run"), "site": OUTSIDE, "passes": 2, **TINY}
    run(tmp_path / "outside", *files, **ids)
    result = json.loads((tmp_path / "outside" / "adaptation.json").read_text())
    assert result["experts"] == [*INSIDE, "global"] and 0 <= result["dice"]["routed after"] <= 1


def test_nifti_case_trains_tests_and_is_segmented(prostate: Path, tmp_path: Path) -> None:
    data = prostate / "prostatex_nifti"
    ids = {"dataset_dir": str(data), "folder": ".", "label_suffix": "_lab", "ckpt_dir": str(tmp_path), **TINY}
    ids["test_split"] = "all"
    run(tmp_path / "train", "train.json", epochs=1, train_split="all", val_split="all", **ids)
    run(tmp_path / "test", "train.json", "evaluate.json", **ids)
    text = (tmp_path / "test" / "metrics.csv").read_text()
    assert all(name in text for name in ("dice", "hd95", "assd", "release_dice"))
    image = nib.load(data / "Prostatex_0000.nii.gz")
    sizes = {key: TINY[key] for key in ("base_channels", "num_pool")}
    run(tmp_path / "masks", "inference.json", dataset_dir=str(data), ckpt_path=str(tmp_path / "model.pt"), **sizes)
    assert [path.name for path in (tmp_path / "masks").glob("*.nii.gz")] == ["Prostatex_0000_mask.nii.gz"]
    mask = nib.load(tmp_path / "masks" / "Prostatex_0000_mask.nii.gz")
    assert mask.shape == image.shape == (384, 384, 19)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(mask.header.get_zooms(), image.header.get_zooms(), atol=1e-5)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_dicom_series_is_segmented_in_its_own_geometry(tmp_path: Path) -> None:
    """Brains, for the reading of a real series: the mask means nothing."""
    from fedmonai.networks.segmentation_unet import SegmentationUNet

    torch.manual_seed(0)
    torch.save(SegmentationUNet(base_channels=2, num_pool=4).state_dict(), tmp_path / "model.pt")
    data = Path(str(DATA)) / "mri" / "studyforrest_t1_dicom"
    ids = {"base_channels": 2, "ckpt_path": str(tmp_path / "model.pt")}
    run(tmp_path / "masks", "inference.json", dataset_dir=str(data), **ids)
    files = sorted((tmp_path / "masks").glob("*_mask.nii.gz"))
    rows = list(csv.DictReader((tmp_path / "masks" / "segmentations.csv").open()))
    assert len(files) == len(rows) >= 1
    for path in files:
        image = nib.load(path)
        assert {384, 274} <= set(image.shape) and abs(np.linalg.det(image.affine[:3, :3])) > 0.01
    assert len(list((tmp_path / "masks" / "previews").iterdir())) == len(files)
