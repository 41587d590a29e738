# SPDX-License-Identifier: Apache-2.0
"""The comparison from plan to tables, as small as can be, and run twice."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedmonai.commands.compare as command
from fedmonai.errors import ConfigError, FederationError

ROOT = Path(__file__).parents[2]


def small_ids(tmp_path: Path) -> dict[str, Any]:
    """Ids of a federation of two sites that trains for a second."""
    ids = {"num_rounds": 1, "local_epochs": 1, "device": "cpu", "handlers": [], "sites": {"B": {}, "F": {}}}
    local = {"lr": 0.001, "base_channels": 2, "batch_size": 4, "device": "cpu", "residual": True, "save_latents": True}
    local |= {"generated_dir": str(tmp_path / "data"), "generated_size": 32, "generated_subjects": [1, 1, 1]}
    local |= {"generated_slices": 4}
    return {**ids, **{f"local::{key}": value for key, value in local.items()}}


def write(tmp_path: Path, methods: dict[str, Any], **ids: Any) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"ids": {**small_ids(tmp_path), **ids}, "methods": methods}, sort_keys=False))
    return str(path)


def test_two_methods_and_again(tmp_path: Path) -> None:
    methods = {
        "FL-MR": {"bundle": "fl_mr"},
        "alone": {"bundle": "fl_mr", "overlays": ["configs/federation/local_only.yaml"]},
    }
    plan, out = write(tmp_path, methods), tmp_path / "out"
    path, failed = command.run_plan(plan, str(out), bundles=str(ROOT / "bundles"))
    assert not failed
    text = Path(path).read_text()
    assert all(f"| {name} |" in text for name in ("zero-filled", "FL-MR", "alone"))
    with (out / "runs" / "alone" / "seed_0" / "cross_site.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["model_site"], r["test_site"]) for r in rows} == {(a, b) for a in "BF" for b in "BF"}
    tested = {
        (r["site"], r["metric"]): float(r["value"])
        for r in csv.DictReader((out / "runs/alone/seed_0/metrics.csv").open())
        if r["split"] == "test" and r["round"] == "1"
    }
    for row in rows:
        if row["model_site"] == row["test_site"]:
            assert float(row["value"]) == pytest.approx(tested[row["test_site"], row["metric"]], rel=1e-5)
    assert (out / "latents.png").is_file() and (out / "scores.png").is_file()
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*/federation.pt")}
    assert len(stamps) == 2
    command.run_plan(plan, str(out), bundles=str(ROOT / "bundles"), latents="none")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_nothing_runs_before_the_whole_plan_is_good(tmp_path: Path) -> None:
    """The mistake may be in the last method, even in an id that only its sites read; the corrected plan then runs."""
    out, good = tmp_path / "out", {"bundle": "fl_mr"}
    for methods, ids, latents, text in (
        ({"X": good}, {}, "foo", "latents is 'foo'; choose one of pca, tsne, none"),
        ({"X": good}, {"num_rounds": -1}, "none", "method 'X' cannot start: .*num_rounds.* is -1; give "),
        ({"X": good, "Y": {**good, "ids": {"local::lrr": 1}}}, {}, "none", "method 'Y' cannot start: .*'lrr'"),
    ):
        plan = write(tmp_path, methods, **ids)
        with pytest.raises(ConfigError, match=text):
            command.run_plan(plan, str(out), bundles=str(ROOT / "bundles"), latents=latents)
        assert not list(out.rglob("planned.json")) and not list(out.rglob("federation.pt"))
    path, failed = command.run_plan(
        write(tmp_path, {"X": good}), str(out), bundles=str(ROOT / "bundles"), latents="none"
    )
    assert Path(path).is_file() and not failed


def test_reasons_are_told_when_the_reference_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plan = write(tmp_path, {"X": {"bundle": "fl_mr", "ids": {"local::lr": 1e30}}, "Y": {"bundle": "fl_mr"}})
    assert command.compare(plan, str(tmp_path / "out"), latents="none") == 1
    reason, summary = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert reason.startswith("error: X, seed 0: round 1: 0 of 2 sites finished")
    assert summary == "error: no comparison: no run of the reference method 'X' has finished."
    assert (tmp_path / "out" / "runs" / "y" / "seed_0" / "report.md").is_file()


def test_reasons_are_told_when_something_else_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(planned: Any, bundles: str) -> None:
        raise FederationError("no\nluck") if planned.method.name == "X" else KeyError("a fault of ours")

    monkeypatch.setattr(command, "_run", run)
    monkeypatch.setattr(command, "check_runs", lambda runs, bundles: None)
    with pytest.raises(KeyError):
        command.compare(write(tmp_path, {"X": {"bundle": "fl_mr"}, "Y": {"bundle": "fl_mr"}}), str(tmp_path / "out"))
    assert "error: X, seed 0: no luck\n" in capsys.readouterr().err
