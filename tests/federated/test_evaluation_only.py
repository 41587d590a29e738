# SPDX-License-Identifier: Apache-2.0
"""A federation of no rounds evaluates given weights: as round 0, once, and a resumed one does nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from run_results import final, same

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.report.page import write_report


def _rows(out: Path, number: str) -> list[tuple[str, ...]]:
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["round"] == number]
    return sorted((row["site"], row["model"], row["metric"], row["value"]) for row in rows)


def test_given_weights_are_tested_once_as_round_0(
    tmp_path: Path, tiny_federation: Callable[..., Federation], caplog: pytest.LogCaptureFixture
) -> None:
    tiny_federation(tmp_path / "trained", num_rounds=1).run()
    start = tmp_path / "trained" / "models" / "model_final.pt"
    out = tmp_path / "evaluated"
    tiny_federation(out, num_rounds=0, init_ckpt=str(start)).run()
    references = [row for row in _rows(tmp_path / "trained", "0") if row[1] == "zero-filled"]
    trained = _rows(tmp_path / "trained", "1")
    assert _rows(out, "0") == sorted(references + trained) and len(trained) > 0
    assert same(final(out), final(tmp_path / "trained"))
    described = json.loads((out / "run.json").read_text())
    assert (described["num_rounds"], described["evaluation_only"], described["best_round"]) == (0, True, None)
    assert any("evaluation only" in note for note in described["notes"])
    write_report(out)
    table = (out / "metrics.csv").read_text()
    tiny_federation(out, num_rounds=0, init_ckpt=str(start), resume=True).run()
    assert "is finished (round 0 of 0); nothing is done" in caplog.text
    assert (out / "metrics.csv").read_text() == table


def test_weights_must_be_given(tmp_path: Path, tiny_federation: Callable[..., Federation]) -> None:
    with pytest.raises(
        ConfigError, match="num_rounds is 0, which evaluates given weights; name their file with init_ckpt"
    ):
        tiny_federation(tmp_path, num_rounds=0)
    with pytest.raises(ConfigError, match="num_rounds is -1; give 1 or more, or 0"):
        tiny_federation(tmp_path, num_rounds=-1)
