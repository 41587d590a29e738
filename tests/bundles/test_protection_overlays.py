# SPDX-License-Identifier: Apache-2.0
"""The overlays that protect a federation run in the FL-MR bundle: median, trimmed mean, differential privacy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from run_results import rounds
from tiny_sites import tiny_data, tiny_federation_ids

from fedmonai.federated.privacy import GaussianPrivacy
from fedmonai.methods.robust import Median, TrimmedMean

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(BUNDLE, tmp_path_factory.mktemp("site"))


def run(overlay: str, site: Path, out: Path, **ids: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / name) for name in ("federated.yaml", f"federation/{overlay}.yaml")]
    own = {"bundle_root": str(BUNDLE), "output_dir": str(out), "num_rounds": 1, "local_epochs": 1, "device": "cpu"}
    own |= tiny_federation_ids(BUNDLE, dict.fromkeys("ABC", site))
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **own, **ids)
    workflow.initialize()
    workflow.run()
    return workflow


@pytest.mark.parametrize(("overlay", "kind"), [("median", Median), ("trimmed_mean", TrimmedMean)])
def test_robust_mean(overlay: str, kind: type, site: Path, tmp_path: Path) -> None:
    workflow = run(overlay, site, tmp_path)
    assert type(workflow.parser.get_parsed_content("strategy")) is kind
    assert rounds(tmp_path)[0]["completed"] == ["A", "B", "C"]


def test_differential_privacy(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus", reason="the extra 'privacy' is not installed")
    workflow = run("private", site, tmp_path, **{"exchange_filters::0::noise_multiplier": 4.0})
    (filter_,) = workflow.parser.get_parsed_content("exchange_filters")
    assert isinstance(filter_, GaussianPrivacy)
    spent = rounds(tmp_path)[0]["privacy"]
    assert {spent[name]["noise_multiplier"] for name in "ABC"} == {4.0}
    assert json.loads((tmp_path / "sites/A/privacy.json").read_text())["history"] == [[4.0, 1]]
    assert f"{spent['A']['epsilon']:.4g}" in (tmp_path / "report.md").read_text()
