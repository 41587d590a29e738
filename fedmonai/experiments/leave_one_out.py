# SPDX-License-Identifier: Apache-2.0
"""Leave one out: every site of a federation in turn is the outside one; train without it, then adapt to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from fedmonai.bundle.ids import apply_overrides
from fedmonai.errors import ConfigError
from fedmonai.federated.plan import overlay_files
from fedmonai.io import write_text
from fedmonai.names import as_list

__all__ = ["leave_one_out"]


SETTINGS = "leave_one_out.json"
OUTSIDE_CONFIG = "configs/outside.yaml"


def leave_one_out(
    output_dir: str,
    bundle_root: str = "bundles/iop_fl",
    config_file: str | Sequence[str] = "configs/federated.yaml",
    outside_sites: Sequence[str] | str | None = None,
    outside: Mapping[str, Any] | None = None,
    **ids: Any,
) -> dict[str, Path]:
    """For every site: a federation of all the others, then ``configs/outside.yaml`` at this one.

    The federation is built without the outside site: it is neither trained, validated nor tested there. What is
    finished is not done again, and an interrupted federation goes on after its last round: the same command resumes.

    Args:
        output_dir: ``<output_dir>/<site>/federation`` and ``<output_dir>/<site>/outside`` are written.
        bundle_root: the bundle.
        config_file: the federation's config file(s), relative to the bundle.
        outside_sites: the sites that are left out, one at a time; None = all of the federation.
        outside: further ids of the outside step, such as ``passes``.
        ids: further ids of the federation, such as ``num_rounds`` or ``local::lr``.

    Returns:
        the folder of every outside step, by site.

    Raises:
        ConfigError: an unknown site, fewer than three sites, or a folder that holds other settings.
    """
    root = Path(bundle_root).resolve()
    files = [str(root / name) for name in as_list(config_file)]
    parser = ConfigParser()
    parser.read_config(files)
    apply_overrides(parser, {"bundle_root": str(root), **ids})
    specs: dict[str, dict[str, Any]] = {name: spec or {} for name, spec in parser.get_parsed_content("sites").items()}
    chosen = sorted(specs) if outside_sites is None else as_list(outside_sites)
    unknown = [name for name in chosen if name not in specs]
    if unknown:
        raise ConfigError(f"outside_sites: '{unknown[0]}' is not in the federation ({', '.join(sorted(specs))}).")
    if len(specs) < 3:
        raise ConfigError(f"sites: {len(specs)} given; leaving one out takes at least 3, two of which train.")
    folder = Path(output_dir).resolve()
    settings = {"config_file": [str(Path(file).relative_to(root)) for file in files], "outside": dict(outside or {})}
    _check_settings(folder, {**settings, **ids})
    common = {"local": dict(parser.get_parsed_content("local") or {}), "seed": parser.get_parsed_content("seed")}
    results = {}
    for number, site in enumerate(chosen, start=1):
        run_dir, results[site] = folder / site / "federation", folder / site / "outside"
        if (results[site] / "adapted.pt").is_file() and (results[site] / "adaptation.json").is_file():
            print(f"[{number}/{len(chosen)}] {site}: done before", flush=True)
            continue
        others = {name: spec for name, spec in specs.items() if name != site}
        print(f"[{number}/{len(chosen)}] {site}: training {', '.join(others)}", flush=True)
        own = {"bundle_root": str(root), "output_dir": str(run_dir), "sites": others, "resume": True}
        _run(files, {**ids, **own})
        print(f"[{number}/{len(chosen)}] {site}: adapting", flush=True)
        local = {**common["local"], **specs[site]}
        overlays = [file for ids in (common["local"], specs[site]) for file in overlay_files(ids.get("overlay"))]
        local.pop("overlay", None)
        own = {"bundle_root": str(root), "run_dir": str(run_dir), "output_dir": str(results[site]), "site": site}
        layers = [str(root / name) for name in ("configs/train.json", *overlays, OUTSIDE_CONFIG)]
        _run(layers, {"seed": common["seed"], **local, **(outside or {}), **own})
    return results


def _run(files: list[str], ids: Mapping[str, Any]) -> None:
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False)
    apply_overrides(workflow.parser, ids)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of this folder, or compare with those of the command that began it."""
    path = folder / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n"
    if not path.is_file():
        write_text(text, path)
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"output_dir: {folder} was begun with other settings (see {SETTINGS}); repeat those or choose another one."
        )
