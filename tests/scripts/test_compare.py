# SPDX-License-Identifier: Apache-2.0
"""The comparison script from plan to tables, as small as can be, and run twice."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", ROOT / "scripts" / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_methods_and_again(script: ModuleType, tmp_path: Path) -> None:
    ids = {"num_rounds": 1, "local_epochs": 1, "device": "cpu", "handlers": [], "sites": {"B": {}, "F": {}}}
    local = {"lr": 0.001, "channels": 2, "batch_size": 4, "device": "cpu", "residual": True, "save_latents": True}
    local |= {"generated_dir": str(tmp_path / "data"), "generated_size": 32, "generated_subjects": [1, 1, 1]}
    local |= {"generated_slices": 4}
    ids |= {f"local::{key}": value for key, value in local.items()}
    methods = {
        "FL-MR": {"bundle": "fl_mr"},
        "alone": {"bundle": "fl_mr", "overlays": ["configs/federation/local_only.yaml"]},
    }
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(yaml.safe_dump({"ids": ids, "methods": methods}))
    path, failed = script.compare(str(plan), str(out), bundles=str(ROOT / "bundles"))
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
    script.compare(str(plan), str(out), bundles=str(ROOT / "bundles"), latents="none")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
