# SPDX-License-Identifier: Apache-2.0
"""Bundles that a run writes: of the global network, and of every site's own, with metadata on their training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.bundle.trained import site_config, site_settings, trained_settings, write_settings, write_trained_bundle
from fedmonai.federated.plan import SitePlan
from fedmonai.report.run_tables import TABLES, RunTables, read_rows, read_run

__all__ = ["write_run_bundles", "write_site_bundle"]


def write_run_bundles(run_dir: str | Path, plan: SitePlan, here: bool = True) -> list[Path]:
    """Write ``<run>/bundle`` of the global network, and ``<run>/sites/<site>/bundle`` of each site's own.

    A run that shares all weights has the former, one with personal models the latter, IOP-FL both. A file beside the
    weights in ``<run>/models`` holds the settings that they were trained with.

    Args:
        run_dir: folder of a run that has ended.
        plan: of its sites.
        here: whether they ran in this process; deployed sites write the bundles of their own networks themselves, and
            this machine does not know what data they had.

    Returns:
        the folders that were written.
    """
    tables, folder = read_run(run_dir), Path(run_dir)
    trained = [site for site in tables.run.get("train_sites", []) if site in plan.sites] or plan.names
    written = []
    if (folder / "models" / "model.pt").is_file():
        settings, others = trained_settings(plan, trained)
        facts = _facts(tables, plan if here else None, tables.sites, "global", others)
        written.append(_write(plan, folder / "bundle", folder / "models" / "model.pt", settings, facts))
    if here:
        written += [path for site in plan.names if (path := _write_own(tables, plan, site))]
    return written


def write_site_bundle(plan: SitePlan, site: str, method: str) -> Path | None:
    """Write the bundle of a deployed site's own network in the site's folder, from the site's own tables alone.

    Args:
        plan: the site's.
        site: its name.
        method: name of the method in the job.

    Returns:
        its folder, or None for a site without a network of its own.
    """
    run = {"method": method, "train_sites": [site]}
    folder = plan.folder(site)
    return _write_own(RunTables(folder, run, [], *(read_rows(folder / name) for name in TABLES)), plan, site)


def _write_own(tables: RunTables, plan: SitePlan, site: str) -> Path | None:
    weights = plan.own_model(site)
    if not weights.is_file():
        return None
    facts = _facts(tables, plan, [site], "personal", {})
    return _write(plan, plan.folder(site) / "bundle", weights, site_settings(plan, site), facts)


def _write(plan: SitePlan, target: Path, weights: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    write_settings(settings, weights)
    return write_trained_bundle(plan.bundle_root, target, weights, settings, facts)


def _facts(
    tables: RunTables, plan: SitePlan | None, sites: Sequence[str], model: str, others: Mapping[str, Any]
) -> dict[str, Any]:
    """Entries of the metadata: where, on what and how the weights were trained, and the results."""
    run = tables.run
    of = f"site {sites[0]}'s own network" if model == "personal" else "the network of all sites"
    best = run.get("best_round_per_site", {}).get(sites[0]) if model == "personal" else run.get("best_round")
    told: dict[str, Any] = {
        "method": run.get("method"),
        "model": of,
        "training_sites": [site for site in run.get("train_sites", []) if model == "global" or site in sites],
        "rounds": len(tables.rounds),
        "best_round": best,
        "strategy": run.get("strategy"),
        "seed": run.get("seed"),
        "training_samples": _samples(tables, sites),
        "left_the_sites_in_bytes": _left(tables, sites),
    }
    if others:
        told["differs_by_site"] = dict(others)
    generated = plan is not None and all(_is_generated(plan, site) for site in sites if site in plan.sites)
    return {
        "data_source": "generated images; they contain no information about patients"
        if generated
        else "images of the sites named, which stayed there; their terms are the sites' (docs/data_license.txt)",
        "eval_metrics": {site: found for site in sites if (found := _metrics(tables, site, model))},
        "federated": {name: value for name, value in told.items() if value not in (None, {}, [])},
    }


def _metrics(tables: RunTables, site: str, model: str) -> dict[str, Any]:
    """Mean, number of cases and 95 % interval (bootstrap over cases) of the final test."""
    found = {}
    for name in tables.metric_names("test"):
        values = [value for value in tables.test_cases(site, name, model, 1) if np.isfinite(value)]
        if values:
            found[name] = {"mean": statistics.fmean(values), "n": len(values), **_interval(values)}
    return found


def _interval(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    from scipy.stats import bootstrap  # a second of imports, at the end of a run alone

    generator = np.random.default_rng(0)
    found = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, random_state=generator)
    return {"low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def _samples(tables: RunTables, sites: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in tables.rounds:
        found |= {site: number for site, number in record.get("num_samples", {}).items() if site in sites}
    return found


def _left(tables: RunTables, sites: Sequence[str]) -> dict[str, int]:
    """Bytes that left the named sites, by kind, over all rounds."""
    totals: dict[str, int] = {}
    for record in (*tables.rounds, tables.run.get("final_test", {})):
        for site, kinds in record.get("bytes_up", {}).items():
            for items in kinds.values() if site in sites else ():
                for item, size in items.items():
                    totals[item] = totals.get(item, 0) + size
    return totals


def _is_generated(plan: SitePlan, site: str) -> bool:
    """Whether a site has no data of its own: its bundle then generates them."""
    return isinstance(site_config(plan, site).get("dataset_dir"), Mapping)
