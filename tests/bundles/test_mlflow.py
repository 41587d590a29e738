# SPDX-License-Identifier: Apache-2.0
"""MONAI's MLFlowHandler, added to a federation's handlers by an overlay of a user, records every round."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from tiny_sites import TINY_SITES

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed; it comes with pip install 'fedmonai[mlflow]'")

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"
OVERLAY = """
+handlers:
  - _target_: MLFlowHandler
    tracking_uri: "$'sqlite:///' + @output_dir + '/mlflow.db'"
    experiment_name: hospitals
    iteration_log: false
"""


def test_every_round_is_in_mlflow(tmp_path: Path) -> None:
    tiny = TINY_SITES["fl_mr"]
    (tmp_path / "mlflow.yaml").write_text(OVERLAY)
    sites = {}
    for name in "AB":
        tiny.write(tmp_path / name, None)
        sites[name] = {"dataset_dir": str(tmp_path / name)}
    ids = {f"local::{key}": value for key, value in tiny.ids.items()}
    own = {"bundle_root": str(FL_MR), "output_dir": str(tmp_path / "run"), "num_rounds": 2, "device": "cpu"}
    files = [str(FL_MR / "configs" / "federated.yaml"), str(tmp_path / "mlflow.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, sites=sites, **own, **ids)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    # the overlay adds to the handlers of the bundle and replaces none
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hospitals")
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("train_loss", "train_loss_A", "val_psnr", "val_psnr_B"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in history] == [1, 2], name
        assert all(math.isfinite(point.value) for point in history)
