# SPDX-License-Identifier: Apache-2.0
"""The report says what the tables hold, for whole and for partial runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedmonai.errors import ConfigError
from fedmonai.report.page import finish, format_table, write_report
from fedmonai.report.run_tables import read_run


def make_run(folder: Path, tested: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"method": "FL-MR", "num_rounds": 2, "sites": ["A", "B"], "train_sites": ["A", "B"], "test_sites": ["A"]}
    run |= {"versions": {"torch": "9.9"}, "seed": 3, "best_round": 2, "key_metric": "psnr", "notes": ["a remark"]}
    (folder / "run.json").write_text(json.dumps(run))
    record = {"participants": ["A", "B"], "failed": {}, "seconds": 2.0, "notes": []}
    record |= {
        "bytes_up": {"A": {"train": {"weights": 100}}},
        "bytes_down": {"A": {"train": {"weights": 100, "latents": 20000}}},
    }
    terms = {"tree": {"A": 0.25, "B": 0.5}, "tree_weight": {"A": 0.1, "B": 0.1}, "median_support": {"A": 12.0}}
    record |= {"train_metrics": terms}
    lines = [{"round": 1, **record}, {"round": 2, **record, "failed": {"B": "RuntimeError: no disk"}}]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = ["1,A,global,train,loss,0.5", "1,A,global,val,psnr,20.0", "2,A,global,val,psnr,22.0"]
    cases = []
    if tested:
        for number, model, values in ((0, "zero_filled", (18, 20)), (0, "global", (10, 11)), (2, "global", (24, 26))):
            metrics.append(f"{number},A,{model},test,psnr,{sum(values) / 2}")
            cases += [f"{number},A,{model},test,v{i},psnr,{value}" for i, value in enumerate(values)]
    (folder / "metrics.csv").write_text("round,site,model,split,metric,value\n" + "\n".join(metrics) + "\n")
    (folder / "cases.csv").write_text("\n".join(["round,site,model,split,case,metric,value", *cases]) + "\n")
    return folder


def test_table_has_zero_filled_before_and_after(tmp_path: Path) -> None:
    rows = [line.split() for line in format_table(make_run(tmp_path)).splitlines()]
    assert rows[0] == ["PSNR", "[dB]", "zero-filled", "before", "after"]
    assert rows[1] == ["A", "19.00", "10.50", "25.00"]
    assert rows[2] == ["mean", "19.00", "10.50", "25.00"]


def test_report_tells_results_failures_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    finish(str(make_run(tmp_path)))
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"report: {tmp_path / 'report.md'}"
    text = (tmp_path / "report.md").read_text()
    # standard deviation of (24, 26) is sqrt(2)
    assert "| A | 19.00 ± 1.41 | 10.50 ± 0.71 | 25.00 ± 1.41 |" in text
    assert "- round 2, site B: RuntimeError: no disk" in text
    assert "- B: asked in 2 rounds, failed in 1" in text
    assert "| A | train | latents | 0 bytes | 0.04 MB (40,000 bytes) |" in text
    assert "| A | train | weights | 200 bytes | 200 bytes |" in text
    assert "- note: a remark" in text
    assert "| site | tree (weight 0.1) | median_support |" in text
    assert "| A | 0.25 | 12 |" in text and "| B | 0.5 | - |" in text
    assert (tmp_path / "figures" / "convergence.png").stat().st_size > 1000


def test_example_figure_and_its_damage(tmp_path: Path) -> None:
    folder = make_run(tmp_path) / "sites" / "A" / "examples"
    folder.mkdir(parents=True)
    image = np.outer(np.hanning(16), np.hanning(16)).astype(np.float32)
    np.savez(folder / "example.npz", zero_filled=image, reconstruction=image * 0.9, target=image)
    write_report(tmp_path)
    assert "![example_A](figures/example_A.png)" in (tmp_path / "report.md").read_text()
    (folder / "example.npz").write_bytes(b"PK cut")
    before = (tmp_path / "report.md").read_text()
    with pytest.raises(ConfigError, match=r"example\.npz is damaged"):
        write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == before


def test_partial_run_has_a_report_too(tmp_path: Path) -> None:
    text = Path(write_report(make_run(tmp_path, tested=False))).read_text()
    assert "No test results yet" in text
    assert format_table(tmp_path) == "no test results yet"


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(tmp_path)
    make_run(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1')
    with pytest.raises(ConfigError, match=r"rounds\.jsonl is damaged"):
        read_run(tmp_path)


def test_segmentation_example_and_a_metric_without_cases(tmp_path: Path) -> None:
    folder = make_run(tmp_path) / "sites" / "A" / "examples"
    folder.mkdir(parents=True)
    label = np.zeros((16, 16), np.float32)
    label[4:9, 5:12] = 1
    np.savez(folder / "example.npz", image=np.random.RandomState(0).randn(16, 16), label=label, pred=label.T)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("0,A,global,test,release_dice,0.25\n2,A,global,test,release_dice,0.75\n")
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| A | - | 0.2500 | 0.7500 |" in text
    assert (tmp_path / "figures" / "example_A.png").stat().st_size > 1000
