# SPDX-License-Identifier: Apache-2.0
"""The MR bundles on real scans: three sites of different scanners, two rounds, whole and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from fedmonai.data.convert import prepare_mri

DATA = os.environ.get("FEDMONAI_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FEDMONAI_TEST_DATA (folder of real images) is not set")
ROOT = Path(__file__).parents[2] / "bundles"
SOURCES = {
    "UIH": [("uih_t1_dicom/train", "slices:11,3,0"), ("uih_t1_dicom/test", "test")],
    "SF": [("studyforrest_t1_dicom", "slices:24,4,8")],
    "PD": [("mccausland_pd_nifti", "slices:38,6,10")],
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("real")
    for site, parts in SOURCES.items():
        for folder, split in parts:
            source = str(Path(str(DATA)) / "mri" / folder)
            assert prepare_mri(source, str(root / site), split=split, max_size=256).exit_code == 0
    return {site: {"dataset_dir": str(root / site), "sequence": None} for site in SOURCES}


def run(bundle: str, sites: dict, out: Path, num_rounds: int, resume: bool = False) -> dict[str, torch.Tensor]:
    """The final weights of what is shared."""
    files = [str(ROOT / bundle / "configs" / name) for name in ("federated.yaml", "demo.yaml")]
    ids = {"bundle_root": str(ROOT / bundle), "output_dir": str(out), "device": "cpu", "handlers": []}
    ids |= {"num_rounds": num_rounds, "local_steps": 2, "resume": resume, "sites": sites}
    ids |= {"local::channels": 4, "local::resolution": 96, "local::device": "cpu"}
    if "target_site" in ConfigParser.load_config_file(files[0]):
        ids |= {"target_site": "PD", "train_sites": ["UIH", "SF"]}
    workflow = ConfigWorkflow(files, "train", logging_file=False, **ids)
    workflow.initialize()
    workflow.run()
    return torch.load(out / "models" / "model_final.pt", weights_only=True)


@pytest.mark.parametrize("bundle", ["fl_mr", "fl_mrcm", "fedmri"])
def test_two_rounds_and_a_resumed_run(bundle: str, sites: dict, tmp_path: Path) -> None:
    whole = run(bundle, sites, tmp_path / "whole", 2)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert all(not line["failed"] and line["completed"] == line["participants"] for line in lines)
    tested = [
        row.split(",") for row in (tmp_path / "whole" / "metrics.csv").read_text().splitlines() if ",test," in row
    ]
    psnr = {row[1]: float(row[5]) for row in tested if row[4] == "psnr" and row[2] in ("global", "personal")}
    assert psnr.keys() == sites.keys()
    assert all(15 < value < 45 for value in psnr.values())
    run(bundle, sites, tmp_path / "cut", 1)
    resumed = run(bundle, sites, tmp_path / "cut", 2, resume=True)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
