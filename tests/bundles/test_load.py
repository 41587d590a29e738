# SPDX-License-Identifier: Apache-2.0
"""``monai.bundle.load`` gives the network of a bundle with its trained weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, load

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parent.parent.name for path in ROOT.glob("*/configs/metadata.json"))


def test_bundles_are_found() -> None:
    assert BUNDLES == ["fedicra", "fedmri", "fl_mr", "fl_mrcm", "iop_fl"]


@pytest.mark.parametrize("name", BUNDLES)
def test_loaded_network_is_the_trained_one(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / name / "configs", tmp_path / name / "configs")
    (tmp_path / name / "models").mkdir()
    root = {"bundle_root": str(tmp_path / name), "device": "cpu"}
    files = [str(tmp_path / name / "configs" / "train.json")]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **root)
    torch.manual_seed(0)
    trained = workflow.parser.get_parsed_content("network_def").eval()
    torch.save(trained.state_dict(), tmp_path / name / "models" / "model.pt")
    torch.manual_seed(1)
    loaded = load(name, bundle_dir=str(tmp_path), source="github", device="cpu")
    expected, found = trained.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
