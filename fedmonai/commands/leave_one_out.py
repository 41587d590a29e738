# SPDX-License-Identifier: Apache-2.0
"""IOP-FL outside, for every site in turn: train a federation without it, adapt to its images, make a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmonai.bundle.collection import plan_file, shipped_bundles
from fedmonai.experiments.leave_one_out import leave_one_out, run_plan
from fedmonai.report.outside import write_outside_report


def leave_out(output_dir: str, plan: str | None = None, bundles: str | None = None, **options: Any) -> str:
    """Train a federation without each site in turn, adapt to its unlabeled images, and write leave_one_out.md.

    The same command continues after an interruption. Examples:

        fedmonai leave_one_out --output_dir runs/loo --outside_sites HK --num_rounds 20 --outside "{'passes': 5}"
        fedmonai leave_one_out --output_dir runs/prostate_outside --plan outside/prostate

    Args:
        output_dir: folder of the runs and of the table.
        plan: YAML file with several seeds and several ways to adapt, or the name of one that comes with the package.
        bundles: folder of the bundles; those that come with the package if left out.
        options: config_file, outside_sites, outside, adaptations, and ids of federated.yaml (--local::lr 5e-4).
    """
    folder = Path(bundles) if bundles else shipped_bundles()
    if plan is None:
        about, results = "", {0: leave_one_out(output_dir, str(folder / "iop_fl"), **options)}
    else:
        about, results = run_plan(plan_file(plan), output_dir, str(folder), **options)
    return write_outside_report(results, Path(output_dir) / "leave_one_out.md", about).rstrip("\n")
