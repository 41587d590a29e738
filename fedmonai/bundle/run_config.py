# SPDX-License-Identifier: Apache-2.0
"""Config of a federation as its run records it: a file that repeats the run, and the values that results depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser, ReferenceResolver

from fedmonai.bundle.live_config import plain_values
from fedmonai.federated.plan import SitePlan, overlay_files
from fedmonai.federated.run_log import RunConfig

__all__ = ["recorded_config"]

#: where a run lies, how it is continued and in how many processes: no result depends on them
_WITHOUT = ("_meta_", "bundle_root", "output_dir", "resume", "resume_round", "workers")


def recorded_config(config: Mapping[str, Any], plan: SitePlan) -> RunConfig:
    """The record of a federation's config and of the files that its sites are built from.

    Args:
        config: of the federation, all files merged and all overrides applied, not evaluated.
        plan: of its sites; their files are read from its bundle, as far as they are there.
    """
    kept = plain_values({key: value for key, value in config.items() if key not in _WITHOUT})
    values = dict(_flat("", kept))
    for file in _site_files(plan):
        path = Path(plan.bundle_root, file)
        if path.is_file():
            values |= _flat(f"{file}{ReferenceResolver.sep}", plain_values(ConfigParser.load_config_file(path) or {}))
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return RunConfig(text, values)


def _site_files(plan: SitePlan) -> list[str]:
    specs = [plan.local, *(spec or {} for spec in plan.sites.values())]
    return list(dict.fromkeys([*plan.base, *(file for spec in specs for file in overlay_files(spec.get("overlay")))]))


def _flat(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values by id, as JSON; lists as a whole, so that a longer one is one change."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}{ReferenceResolver.sep}", value)
        else:
            yield f"{prefix}{key}", json.dumps(value)
