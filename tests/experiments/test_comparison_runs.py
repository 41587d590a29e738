# SPDX-License-Identifier: Apache-2.0
"""Runs of a plan do not reach into each other."""

from __future__ import annotations

from pathlib import Path

from fedmonai.experiments.comparison import _workflow, planned_runs
from fedmonai.experiments.plan import read_plan

BUNDLES = Path(__file__).parents[2] / "bundles"
PLAN = """
ids:
  sites: {B: {}, I: {}}
methods:
  other contrast: {bundle: fl_mr, ids: {sites::I::sequence: T2}}
  same contrast: {bundle: fl_mr}
"""


def test_ids_of_one_method_do_not_reach_the_next(tmp_path: Path) -> None:
    """An id below ``sites`` changes the mapping that the parser holds, which is the plan's own for all methods."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    first, second = (_workflow(run, BUNDLES).parser for run in planned_runs(read_plan(path), tmp_path))
    assert first["sites"]["I"] == {"sequence": "T2"}
    assert second["sites"]["I"] == {}
