# SPDX-License-Identifier: Apache-2.0
"""Plans of comparisons: what they say, in which order they run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmonai.bundle import execute, planned_runs, read_plan
from fedmonai.errors import ConfigError

PLANS = sorted((Path(__file__).parents[2] / "scripts" / "plans").glob("*.yaml"))
BUNDLES = Path(__file__).parents[2] / "bundles"
PLAN: dict[str, Any] = {
    "seeds": [3, 4],
    "ids": {"num_rounds": 2, "local::lr": 0.1},
    "methods": {
        "FL-MR": {"bundle": "fl_mr"},
        "FedProx, strong": {
            "bundle": "fl_mr",
            "overlays": ["configs/federation/fedprox.yaml"],
            "ids": {"local::mu": 1.0, "num_rounds": 3},
        },
    },
}


def write(tmp_path: Path, plan: Any) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan, sort_keys=False))
    return path


def test_methods_inherit_and_override_ids(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, PLAN))
    assert [method.name for method in plan.methods] == ["FL-MR", "FedProx, strong"]
    assert plan.reference == "FL-MR"
    assert plan.methods[0].ids == {"num_rounds": 2, "local::lr": 0.1}
    assert plan.methods[1].ids == {"num_rounds": 3, "local::lr": 0.1, "local::mu": 1.0}


def test_seeds_are_the_outer_loop_and_folders_are_plain(tmp_path: Path) -> None:
    runs = list(planned_runs(read_plan(write(tmp_path, PLAN)), tmp_path))
    assert [(run.method.name, run.seed) for run in runs] == [
        ("FL-MR", 3),
        ("FedProx, strong", 3),
        ("FL-MR", 4),
        ("FedProx, strong", 4),
    ]
    assert runs[1].folder == tmp_path / "runs" / "fedprox_strong" / "seed_3"


def test_a_choice_of_methods_keeps_the_reference(tmp_path: Path) -> None:
    path = write(tmp_path, {**PLAN, "reference": "FedProx, strong"})
    assert [m.name for m in read_plan(path, ["FL-MR"]).methods] == ["FL-MR", "FedProx, strong"]
    assert read_plan(path, seeds=[7]).seeds == (7,)


def test_plans_of_the_project_name_what_exists() -> None:
    assert len(PLANS) == 2
    for path in PLANS:
        for method in read_plan(path).methods:
            for file in ("configs/federated.yaml", *method.overlays):
                assert (BUNDLES / method.bundle / file).is_file()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": {}}, "has no methods"),
        ({"methods": {"x": {}}}, "names no bundle"),
        ({"methods": {"x": {"bundle": "fl_mr", "overlay": "y"}}}, "'overlay' is unknown; known are bundle, ids"),
        ({"ids": {"data_list": None}}, "id 'data_list' .* is null"),
        ({"reference": "y"}, "reference 'y' is none of"),
        ({"seed": 3}, "'seed' is unknown"),
    ],
)
def test_mistakes_in_a_plan_are_named(tmp_path: Path, change: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_plan(write(tmp_path, {**PLAN, **change}))


def test_unreadable_plans_and_unknown_methods(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match=r"methods: 'z' is not in .*FL-MR, FedProx, strong"):
        read_plan(write(tmp_path, PLAN), ["z"])


def test_a_missing_overlay_and_a_changed_plan_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "overlays": ["configs/none.yaml"]}}})
    with pytest.raises(ConfigError, match=r"method 'x': there is no file .*none\.yaml"):
        execute(next(planned_runs(read_plan(path), tmp_path)), BUNDLES)
    run = next(planned_runs(read_plan(write(tmp_path, PLAN)), tmp_path))
    run.folder.mkdir(parents=True)
    (run.folder / "planned.json").write_text("{}\n")
    with pytest.raises(ConfigError, match="holds a run of another plan"):
        execute(run, BUNDLES)


def test_a_mistake_of_the_config_comes_out_unwrapped(tmp_path: Path) -> None:
    path = write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "ids": {"num_ronds": 1}}}})
    with pytest.raises(ConfigError, match=r"num_ronds.*did you mean 'num_rounds'"):
        execute(next(planned_runs(read_plan(path), tmp_path)), BUNDLES)
