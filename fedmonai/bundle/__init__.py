# SPDX-License-Identifier: Apache-2.0
"""Reading bundles: checks of ids and overlays, the record of a run's config, the check a site makes before it joins."""

from fedmonai.bundle.comparison import PlannedRun, check_runs, execute, planned_runs
from fedmonai.bundle.known_ids import bundle_ids, config_files, unknown_ids
from fedmonai.bundle.left_out import leave_one_out
from fedmonai.bundle.lint import LintFinding, lint_bundle
from fedmonai.bundle.live import check_config, live_config
from fedmonai.bundle.overlay_ids import DATA_IDS
from fedmonai.bundle.overrides import apply_overrides
from fedmonai.bundle.plan import Method, Plan, read_plan
from fedmonai.bundle.record import record_config

__all__ = [
    "DATA_IDS",
    "LintFinding",
    "Method",
    "Plan",
    "PlannedRun",
    "apply_overrides",
    "bundle_ids",
    "check_config",
    "check_runs",
    "config_files",
    "execute",
    "leave_one_out",
    "lint_bundle",
    "live_config",
    "planned_runs",
    "read_plan",
    "record_config",
    "unknown_ids",
]
