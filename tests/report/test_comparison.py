# SPDX-License-Identifier: Apache-2.0
"""A comparison of hand-written runs: means, spreads, pairs, costs, what is missing."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmonai.errors import ConfigError
from fedmonai.report.comparison import ComparedRun, Comparison
from fedmonai.report.comparison_page import project, write_comparison

VOLUMES = 6


def make_run(
    folder: Path, method: str, seed: int, values: dict[str, list[float]], model: str = "global"
) -> ComparedRun:
    """A run with a final test: PSNR of every volume by site, zero-filled 10 everywhere, before training 5.

    NMSE is 0.1 - PSNR / 1000.
    """
    folder.mkdir(parents=True)
    run = {"method": method, "num_rounds": 2, "sites": list(values), "train_sites": list(values), "seed": seed}
    (folder / "run.json").write_text(json.dumps({**run, "test_sites": list(values)}))
    records = [
        {
            "round": n,
            "seconds": 2.0 + n,
            "bytes_up": {"A": {"train": {"weights": 600 * n}, "validate": {"facts": 400 * n}}},
            "bytes_down": {"A": {"train": {"weights": 500}}},
        }
        for n in (1, 2)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics, cases = [], []
    for site, numbers in values.items():
        for number, name, found in (
            (0, "zero_filled", [10.0] * VOLUMES),
            (0, model, [5.0] * VOLUMES),
            (2, model, numbers),
        ):
            for metric, share in (("psnr", 1.0), ("nmse", -0.001)):
                shown = [share * value + (0.1 if metric == "nmse" else 0) for value in found]
                metrics.append(f"{number},{site},{name},test,{metric},{sum(shown) / len(shown)}")
                cases += [f"{number},{site},{name},test,v{i},{metric},{value}" for i, value in enumerate(shown)]
    (folder / "metrics.csv").write_text("\n".join(["round,site,model,split,metric,value", *metrics]) + "\n")
    (folder / "cases.csv").write_text("\n".join(["round,site,model,split,case,metric,value", *cases]) + "\n")
    generator = np.random.RandomState(seed)
    for index, site in enumerate(values):
        (folder / "sites" / site).mkdir(parents=True)
        np.savez(folder / "sites" / site / "latents.npz", latents=generator.rand(8, 5) + 3 * index)
    return ComparedRun(method, seed, folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[ComparedRun]:
    """Two seeds of a plain method and of one that is better by 1, 2, ... 6 at A and equal at B."""
    found = []
    for seed in (0, 1):
        plain = {"A": [20.0 + i + 2 * seed for i in range(VOLUMES)], "B": [30.0] * VOLUMES}
        better = {"A": [value + i + 1 for i, value in enumerate(plain["A"])], "B": plain["B"]}
        found.append(make_run(tmp_path / f"plain{seed}", "plain", seed, plain))
        found.append(make_run(tmp_path / f"better{seed}", "better", seed, better, "personal"))
    lines = ["model_site,test_site,metric,value", "A,A,psnr,27", "A,B,psnr,21.5", "B,A,psnr,19", "B,B,psnr,30"]
    (tmp_path / "better0" / "cross_site.csv").write_text("\n".join(lines) + "\n")
    return found


def test_means_and_spreads_by_hand(runs: list[ComparedRun]) -> None:
    comparison = Comparison(runs, "plain")
    score = comparison.score("plain", "psnr", "A")
    assert score is not None
    # seeds: 22.5 and 24.5; volumes over seeds: 21 ... 26
    assert (score.mean, score.seeds, score.volumes) == (23.5, 2, VOLUMES)
    assert score.over_seeds == pytest.approx(2**0.5)
    assert score.over_volumes == pytest.approx(3.5**0.5)
    assert comparison.score("plain", "psnr").mean == pytest.approx((23.5 + 30) / 2)  # type: ignore[union-attr]
    assert comparison.score("plain", "psnr", "A", "zero_filled").mean == 10  # type: ignore[union-attr]


def test_pairs_are_volumes_and_p_is_wilcoxons(runs: list[ComparedRun]) -> None:
    comparison = Comparison(runs, "plain")
    at_a, at_b = (comparison.difference("better", "psnr", site) for site in "AB")
    assert at_a is not None and at_b is not None
    # all six signs equal: p = 2 / 2^6
    assert (at_a.mean, at_a.pairs, at_a.p) == (3.5, VOLUMES, pytest.approx(0.03125))
    assert (at_b.mean, at_b.p) == (0.0, 1.0)
    everywhere = comparison.difference("better", "psnr")
    assert everywhere is not None and everywhere.pairs == 2 * VOLUMES


def test_pairs_are_of_seeds_that_both_have(runs: list[ComparedRun], tmp_path: Path) -> None:
    """Without seed 1 of 'better' its difference is that of seed 0 alone, not its seed 0 against the mean of two."""
    fewer = [run for run in runs if (run.method, run.seed) != ("better", 1)]
    found = Comparison(fewer, "plain").difference("better", "psnr", "A")
    assert found is not None and found.mean == 3.5
    assert (
        "Note: better has 1 of 2 seeds." in Path(write_comparison(fewer, "plain", tmp_path / "o", "none")).read_text()
    )


def test_costs(runs: list[ComparedRun]) -> None:
    assert Comparison(runs, "plain").cost("plain") == (1500.0, 500.0, 3.5)


def test_written_tables_and_figures(runs: list[ComparedRun], tmp_path: Path) -> None:
    text = Path(write_comparison(runs, "plain", tmp_path / "out")).read_text()
    assert "| zero-filled | 10.00 (0.00) | 10.00 (0.00) | 10.00 (0.00) |" in text
    # volumes over seeds: 21 ... 26 at A, variance 3.5; with six times 30 at B: variance (17.5 + 12 * 3.25 ** 2) / 11
    assert "| plain | 23.50 ± 1.41 (1.87) | 30.00 ± 0.00 (0.00) | 26.75 ± 0.71 (3.62) |" in text
    assert "| better | +3.50 (p 0.0312) | +0.00 (p 1) |" in text
    assert "## NMSE, difference to plain" in text and "| better | -0.0035 (p 0.0312) | " in text
    assert "Lower is better for NMSE" in text
    assert "| better | 0.002 | 0.001 | 3.50 |" in text
    assert "### better" in text and "| A | 27.00 | 21.50 |" in text and "### plain" not in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "comparison.md",
        "comparison.csv",
        "scores.png",
        "latents.png",
    }
    with (tmp_path / "out" / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    [row] = [r for r in rows if (r["method"], r["site"], r["metric"]) == ("better", "A", "psnr")]
    assert (float(row["mean"]), float(row["difference"]), row["pairs"]) == (27.0, 3.5, "6")
    assert [r["mean"] for r in rows if (r["method"], r["metric"]) == ("plain", "bytes_up")] == ["1500.0"]


def test_curves_are_means_over_sites_by_seed(runs: list[ComparedRun], tmp_path: Path) -> None:
    for run in runs:
        model = "personal" if run.method == "better" else "global"
        lines = [f"{n},{site},{model},val,psnr,{10 * n + run.seed + (site == 'B')}" for n in (1, 2) for site in "AB"]
        with (run.folder / "metrics.csv").open("a") as stream:
            stream.write("\n".join(lines) + "\n")
    assert Comparison(runs, "plain").curve("plain", "psnr") == {1: [10.5, 11.5], 2: [20.5, 21.5]}
    text = Path(write_comparison(runs, "plain", tmp_path / "out", "none", "What it is about.")).read_text()
    assert "![curves](curves.png)" in text and (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert "\nWhat it is about.\n" in text


def test_a_row_for_another_model_of_the_same_run(runs: list[ComparedRun], tmp_path: Path) -> None:
    """One run with two models is two rows; the page says with what the runs were made, and where that differs."""
    first = next(run for run in runs if run.method == "better")
    with (first.folder / "metrics.csv").open("a") as stream:
        stream.write("".join(f"2,{site},global,test,psnr,{value}\n" for site, value in (("A", 21.0), ("B", 29.0))))
    both = [run for run in runs if run.method == "plain"] + [first, ComparedRun("shared", 0, first.folder, "global")]
    (first.folder / "source.json").write_text('{"commit": "abc123", "changed": true}')
    comparison = Comparison(both, "plain")
    assert comparison.score("better", "psnr", "A").mean == 26.0  # type: ignore[union-attr]
    assert comparison.score("shared", "psnr", "A").mean == 21.0  # type: ignore[union-attr]
    assert "commit abc123 with changes" in Path(write_comparison(both, "plain", tmp_path / "o", "none")).read_text()
    with pytest.raises(ConfigError, match="has no test of a personal model"):
        Comparison([*both, ComparedRun("x", 0, both[0].folder, "personal")], "plain")


def test_few_volumes_are_not_tested(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, 0, {"A": [20.0, 21.0 + n]}) for n, name in enumerate(("plain", "other"))]
    found = Comparison(runs, "plain").difference("other", "psnr", "A")
    assert found is not None and found.p is None
    assert "(2 pairs, too few to test)" in Path(write_comparison(runs, "plain", tmp_path / "o", "none")).read_text()


def test_projection_by_hand() -> None:
    """Two clusters on a line: the first principal component separates them, and the silhouette is near 1."""
    generator = np.random.RandomState(0)
    vectors = generator.rand(20, 4) * 0.01
    vectors[10:] += 5
    points, silhouette = project(vectors, np.repeat([0, 1], 10), "pca")
    assert points.shape == (20, 2)
    assert (points[:10, 0].max() < points[10:, 0].min()) or (points[:10, 0].min() > points[10:, 0].max())
    assert silhouette > 0.95
    mixed = project(generator.rand(20, 4), np.tile([0, 1], 10), "tsne")
    assert mixed[0].shape == (20, 2) and abs(mixed[1]) < 0.2


def test_mistakes(runs: list[ComparedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="reference method 'none'"):
        Comparison(runs, "none")
    with pytest.raises(ConfigError, match=r"latents is 'umap'.*pca, tsne, none"):
        write_comparison(runs, "plain", tmp_path / "o", "umap")
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ConfigError, match=r"fedmonai\[compare\]"):
        write_comparison(runs, "plain", tmp_path / "o")
    metrics = runs[0].folder / "metrics.csv"
    metrics.write_text("round,site,model,split,metric,value\n1,A,global,val,psnr,3\n")
    with pytest.raises(ConfigError, match="has no final test"):
        Comparison(runs, "plain")
