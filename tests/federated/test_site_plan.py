# SPDX-License-Identifier: Apache-2.0
"""Which files build a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.errors import ConfigError
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"


@pytest.mark.parametrize("how", ["base", "local", "site"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_files_outside_of_the_bundle_are_refused(how: str, absolute: bool, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.symlink_to(BUNDLE)  # the folder itself may be reached through a link
    (tmp_path / "other.yaml").write_text("lr: 0.5\n")
    file = str(tmp_path / "other.yaml") if absolute else "../" * len(BUNDLE.resolve().parts) + str(tmp_path)[1:]
    file = file if absolute else f"{file}/other.yaml"
    inside = "configs/data/ixi.yaml"
    options: dict[str, Any] = {
        "base": {"base": ["configs/train.json", file]},
        "local": {"local": {"overlay": [inside, file]}},
        "site": {"sites": {"A": {"overlay": file}}},
    }[how]
    plan = SitePlan(**{"bundle_root": str(bundle), "sites": {"A": {"overlay": inside}}, "output_dir": "x", **options})
    with pytest.raises(ConfigError, match=r"site 'A': config file '.*other.yaml' lies outside of the bundle folder"):
        plan.arguments("A")
    good = SitePlan(str(bundle), {"A": {"overlay": inside}}, "x").arguments("A")
    assert good["config_train_filename"] == ["configs/train.json", inside]


@pytest.mark.parametrize("value", ["$exit()", "@seed", "%seed", [["$exit()"]], {"a": "$exit()"}, {"_target_": "x"}])
def test_what_a_site_would_evaluate_is_refused(value: Any) -> None:
    """The federation's parser evaluates what is written as an expression; what comes out is a value and stays one."""
    plan = SitePlan(str(BUNDLE), {"A": {"lr": value}}, "x")
    with pytest.raises(ConfigError, match=r"site 'A': id 'lr' (is .* would evaluate|holds a component)"):
        plan.arguments("A")


def test_text_that_becomes_an_expression_runs_at_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "$__builtins__['__imp' + 'ort__']('os').system('touch witness')"
    config = {
        "text": f"x{code}",
        "sites": {"A": {"lr": "$@text[1:]"}},
        "all": {
            "_target_": "fedmonai.federated.plan.SitePlan",
            "bundle_root": str(BUNDLE),
            "sites": "@sites",
            "output_dir": "x",
        },
    }
    plan = ConfigParser(config).get_parsed_content("all")
    assert plan.sites["A"]["lr"] == code
    with pytest.raises(ConfigError, match="would evaluate"):
        LocalPool(plan).open("A")
    assert not Path("witness").exists()
