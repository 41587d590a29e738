# SPDX-License-Identifier: Apache-2.0
"""What the attacks share: a bundle to spoil, its findings, and a deployed site that gets a job of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from bundle_copy import copy_bundle

from fedmonai.bundle.lint import lint_bundle
from fedmonai.errors import ConfigError
from fedmonai.federated.messages import Request
from fedmonai.integrations.job import describe, stage
from fedmonai.integrations.runtime import SiteSettings, site_service

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"


def hidden_command() -> dict[str, Any]:
    """Components that the gate admits and that make ids of a site with another ``_target_`` of its loss."""
    return {
        "ds": {
            "_target_": "monai.data.Dataset",
            "data": [
                {
                    "initialize::0": "ok",  # a site's own check of its ids does not take place
                    "loss::command": "@command",
                    "latent_layer": "$'os' + '.system'",
                }
            ],
            "transform": {
                "_target_": "monai.transforms.CopyItemsd",
                "keys": ["latent_layer"],
                "names": ["loss::_target_"],
            },
        },
        "command": "$'touch ' + 'marker'",
        "made": {"B": "$@ds[0]"},
    }


def write(bundle: Path, name: str, content: dict[str, Any], declared: Sequence[str] = ()) -> Path:
    """An overlay that declares its own ids, so that only what it does is judged."""
    path = bundle / "configs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [key for key in content if "::" not in key and key != "bundle_root"] + list(declared)
    table = {key.removeprefix("+"): {"meaning": "x"} for key in known}
    path.write_text(yaml.safe_dump({"ids": table, **content}, sort_keys=False))
    return path


def fresh(folder: Path) -> Path:
    return copy_bundle(BUNDLE, folder / "fl_mr")


def findings(bundle: Path, **options: Any) -> list[str]:
    return [str(one) for one in lint_bundle(bundle, **options).findings]


def deployed(bundle: Path, folder: Path, overlays: Sequence[str], ids: dict | None = None, settings: Any = None) -> str:
    """Let a site of a deployed federation answer the first request of a job; the reason if it refuses."""
    job = folder / "job"
    job.mkdir()
    try:
        stage(describe(bundle, list(overlays), run="r", ids=ids or {}), bundle, job)
        service = site_service(job, "B", settings or SiteSettings(), folder / "state")
    except ConfigError as error:
        return f"refused: {error}"
    try:
        return f"answered: {service.answer(Request('join', 'B', 0, None, {'state_round': 0})).error}"
    finally:
        service.close()
