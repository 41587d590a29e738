# SPDX-License-Identifier: Apache-2.0
"""Ids put into a config: what MONAI allows, and one line for what it answers with a bare KeyError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.site_check import check_site
from fedmonai.errors import ConfigError
from fedmonai.experiments.leave_one_out import leave_one_out

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIG: dict[str, Any] = {
    "num_rounds": 3,
    "local": {"overlay": {}},
    "sites": {"B": {}, "F": {"lr": 1}},
    "handlers": [{"persist": True}],
    "network_def": {"base_channels": 2},
}


def parser() -> ConfigParser:
    return ConfigParser({key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()})


def test_existing_and_new_keys_as_monai_does() -> None:
    ids = {"num_rounds": 5, "local::lr": 0.1, "sites::B::new": 2, "sites#F#lr": 3, "handlers::0::persist": False}
    ids |= {"fresh": {"a": 1}, "fresh::a": 2}
    ours, theirs = parser(), parser()
    apply_overrides(ours, ids)
    theirs.update(ids)
    assert ours.config == theirs.config
    assert ours["local::lr"] == 0.1 and ours["sites::F::lr"] == 3 and ours["fresh::a"] == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sits::B::lr", "there is no 'sits' in the config; did you mean 'sites'?"),
        ("sites::Q::lr", "there is no 'sites::Q' in 'sites'; choose one of B, F."),
        ("sites::f::lr", "there is no 'sites::f' in 'sites'; did you mean 'F'?"),
        ("network_df::base_channels", "there is no 'network_df' in the config; did you mean 'network_def'?"),
        ("local::overlay::network::lr", "there is no 'local::overlay::network'; 'local::overlay' is empty"),
        (
            "sites::B::train::dataset::x",
            "there is no 'sites::B::train'; an id inside of a section of train.json is set in",
        ),
        (
            "local::train::dataset::x",
            "there is no 'local::train'; an id inside of a section of train.json is set in an",
        ),
        ("local::ovrlay::mine", "did you mean 'overlay'?"),
        ("num_rounds::x", "'num_rounds' holds 3, which has no keys"),
        ("handlers::1::persist", "'handlers' is a list; '1' is not one of its places 0 to 0"),
        ("handlers::x", "'handlers' is a list; 'x' is not one"),
        ("local::", "has an empty level"),
        ("", "has an empty level"),
    ],
)
def test_a_level_that_is_not_there(name: str, text: str) -> None:
    before = parser()
    with pytest.raises(ConfigError) as caught:
        apply_overrides(before, {name: 1})
    assert str(caught.value).startswith(f"id '{name}'") and text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before.config == parser().config


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["local::lr", "local"], "override 'local' drops 'local::lr', which was given before it; give 'local' first."),
        (["sites#B#lr", "num_rounds", "sites"], "override 'sites' drops 'sites::B::lr'"),
    ],
)
def test_a_section_after_one_of_its_ids(names: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(parser(), {name: {} for name in names})
    assert text in str(caught.value)
    after = parser()
    apply_overrides(after, {"sites": {"B": {}}, "local": {}, "local::lr": 1, "sites::B::lr": 2})
    assert (after["local"], after["sites"]) == ({"lr": 1}, {"B": {"lr": 2}})


def test_every_way_into_a_federation_says_so(tmp_path: Path) -> None:
    (finding,) = check_site(BUNDLES / "fl_mr", "B", **{"sites::Q::sample_rate": 0.5})
    assert not finding.good and "id 'sites::Q::sample_rate': there is no 'sites::Q'" in finding.found
    with pytest.raises(ConfigError, match=r"id 'sits::B::lr': there is no 'sits' in .* 'sites'"):
        leave_one_out(str(tmp_path / "out"), str(BUNDLES / "iop_fl"), **{"sits::B::lr": 1})
    assert not (tmp_path / "out").exists()
