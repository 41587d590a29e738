# SPDX-License-Identifier: Apache-2.0
"""Plans of comparisons: what they say, in which order they run, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmonai.errors import ConfigError
from fedmonai.experiments.comparison import PlannedRun, check_runs, compared_runs, execute, planned_runs, source_state
from fedmonai.experiments.plan import Method, read_plan

PLANS = sorted((Path(__file__).parents[2] / "plans").glob("*.yaml"))
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


def test_rows_of_the_same_runs(tmp_path: Path) -> None:
    """A row that reads another method's runs has none of its own, and brings that method along when it is chosen."""
    rows = {**PLAN["methods"], "global of FL-MR": {"run_of": "FL-MR", "model": "global"}}
    path = write(tmp_path, {**PLAN, "about": "two\n lines", "reference": "FedProx, strong", "methods": rows})
    plan = read_plan(path, ["global of FL-MR"])
    assert [m.name for m in plan.methods] == ["FL-MR", "FedProx, strong", "global of FL-MR"]
    assert plan.about == "two lines"
    runs = list(planned_runs(plan, tmp_path))
    assert {run.method.name for run in runs} == {"FL-MR", "FedProx, strong"}
    found = compared_runs(plan, runs[:1])
    assert [(row.method, row.model, row.folder) for row in found] == [
        ("FL-MR", None, runs[0].folder),
        ("global of FL-MR", "global", runs[0].folder),
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"run_of": "FL-MRR"}, "run_of is 'FL-MRR'; give one that has runs of its own: FL-MR, FedProx, strong"),
        ({"run_of": "row"}, "run_of is 'row'; give one that has runs of its own"),
        ({"run_of": "FL-MR", "model": "best"}, "model is 'best'; give global or personal"),
        ({"run_of": "FL-MR", "ids": {}}, "'ids' is unknown"),
    ],
)
def test_mistaken_rows(tmp_path: Path, row: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_plan(write(tmp_path, {**PLAN, "methods": {**PLAN["methods"], "row": row}}))


def test_the_state_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit where the package is tracked; none where it is a copy, even inside a checkout of something else."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    package = tmp_path / "fedmonai" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr("fedmonai.experiments.comparison.package_file", str(package))
    assert source_state() == {"commit": None, "changed": False}

    def run(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run([git, "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    run("init", "-q")
    assert source_state() == {"commit": None, "changed": False}
    run("add", ".")
    run("commit", "-qm", "one")
    state = source_state()
    assert len(state["commit"]) == 12 and not state["changed"]
    package.write_text("changed = 1\n")
    assert source_state() == {"commit": state["commit"], "changed": True}


def test_a_choice_of_methods_keeps_the_reference(tmp_path: Path) -> None:
    path = write(tmp_path, {**PLAN, "reference": "FedProx, strong"})
    assert [m.name for m in read_plan(path, ["FL-MR"]).methods] == ["FL-MR", "FedProx, strong"]
    assert read_plan(path, seeds=[7]).seeds == (7,)


def test_plans_of_the_project_name_what_exists() -> None:
    assert PLANS
    for path in PLANS:
        for method in (method for method in read_plan(path).methods if method.run_of is None):
            for file in ("configs/federated.yaml", *method.overlays):
                assert (BUNDLES / method.bundle / file).is_file()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": {}}, "has no methods"),
        ({"methods": {"x": {}}}, "names no bundle"),
        ({"methods": {"x": {"bundle": "fl_mr", "overlay": "y"}}}, "method 'x': 'overlay' is unknown; .*'overlays'"),
        ({"methods": {"X": "fl_mr"}}, "method 'X' is 'fl_mr'; give {bundle: fl_mr}"),
        ({"methods": {"X": ["fl_mr"]}}, r"method 'X' is \['fl_mr'\]; give {bundle: fl_mr}"),
        ({"methods": {"X": None}}, "method 'X' is None; give {bundle: fl_mr}"),
        ({"methods": {"x": {"bundle": 3}}}, "method 'x' has the bundle 3, which is no name"),
        ({"methods": {"x": {"bundle": "fl_mr", "ids": "abc"}}}, "method 'x', ids is 'abc'; give a mapping"),
        ({"methods": {"x": {"bundle": "fl_mr", "overlays": 3}}}, "method 'x': overlays is 3; give a list"),
        ({"methods": {"a b": {"bundle": "fl_mr"}, "A, b": {"bundle": "fl_mr"}}}, "would share the folder 'a_b'"),
        ({"methods": {"+": {"bundle": "fl_mr"}}}, r"method '\+' has no letter"),
        ({"seeds": 3}, r"seeds is 3; give a list of whole numbers"),
        ({"seeds": []}, r"seeds is \[\]; give a list of whole numbers"),
        ({"seeds": ["a"]}, "seeds: 'a' is no seed; give whole numbers, 0 or more"),
        ({"seeds": [True]}, "seeds: True is no seed"),
        ({"seeds": [-1]}, "seeds: -1 is no seed"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is there twice"),
        ({"ids": [1]}, r"ids is \[1\]; give a mapping"),
        ({"ids": {1: 2}}, "ids: 1 is no id"),
        ({"ids": {"seed": 3}}, "'seed' cannot be set in a plan; list the seeds under 'seeds'"),
        ({"ids": {"output_dir": "x"}}, "'output_dir' cannot be .*--output_dir"),
        (
            {"methods": {"x": {"bundle": "fl_mr", "ids": {"resume": False}}}},
            "'resume' cannot be .* continues by itself",
        ),
        ({"ids": {"data_list": None}}, "ids: id 'data_list' is null"),
        ({"reference": "y"}, "reference 'y' is not one of"),
        ({"seed": 3}, "'seed' is unknown; did you mean 'seeds'"),
        ({"metods": {}}, "'metods' is unknown; did you mean 'methods'"),
    ],
)
def test_mistakes_in_a_plan_are_named(tmp_path: Path, change: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        read_plan(write(tmp_path, {**PLAN, **change}))
    assert "plan.yaml'" in str(caught.value) and "\n" not in str(caught.value)


def test_a_single_overlay_may_be_a_text(tmp_path: Path) -> None:
    path = write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "overlays": "configs/demo.yaml"}}})
    assert read_plan(path).methods[0].overlays == ("configs/demo.yaml",)


def test_wanted_methods_in_one_text(tmp_path: Path) -> None:
    """A name may hold commas itself, and fire makes a list of some texts with commas."""
    path = write(tmp_path, {**PLAN, "methods": {**PLAN["methods"], "local": {"bundle": "fl_mr"}}})
    for wanted in (["FL-MR,FedProx, strong"], ["FL-MR", "FedProx,strong"], ["FL-MR", "FedProx", "strong"]):
        assert [method.name for method in read_plan(path, wanted).methods] == ["FL-MR", "FedProx, strong"]
    with pytest.raises(ConfigError, match=r"--methods: 'locl' is not in .*did you mean 'local'"):
        read_plan(path, ["FL-MR,locl"])
    with pytest.raises(ConfigError, match="--seeds: 'a' is no seed"):
        read_plan(path, seeds=["a"])  # type: ignore[list-item]


def test_unreadable_plans_and_unknown_methods(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match=r"methods: 'z' is not in .*FL-MR; FedProx, strong"):
        read_plan(write(tmp_path, PLAN), ["z"])


def test_a_missing_overlay_and_a_changed_plan_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "overlays": ["configs/none.yaml"]}}})
    with pytest.raises(ConfigError, match=r"no overlay '.*none\.yaml'; did you mean 'configs/"):
        execute(next(planned_runs(read_plan(path), tmp_path)), BUNDLES)
    run = next(planned_runs(read_plan(write(tmp_path, PLAN)), tmp_path))
    run.folder.mkdir(parents=True)
    (run.folder / "planned.json").write_text("{}\n")
    small = PlannedRun(Method("x", "fl_mr", ids={"min_sites": 9}), run.seed, run.folder)
    with pytest.raises(ConfigError, match="min_sites is 9"):  # without a committed round the record binds nobody
        execute(small, BUNDLES)
    (run.folder / "federation.pt").write_bytes(b"")
    for refuse in (lambda: execute(run, BUNDLES), lambda: check_runs([run], BUNDLES)):
        with pytest.raises(ConfigError, match="holds a run of another plan"):
            refuse()


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    run = next(planned_runs(read_plan(write(tmp_path, {"methods": {"x": {"bundle": "fl_m"}}})), tmp_path))
    with pytest.raises(ConfigError, match=r"method 'x' .*bundle 'fl_m' is not in .*did you mean 'fl_mr'"):
        check_runs([run], BUNDLES)
    with pytest.raises(ConfigError, match="give their folder as --bundles"):
        check_runs([run], tmp_path)


def test_misspelt_nested_ids_and_other_values_that_cannot_be(tmp_path: Path) -> None:
    for ids, text in (
        (
            {"sites::Q::sample_rate": 0.5},
            "id 'sites::Q::sample_rate': there is no 'sites::Q' in 'sites'; choose one of B, F",
        ),
        ({"train_sites": ["5"]}, "method 'x' cannot start: train_sites names '5', which is no site"),
        ({"min_sites": 9}, "min_sites is 9"),
    ):
        run = next(
            planned_runs(read_plan(write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "ids": ids}}})), tmp_path)
        )
        with pytest.raises(ConfigError) as caught:
            check_runs([run], BUNDLES)
        assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_of_the_config_comes_out_unwrapped(tmp_path: Path) -> None:
    path = write(tmp_path, {"methods": {"x": {"bundle": "fl_mr", "ids": {"num_ronds": 1}}}})
    with pytest.raises(ConfigError, match=r"num_ronds.*did you mean 'num_rounds'"):
        execute(next(planned_runs(read_plan(path), tmp_path)), BUNDLES)
