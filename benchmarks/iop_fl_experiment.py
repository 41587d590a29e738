# SPDX-License-Identifier: Apache-2.0
"""IOP-FL on the generated six-site federation at reduced size: inside and outside tables over several seeds.

    python benchmarks/iop_fl_experiment.py --output runs/iop_fl_experiment [--seeds 0 1 2] [--parts ...] [--tables]

Every federation and every adaptation has its own folder; what is finished is not done again, so the same command goes
on after an interruption. ``--tables`` only prints what is there. Written up in docs/iop_fl_results.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from fedmonai.experiments.leave_one_out import leave_one_out

BUNDLE = Path(__file__).parents[1] / "bundles" / "iop_fl"
SITES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")
#: name of a run and the overlay that makes it; FedAvg is the global model of IOP-FL, to the bit
RUNS = {"iop_fl": None, "local_only": "local_only", "fedprox": "fedprox", "fedbn": "fedbn"}
#: column of the inside table: run and model
INSIDE = {
    "local only": ("local_only", "personal"),
    "FedAvg": ("iop_fl", "global"),
    "FedProx": ("fedprox", "global"),
    "FedBN": ("fedbn", "personal"),
    "personal": ("iop_fl", "personal"),
}
OUTSIDE = ("global", "mean_of_personals", "routed before", "routed after")
#: departures from the bundle's defaults, for a CPU
LOCAL = {"base_channels": 8, "num_pool": 3, "generated_size": 48, "generated_cases": 8, "generated_slices": 8}
ROUNDS = 20
OUTSIDE_ROUNDS = 12
#: learning rates: the paper's, for its 500 rounds; and one with which twelve rounds end in certain predictions, without
#: which there is no sense in lowering their entropy
LR = 0.001
OUTSIDE_LR = 0.005
VAL_INTERVAL = 4


def ids(output: Path, seed: int, lr: float) -> dict[str, Any]:
    """Ids of every federation: sizes, and the seed of the weights, the batches and the choice of cases."""
    local = {**LOCAL, "lr": lr, "generated_dir": str(output / "data"), "split_seed": seed}
    common = {"num_rounds": ROUNDS, "val_interval": VAL_INTERVAL, "seed": seed, "device": "cpu"}
    unreported = {"_target_": "fedmonai.report.run_tables.read_run", "_mode_": "callable", "run_dir": "@output_dir"}
    return {**common, "report": unreported} | {f"local::{key}": value for key, value in local.items()}


def run_inside(output: Path, seed: int, name: str, lr: float) -> None:
    overlay = RUNS[name]
    files = ["configs/federated.yaml", *([f"configs/federation/{overlay}.yaml"] if overlay else [])]
    own = {"bundle_root": str(BUNDLE), "output_dir": str(output / f"seed{seed}" / name), "resume": True}
    workflow = ConfigWorkflow(
        [str(BUNDLE / file) for file in files],
        workflow_type="train",
        logging_file=False,
        **{**ids(output, seed, lr), **own},
    )
    workflow.initialize()
    workflow.run()


def run_outside(output: Path, seed: int) -> None:
    own = {"output_dir": str(output / f"seed{seed}" / "outside"), "bundle_root": str(BUNDLE)}
    # a shorter federation that is validated once, and Dice alone after every pass, keep 18 of these affordable
    shorter = {"num_rounds": OUTSIDE_ROUNDS, "val_interval": OUTSIDE_ROUNDS}
    leave_one_out(**own, outside={"validate::additional_metrics": {}}, **{**ids(output, seed, OUTSIDE_LR), **shorter})


def timed(output: Path, what: str, work: Callable[[], None]) -> None:
    """Do it and note the CPU seconds, the sum over interruptions."""
    start = time.process_time()
    try:
        work()
    finally:
        with (output / "cpu_seconds.csv").open("a") as stream:
            stream.write(f"{what},{time.process_time() - start:.1f}\n")


def inside_value(output: Path, seed: int, column: str, site: str, metric: str) -> float | None:
    run, model = INSIDE[column]
    path = output / f"seed{seed}" / run / "metrics.csv"
    if not path.is_file():
        return None
    with path.open() as stream:
        wanted = {"site": site, "model": model, "split": "test", "metric": metric}
        found = [row for row in csv.DictReader(stream) if all(row[k] == v for k, v in wanted.items())]
    found = [row for row in found if int(row["round"]) > 0]
    return float(found[-1]["value"]) if found else None


def outside_value(output: Path, seed: int, column: str, site: str, metric: str) -> float | None:
    path = output / f"seed{seed}" / "outside" / site / "outside" / "adaptation.json"
    return float(json.loads(path.read_text())[metric][column]) if path.is_file() else None


def table(columns: list[str], seeds: list[int], value: Callable[[int, str, str], float | None]) -> str:
    """Markdown: mean and standard deviation over seeds per site, and of the seeds' means over sites."""
    lines = [f"| site | {' | '.join(name.replace('_', ' ') for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    found = {(c, s): [v for seed in seeds if (v := value(seed, c, s)) is not None] for c in columns for s in SITES}
    for site in SITES:
        lines.append(f"| {site} | {' | '.join(_spread(found[column, site]) for column in columns)} |")
    complete = [seed for seed in seeds if all(value(seed, c, s) is not None for c in columns for s in SITES)]
    means = {c: [statistics.fmean(value(seed, c, s) or 0.0 for s in SITES) for seed in complete] for c in columns}
    lines.append(f"| mean ({len(complete)} seeds) | {' | '.join(_spread(means[column]) for column in columns)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=("inside", "outside"), default=["inside", "outside"])
    parser.add_argument("--inside_lr", type=float, default=LR)
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there; run nothing")
    arguments = parser.parse_args()
    output, seeds = arguments.output.resolve(), arguments.seeds
    torch.set_num_threads(1)
    if not arguments.tables:
        output.mkdir(parents=True, exist_ok=True)
        for seed in seeds if "inside" in arguments.parts else []:
            for name in RUNS:
                timed(
                    output, f"seed {seed} {name}", lambda n=name, s=seed: run_inside(output, s, n, arguments.inside_lr)
                )
        for seed in seeds if "outside" in arguments.parts else []:
            timed(output, f"seed {seed} outside", lambda s=seed: run_outside(output, s))
    for metric in ("dice", "hd95", "assd"):
        print(f"\nInside, {metric}\n")
        print(table(list(INSIDE), seeds, lambda seed, c, s, m=metric: inside_value(output, seed, c, s, m)))
    print("\nOutside, dice\n")
    print(table(list(OUTSIDE), seeds, lambda seed, c, s: outside_value(output, seed, c, s, "dice")))


if __name__ == "__main__":
    main()
