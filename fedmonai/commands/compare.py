# SPDX-License-Identifier: Apache-2.0
"""Run methods times seeds over one federation and write one table and two figures; run again to continue."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from fedmonai.bundle.collection import plan_file, shipped_bundles
from fedmonai.errors import ConfigError, FederationError
from fedmonai.experiments.comparison import (
    PlannedRun,
    check_runs,
    compared_runs,
    execute,
    planned_runs,
    write_cross_site,
)
from fedmonai.experiments.plan import read_plan
from fedmonai.names import as_list
from fedmonai.report.comparison_page import check_projection, write_comparison


def compare(
    plan: str,
    output_dir: str,
    methods: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    bundles: str | None = None,
    latents: str = "pca",
) -> int:
    """Run methods times seeds over one federation, and write one table and two figures.

    Every run is checked before the first one starts. The same command continues after an interruption.

    Args:
        plan: YAML file with seeds, ids for all runs, and methods; or the name of one that comes with the package, such
            as mr_own_sites.
        output_dir: folder of the comparison; runs that are there already are kept or continued.
        methods: names, separated by commas; all of the plan by default. The reference method is always run.
        seeds: instead of the plan's.
        bundles: folder of the bundles; those that come with the package if left out.
        latents: pca, tsne or none: how bottleneck features are reduced to two dimensions (needs the extra 'compare').
    """
    path, failed = run_plan(plan, output_dir, bundles or str(shipped_bundles()), methods, seeds, latents)
    if path is None:
        print(f"error: no comparison: {failed[-1]}.", file=sys.stderr)
    else:
        print(f"comparison: {path}")
    return 1 if failed else 0


def run_plan(
    plan: str,
    output_dir: str,
    bundles: str,
    methods: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    latents: str = "pca",
) -> tuple[str | None, list[str]]:
    """Run a plan and compare its finished runs; return the page of the comparison and the runs that failed."""
    check_projection(latents)
    chosen = read_plan(str(plan_file(plan)), *(None if given is None else as_list(given) for given in (methods, seeds)))
    runs = list(planned_runs(chosen, str(output_dir)))
    check_runs(runs, bundles)
    finished: list[PlannedRun] = []
    failed: list[str] = []
    try:
        for run in tqdm(runs, desc="Runs", unit="run"):
            print(f"\n{run.method.name}, seed {run.seed}: {run.folder}", flush=True)
            try:
                _run(run, bundles)
                finished.append(run)
            except (ConfigError, FederationError) as error:  # the other methods can still be compared
                failed.append(f"{run.method.name}, seed {run.seed}: {' '.join(str(error).split())}")
    finally:  # also after an error: the failed runs are named
        for line in failed:
            print(f"error: {line}", file=sys.stderr)
    rows = compared_runs(chosen, finished)
    if all(row.method != chosen.reference for row in rows):
        return None, [*failed, f"no run of the reference method '{chosen.reference}' has finished"]
    return write_comparison(rows, chosen.reference, str(output_dir), latents, chosen.about), failed


def _run(run: PlannedRun, bundles: str) -> None:
    federation = execute(run, bundles)
    path = run.folder / "cross_site.csv"
    try:
        if not path.exists():
            write_cross_site(federation, path)
    finally:
        federation.close()
