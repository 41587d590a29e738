# SPDX-License-Identifier: Apache-2.0
"""A small job, and jobs that somebody wrote by other means than the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmonai.bundle.digest import bundle_digest
from fedmonai.integrations.job import describe, stage

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
TINY: dict[str, Any] = {
    "local::base_channels": 2,
    "local::generated_size": 32,
    "local::device": "cpu",
    "local::generated_subjects": [1, 1, 1],
    "num_rounds": 1,
    "sites": {"a": {"site": "B"}, "b": {"site": "H"}},
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    stage(describe(BUNDLE, run="try", ids=TINY), BUNDLE, folder)
    return folder


@pytest.fixture
def altered(job: Path) -> Callable[..., Path]:
    """Write into the job what its sender's own checks would have refused; its digest stays right."""

    def alter(ids: dict[str, Any] | None = None, **fields: Any) -> Path:
        path = job / "fedmonai.json"
        content = json.loads(path.read_text())
        first = {key: value for key, value in (ids or {}).items() if key == "local"}  # as a whole, before ids in it
        content["ids"] = {**first, **content["ids"], **(ids or {})}
        content |= {"digest": bundle_digest(job / "bundle"), **fields}
        path.write_text(json.dumps(content))
        return job

    return alter
