# SPDX-License-Identifier: Apache-2.0
"""The overlays that protect a federation run in the FL-MR bundle: median, trimmed mean, differential privacy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.methods.robust import Median, TrimmedMean

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
TINY = {"base_channels": 2, "resolution": 32, "batch_size": 4, "sequence": None, "device": "cpu"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    generator = np.random.RandomState(0)
    for split in ("train", "val", "test"):
        (root / split).mkdir()
        images = generator.rand(4, 32, 32).astype(np.float32)
        kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
        with h5py.File(root / split / f"{split}.h5", "w") as stream:
            stream["kspace"], stream["reconstruction_esc"] = kspace.astype(np.complex64), images
            stream.attrs["max"], stream.attrs["norm"] = images.max(), np.linalg.norm(images)
    return root


def run(overlay: str, site: Path, out: Path, **ids: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / name) for name in ("federated.yaml", f"federation/{overlay}.yaml")]
    own = {"bundle_root": str(BUNDLE), "output_dir": str(out), "num_rounds": 1, "local_epochs": 1, "device": "cpu"}
    sites = {"sites": {name: {"dataset_dir": str(site)} for name in "ABC"}}
    local = {f"local::{key}": value for key, value in TINY.items()}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **own, **sites, **local, **ids)
    workflow.initialize()
    workflow.run()
    return workflow


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "rounds.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(("overlay", "kind"), [("median", Median), ("trimmed_mean", TrimmedMean)])
def test_robust_mean(overlay: str, kind: type, site: Path, tmp_path: Path) -> None:
    workflow = run(overlay, site, tmp_path)
    assert type(workflow.parser.get_parsed_content("strategy")) is kind
    assert record(tmp_path)["completed"] == ["A", "B", "C"]


def test_differential_privacy(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")
    workflow = run("private", site, tmp_path, **{"exchange_filters::0::noise_multiplier": 4.0})
    (filter_,) = workflow.parser.get_parsed_content("exchange_filters")
    assert isinstance(filter_, GaussianPrivacy)
    spent = record(tmp_path)["privacy"]
    assert {spent[name]["noise_multiplier"] for name in "ABC"} == {4.0}
    assert json.loads((tmp_path / "sites/A/privacy.json").read_text())["history"] == [[4.0, 1]]
    assert f"{spent['A']['epsilon']:.4g}" in (tmp_path / "report.md").read_text()
