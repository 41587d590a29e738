# SPDX-License-Identifier: Apache-2.0
"""Bundles of deployed runs: a site writes that of its own network, the server claims nothing of the sites' data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmonai.federated.plan import SitePlan
from fedmonai.report.trained_bundle import write_run_bundles, write_site_bundle

FEDMRI = Path(__file__).parents[2] / "bundles" / "fedmri"
RUN = {"method": "FedMRI", "num_rounds": 2, "sites": ["A", "B"], "train_sites": ["A", "B"], "best_round": 2, "seed": 0}
WHERE = {"round": 2, "site": "A", "split": "test", "metric": "psnr"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metadata(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text())
    return found


@pytest.fixture
def plan(tmp_path: Path) -> SitePlan:
    return SitePlan(FEDMRI, {"A": {"dataset_dir": "/data/own"}, "B": {}}, tmp_path, local={"mask_kind": "radial"})


def test_a_site_writes_the_bundle_of_its_own_network(plan: SitePlan) -> None:
    assert write_site_bundle(plan, "A", "FedMRI") is None, "it has none"
    plan.own_model("A").parent.mkdir()
    torch.save({"a": torch.ones(2)}, plan.own_model("A"))
    cases = [{**WHERE, "model": "personal", "case": f"c{n}", "value": n} for n in (20.0, 22.0, 27.0)]
    write_rows(plan.folder("A") / "cases.csv", cases)
    write_rows(plan.folder("A") / "metrics.csv", [{**WHERE, "model": "personal", "value": 23.0}])
    bundle = write_site_bundle(plan, "A", "FedMRI")
    assert bundle == plan.folder("A") / "bundle"
    found = metadata(bundle)
    psnr = found["eval_metrics"]["A"]["psnr"]
    assert psnr["mean"] == 23 and psnr["n"] == 3 and 20 <= psnr["low"] < 23 < psnr["high"] <= 27
    assert found["federated"]["training_sites"] == ["A"] and found["data_source"].startswith("images of the sites")
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert (
        config["mask_kind"] == "radial"
        and torch.load(bundle / "models" / "model.pt", weights_only=True)["a"].sum() == 2
    )
    text = "".join(path.read_text() for path in bundle.rglob("*.json"))
    assert "/data/own" not in text and "c0" not in text, "paths and cases stay out of it"


def test_a_server_writes_the_global_network_and_claims_nothing_of_the_data(plan: SitePlan, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "models").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "models" / "model.pt")
    write_rows(tmp_path / "metrics.csv", [{**WHERE, "model": "global", "value": 23.0}])
    assert write_run_bundles(tmp_path, plan, here=False) == [tmp_path / "bundle"]
    found = metadata(tmp_path / "bundle")
    assert found["eval_metrics"] == {"A": {"psnr": {"mean": 23.0, "n": 1}}}
    assert found["data_source"].startswith("images of the sites")
