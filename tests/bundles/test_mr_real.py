# SPDX-License-Identifier: Apache-2.0
"""Every MR bundle on real scans: three institutions from DICOM and NIfTI, a resumed run, and a new DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from tiny_sites import BUNDLES, MR, tiny_site

from fedmonai.data.convert.prepare import prepare_mri

DATA = os.environ.get("FEDMONAI_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FEDMONAI_TEST_DATA (folder of real images) is not set")
MR_BUNDLES = [bundle for bundle in BUNDLES if tiny_site(bundle) is MR]
IDS = {"base_channels": 2, "residual": True, "batch_size": 2, "lr": 0.001, "resolution": 64, "sequence": None}
MASKS = {"UIH": "equispaced", "SF": "radial", "PD": "random_2d"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, mri = tmp_path_factory.mktemp("real"), Path(str(DATA)) / "mri"
    for source, site, split in (
        ("uih_t1_dicom/train", "UIH", "slices:11,3,0"),
        ("uih_t1_dicom/test", "UIH", "test"),
        ("studyforrest_t1_dicom", "SF", "slices:24,4,8"),
        ("mccausland_pd_nifti", "PD", "slices:38,4,6"),
    ):
        done = prepare_mri(str(mri / source), str(root / site), split=split, max_size=256)
        assert done.exit_code == 0, str(done)
    return root


def run(bundle: Path, data: Path, out: Path, **ids: Any) -> Any:
    config = str(bundle / "configs" / "federated.yaml")
    own: dict[str, Any] = {"bundle_root": str(bundle), "output_dir": str(out), "device": "cpu", "handlers": []}
    own |= {"num_rounds": 2, "local_epochs": 1, "val_interval": 1, **{f"local::{k}": v for k, v in IDS.items()}}
    own |= {"local::slice_range": [0, 3]}
    own["sites"] = {name: {"dataset_dir": str(data / name)} for name in MASKS}
    if "mask_seed" in ConfigParser.load_config_file(bundle / "configs" / "train.json"):
        own["sites"] = {n: {**s, "mask_kind": MASKS[n], "mask_seed": 0} for n, s in own["sites"].items()}
        own["sites"]["PD"]["resolution"] = 80
    if "target_site" in ConfigParser.load_config_file(config):
        own |= {"target_site": "PD", "share_features": True}
    workflow = ConfigWorkflow(config, workflow_type="train", logging_file=False, **{**own, **ids})
    workflow.initialize()
    federation = workflow.parser.get_parsed_content("federation")
    federation.run()
    return federation


@pytest.mark.parametrize("bundle", MR_BUNDLES, ids=[b.name for b in MR_BUNDLES])
def test_rounds_resume_and_a_new_series(bundle: Path, data: Path, tmp_path: Path) -> None:
    federation = run(bundle, data, tmp_path / "whole")
    run(bundle, data, tmp_path / "cut", num_rounds=1)
    run(bundle, data, tmp_path / "cut", resume=True)
    names = {path.name for path in (tmp_path / "whole" / "models").iterdir()}
    for name in names:
        one, two = (torch.load(tmp_path / part / "models" / name, weights_only=True) for part in ("whole", "cut"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    metrics = (tmp_path / "whole" / "metrics.csv").read_text()
    assert all(f",{name}," in metrics for name in MASKS) and "nan" not in metrics
    model = "SF.pt" if federation.sites.open("SF").private else "model.pt"
    assert model in names
    series = Path(str(DATA)) / "mri" / "studyforrest_t1_dicom" / "test"
    ids = {"bundle_root": str(bundle), "dataset_dir": str(series), "output_dir": str(tmp_path / "new"), "device": "cpu"}
    ids |= {"ckpt_path": str(tmp_path / "whole" / "models" / model), "base_channels": 2, "residual": True}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **ids
    )
    workflow.initialize()
    workflow.run()
    [file] = (tmp_path / "new").glob("*_reconstruction.nii.gz")
    volume = nib.load(file).get_fdata()
    assert volume.shape[2] == 8 and np.isfinite(volume).all() and volume.max() > 0
