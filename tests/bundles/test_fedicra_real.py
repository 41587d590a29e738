# SPDX-License-Identifier: Apache-2.0
"""FedICRA on real images (opt-in): fundus sites, angiography with lossy masks, human scribbles of cardiac MR."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

BUNDLE = Path(__file__).parents[2] / "bundles" / "fedicra"
REAL = os.environ.get("FEDMONAI_TEST_DATA")
pytestmark = pytest.mark.skipif(not REAL, reason="FEDMONAI_TEST_DATA names no folder of real images")
SMALL: dict[str, Any] = {"image_size": 64, "channels": [4, 8, 8, 8, 16], "head_channels": 4, "batch_size": 4}


def trained_and_tested(overlay: str, data: str, out: Path, **ids: Any) -> dict[str, float]:
    """Metrics of the test split after local training with a data overlay of the bundle."""
    ids = {**SMALL, "epochs": 4, "val_interval": 4, "device": "cpu", **ids, "dataset_dir": str(Path(str(REAL)) / data)}
    ids |= {"bundle_root": str(BUNDLE), "output_dir": str(out), "ckpt_dir": str(out)}
    train = ["train.json", f"data/{overlay}.yaml"]
    for names in (train, [*train, "evaluate.json"]):
        files = [str(BUNDLE / "configs" / name) for name in names]
        workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **ids)
        workflow.initialize()
        workflow.run()
    metrics: dict[str, float] = workflow.evaluator.state.metrics
    assert all(np.isfinite(value) for value in metrics.values())
    return metrics


def test_two_fundus_sites_train_together(tmp_path: Path) -> None:
    sites = {
        name: {
            "overlay": "configs/data/fundus_pairs.yaml",
            "dataset_dir": str(Path(str(REAL)) / "fundus" / folder),
            "site_index": index,
            "annotation": annotation,
        }
        for index, (name, folder, annotation) in enumerate(
            [("A", "drishti_gs", "scribble"), ("B", "refuge_train", "box")]
        )
    }
    files = [str(BUNDLE / "configs" / name) for name in ("federated.yaml", "demo.yaml")]
    ids = {f"local::{key}": value for key, value in SMALL.items()} | {"local::device": "cpu", "device": "cpu"}
    fixed = {"bundle_root": str(BUNDLE), "output_dir": str(tmp_path), "sites": sites, "num_rounds": 6, "handlers": []}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **fixed, **ids)
    workflow.initialize()
    workflow.run()
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert all(not line["failed"] for line in lines)
    assert all(lines[-1]["loss"][site] < lines[0]["loss"][site] for site in "AB")
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["split"] == "test"]
    assert {row["metric"] for row in rows} >= {"dice_disc", "dice_cup", "hd95_disc", "assd_cup"}
    assert (tmp_path / "report.md").is_file()


def test_angiography_with_lossy_masks(tmp_path: Path) -> None:
    metrics = trained_and_tested("octa_pairs", "octa/octa25k_3x3", tmp_path, annotation="block")
    assert set(metrics) == {"dice", "dice_faz", "hd95_faz", "assd_faz"}


def test_human_scribbles_of_cardiac_volumes(tmp_path: Path) -> None:
    metrics = trained_and_tested("acdc_scribbles", "cardiac/acdc_h5", tmp_path, epochs=2, val_interval=2)
    assert {f"dice_{name}" for name in ("rv", "myo", "lv")} <= set(metrics)


def test_masks_of_real_pictures_have_their_size(tmp_path: Path) -> None:
    trained_and_tested("octa_pairs", "octa/octa25k_3x3", tmp_path, annotation="scribble", epochs=1, val_interval=1)
    ids = {key: SMALL[key] for key in ("image_size", "channels", "head_channels")}
    ids |= {"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "masks"), "ckpt_path": str(tmp_path / "model.pt")}
    folder = Path(str(REAL)) / "octa/octa25k_3x3/image"
    config = str(BUNDLE / "configs" / "inference.json")
    workflow = ConfigWorkflow(
        config, workflow_type="infer", logging_file=False, dataset_dir=str(folder), device="cpu", **ids
    )
    workflow.initialize()
    workflow.run()
    for path in folder.iterdir():
        assert Image.open(tmp_path / "masks" / f"{path.stem}_mask.png").size == Image.open(path).size
