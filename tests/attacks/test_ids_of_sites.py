# SPDX-License-Identifier: Apache-2.0
"""Bundles without a finding whose job runs a command at a deployed site: what becomes ids of sites is not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from attack_kit import deployed, findings, fresh, hidden_command, write

from fedmonai.errors import ConfigError
from fedmonai.federated.plan import SitePlan

Files = dict[str, dict[str, Any]]


def standing_alone(made: dict[str, Any]) -> tuple[Files, list[str]]:
    """``bundle_root`` in an overlay: the check believes that it is laid over nothing."""
    return {"federation/evil.yaml": {"bundle_root": ".", **made, "+federation": {"sites": "@made"}}}, ["evil"]


def other_base(made: dict[str, Any]) -> tuple[Files, list[str]]:
    """A folder whose files the check lays over train.json; the job lays it over federated.yaml."""
    return {"network/evil.yaml": {**made, "+federation": {"sites": "@made"}}}, ["configs/network/evil.yaml"]


def blank_in_an_id(made: dict[str, Any]) -> tuple[Files, list[str]]:
    """MONAI strips blanks when it looks up the parts of an id; the gate's copy of its merge does not."""
    return {"federation/evil.yaml": {**made, "+federation ": {"sites": "@made"}}}, ["evil"]


def two_overlays(made: dict[str, Any]) -> tuple[Files, list[str]]:
    """Each overlay is laid over the base by itself; the job lays one over the other."""
    names = ["a_first", "b_second"]
    first = {"federation": {"_target_": "fedmonai.bundle.federation.build_federation"}}
    second = {**made, "+federation": {"sites": "@made"}}
    return {"federation/a_first.yaml": first, "federation/b_second.yaml": second}, names


@pytest.mark.parametrize("make", [standing_alone, other_base, blank_in_an_id, two_overlays])
def test_no_command_runs_at_a_site(make: Any, tmp_path: Path) -> None:
    bundle, marker = fresh(tmp_path), tmp_path / "marker"
    files, overlays = make(hidden_command())
    for name, content in files.items():
        write(bundle, name, content)
    if make is two_overlays:
        path = bundle / "configs" / "federated.yaml"
        content = yaml.safe_load(path.read_text())
        content["federation"] = {}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    found = findings(bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        said = deployed(bundle, tmp_path, overlays)
    ran = marker.exists()
    print(f"findings {found}; the site {said}")
    assert not ran, "the job ran a command"
    assert found or "None" not in said


IDS = ["loss::_target_", "loss#_target_", "loss ::_target_", "config_file", "logging_file", "init_id"]


@pytest.mark.parametrize("name", IDS)
def test_plan_refuses_what_is_no_id_of_a_site(name: str, tmp_path: Path) -> None:
    """The last door before MONAI: the ids of a site themselves, not only their values."""
    plan = SitePlan(str(fresh(tmp_path)), {"B": {name: "os.system"}}, tmp_path / "run")
    with pytest.raises(ConfigError):
        plan.arguments("B")
