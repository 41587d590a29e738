# SPDX-License-Identifier: Apache-2.0
"""What a training and a federation say of themselves, and that no weights are lost to a second training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from fedmonai.errors import ConfigError
from fedmonai.federated.run_log import RoundRecord
from fedmonai.handlers.progress import RoundProgress, TrainingProgress


def trainer(out: Path) -> Engine:
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(batch)}])
    TrainingProgress(out / "models", out).attach(engine)
    return engine


def test_a_line_per_epoch_and_where_weights_and_curves_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    engine = trainer(tmp_path)

    def save() -> None:
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / "model.pt").write_bytes(b"weights")

    engine.add_event_handler(Events.EPOCH_COMPLETED, save)
    engine.run([1.0, 3.0], max_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["epoch 1/2: loss 2", "epoch 2/2: loss 2"]
    assert lines[2:] == [f"weights: {tmp_path / 'models' / 'model.pt'}; curves: {tmp_path / 'tensorboard'}"]
    engine.run([1.0], max_epochs=3)  # an engine that goes on: these are its own weights
    with pytest.raises(ConfigError, match=r"model.pt' is there and would be overwritten; give another --ckpt_dir"):
        trainer(tmp_path).run([1.0], max_epochs=1)
    assert (tmp_path / "models" / "model.pt").read_bytes() == b"weights"


def test_a_line_per_round_names_who_failed_and_not_every_site(capsys: pytest.CaptureFixture) -> None:
    engine = Engine(lambda engine, site: None)
    engine.sites = SimpleNamespace(plan=SimpleNamespace(names=["A", "B"]))
    engine.checkpoint = SimpleNamespace(best=SimpleNamespace(round=lambda: 1))
    engine.round_costs = {"bytes_up": {"A": {"train": {"weights": 2_000_000}}}}

    def end(engine: Engine) -> None:
        engine.record = RoundRecord(1, ["A", "B"])
        engine.record.fail("B", ValueError("no disk"))
        engine.state.metrics = {"train_loss": 0.5, "train_loss_A": 0.5, "val_psnr": 20.0, "val_psnr_A": 20.0}

    engine.add_event_handler(Events.EPOCH_COMPLETED, end)
    RoundProgress().attach(engine)
    engine.run(["A", "B"], max_epochs=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("round 1/1: loss 0.5, val_psnr 20, best round 1, 2.00 MB from the sites, ")
    assert line.endswith(" s; B failed: ValueError: no disk")
