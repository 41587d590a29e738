# SPDX-License-Identifier: Apache-2.0
"""MONAI's MLFlowHandler, added to a federation's handlers by an overlay of a user, records every round."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from tiny_sites import tiny_data, tiny_federation_ids

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
    (tmp_path / "mlflow.yaml").write_text(OVERLAY)
    ids = tiny_federation_ids(FL_MR, dict.fromkeys("AB", tiny_data(FL_MR, tmp_path)))
    own = {"bundle_root": str(FL_MR), "output_dir": str(tmp_path / "run"), "num_rounds": 2, "device": "cpu"}
    files = [str(FL_MR / "configs" / "federated.yaml"), str(tmp_path / "mlflow.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **own, **ids)
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
