# SPDX-License-Identifier: Apache-2.0
"""Ablation of FedICRA on the five generated angiography sites, several seeds; prints markdown tables.

    python benchmarks/fedicra_ablation.py --output runs/fedicra_ablation [--seeds 0 1 2] [--only pce_fedavg tree_crf]

Every run is the bundle with ``demo.yaml`` and the overlays named in ``VARIANTS``, on the same images. Runs that are
finished are not repeated and one that was interrupted goes on, so the command can be given again at any time; what is
not finished is missing from the tables. A site is tested with the model it would use: its own where the method gives it
one, the common one elsewhere. Spread is the standard deviation over seeds of the mean over sites.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from scipy.stats import wilcoxon

from fedmonai.report.run_tables import RunTables, read_run

BUNDLE = Path(__file__).parents[1] / "bundles" / "fedicra"
#: name of a run, what it is, overlays of ``configs/federation``, further ids
VARIANTS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "full_mask": ("full masks, FedAvg", ("full_mask",), {}),
    "local_only": ("local only: partial CE, tree, CRF", ("local_only",), {}),
    "pce_fedavg": ("partial CE, FedAvg", ("pce_fedavg",), {}),
    "tree_crf": ("+ tree and CRF", ("tree_crf",), {}),
    "adaptive": ("+ adaptive aggregation", ("adaptive",), {}),
    "contrast": ("+ contrast", (), {"local::alternate": False}),
    "fedicra": ("+ alternation: FedICRA as meant", (), {}),
    "released": ("FedICRA as released", ("released",), {}),
}
METRICS = ("dice", "hd95_faz")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--images", type=int, nargs=3, default=[12, 4, 10], help="training, validation, test, per site")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*of case .* is empty.*")
    for seed in settings.seeds:
        for name in settings.only:
            if not settings.tables:
                run(name, seed, settings)
    print("\n\n".join([means(settings), per_site(settings), differences(settings)]))


def run(name: str, seed: int, settings: argparse.Namespace) -> None:
    """One variant with one seed, or what is left of it."""
    _, overlays, ids = VARIANTS[name]
    configs = ["federated.yaml", "demo.yaml", *(f"federation/{overlay}.yaml" for overlay in overlays)]
    shared = {
        "bundle_root": str(BUNDLE),
        "output_dir": str(folder(name, seed, settings)),
        "num_rounds": settings.rounds,
        "seed": seed,
        "resume": True,
        "device": "cpu",
        "local::device": "cpu",
        "handlers": [],
        "local::image_size": settings.size,
        "local::batch_size": settings.batch,
        "local::generated_images": list(settings.images),
        "local::generated_dir": str(settings.output / f"images_{settings.size}"),
    }
    started = time.process_time()
    files = [str(BUNDLE / "configs" / config) for config in configs]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **shared, **ids)
    workflow.initialize()
    workflow.parser.get_parsed_content("federation").run()
    print(f"{name}, seed {seed}: {time.process_time() - started:.0f} CPU seconds", flush=True)


def folder(name: str, seed: int, settings: argparse.Namespace) -> Path:
    """Where a run is written."""
    return settings.output / f"{name}_{seed}"


def finished(name: str, settings: argparse.Namespace) -> list[RunTables]:
    """The runs of a variant that have been tested, by seed."""
    folders = [folder(name, seed, settings) for seed in settings.seeds]
    found = [read_run(path) for path in folders if (path / "run.json").is_file()]
    return [tables for tables in found if any(row["split"] == "test" for row in tables.metrics)]


def values(tables: RunTables, site: str, metric: str) -> list[float]:
    """Values per test image of the model that a site would use."""
    return tables.test_cases(site, metric, "personal", 1) or tables.test_cases(site, metric, "global", 1)


def site_mean(tables: RunTables, metric: str, model: str | None = None) -> float | None:
    """Mean over sites; of the model that each would use, or of one model."""
    per_site = [
        values(tables, site, metric) if model is None else tables.test_cases(site, metric, model, 1)
        for site in tables.sites
    ]
    return statistics.fmean(map(statistics.fmean, per_site)) if all(per_site) else None


def means(settings: argparse.Namespace) -> str:
    """Mean over sites with its spread over seeds."""
    rows = [["variant", "Dice", "HD95 (pixels)", "Dice of the common model", "seeds"]]
    for name in settings.only:
        runs = finished(name, settings)
        cells = [_spread([site_mean(tables, metric) for tables in runs]) for metric in METRICS]
        common = _spread([site_mean(tables, "dice", "global") for tables in runs])
        rows.append([VARIANTS[name][0], *cells, common, str(len(runs))])
    return _markdown(rows)


def per_site(settings: argparse.Namespace) -> str:
    """Dice of every site with its spread over seeds."""
    rows: list[list[str]] = []
    for name in settings.only:
        runs = finished(name, settings)
        sites = runs[0].sites if runs else []
        rows = rows or [["Dice", *sites]]
        cells = [_spread([statistics.fmean(values(tables, site, "dice")) for tables in runs]) for site in sites]
        rows.append([VARIANTS[name][0], *cells])
    return _markdown(rows)


def differences(settings: argparse.Namespace) -> str:
    """Every variant against partial CE with FedAvg, image by image (means over the seeds both have)."""
    rows = [["against partial CE, FedAvg", "difference in Dice", "images better", "Wilcoxon p"]]
    base = _images("pce_fedavg", settings)
    for name in settings.only:
        other = _images(name, settings)
        if name == "pce_fedavg" or not base or len(other) != len(base):
            continue
        gains = [o - b for o, b in zip(other, base, strict=True)]
        p = float(wilcoxon(other, base).pvalue) if any(gains) else 1.0
        better = f"{sum(g > 0 for g in gains)} of {len(gains)}"
        rows.append([VARIANTS[name][0], f"{statistics.fmean(gains):+.3f}", better, f"{p:.2g}"])
    return _markdown(rows)


def _images(name: str, settings: argparse.Namespace) -> list[float]:
    runs = [[v for site in tables.sites for v in values(tables, site, "dice")] for tables in finished(name, settings)]
    return [statistics.fmean(of_image) for of_image in zip(*runs, strict=True)]


def _spread(numbers: Sequence[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) if rows else ""


if __name__ == "__main__":
    main()
