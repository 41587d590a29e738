# SPDX-License-Identifier: Apache-2.0
"""Overlays of sites and filters of updates add up: what one file gave is not dropped by another without a word."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import create_workflow, run

from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers, refuse_dropped
from fedmonai.errors import ConfigError, root_user_error

BUNDLE = Path(__file__).parents[2] / "bundles" / "fl_mr"
BASE = BUNDLE / "configs" / "federated.yaml"
PRIVATE = BUNDLE / "configs" / "federation" / "private.yaml"
DATA, MINE = "configs/data/ixi.yaml", "configs/data/hpks.yaml"
FILTER = {"_target_": "fedmonai.federated.messages.KeepSharedKeys", "shared_keys": ["decoder"]}
START: dict[str, Any] = {
    "exchange_filters": [FILTER],
    "local": {"overlay": {"method": DATA}, "lr": 1},
    "sites": {"A": {"overlay": DATA}, "B": {}},
}


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ({"exchange_filters": []}, "'exchange_filters' drops 'fedmonai.federated.messages.KeepSharedKeys'"),
        ({"exchange_filters": None}, "'exchange_filters' drops"),
        ({"exchange_filters": [{**FILTER, "shared_keys": []}]}, "'exchange_filters' drops"),
        ({"local::overlay": {"mine": MINE}}, f"'local::overlay' drops '{DATA}'"),
        ({"local": {"overlay": {}, "lr": 2}}, f"'local' drops '{DATA}'"),
        ({"sites::A::overlay": MINE}, f"'sites::A::overlay' drops '{DATA}', which was given before; add to it"),
        ({"sites#A#overlay": [MINE]}, "'sites::A::overlay' drops"),
        ({"sites": {"A": {"overlay": MINE}}, "sites::A::overlay": DATA}, f"'sites::A::overlay' drops '{MINE}'"),
    ],
)
def test_what_adds_up_is_not_dropped(layer: dict[str, Any], text: str) -> None:
    before = copy.deepcopy(START)
    with pytest.raises(ConfigError) as caught:
        refuse_dropped([("a.yaml", START), ("b.yaml", layer)])
    assert str(caught.value).startswith("b.yaml: ") and text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert before == START


@pytest.mark.parametrize(
    "layer",
    [
        {"+exchange_filters": [FILTER]},
        {"exchange_filters": [{**FILTER, "shared_keys": []}, FILTER]},  # both, in the order that is wanted
        {"exchange_filters::0::shared_keys": ["encoder"]},  # an argument
        {"local::overlay::mine": MINE, "local::lr": 2},
        {"local::overlay": {"mine": MINE, "method": DATA}},
        {"sites::A::overlay": [DATA, MINE]},
        {"sites::B::overlay": MINE},
        {"sites": {"A": {"overlay": MINE}}},  # the sites of another federation
        {"sites::A": {"overlay": MINE}},
        {"sites::Q::overlay": MINE},  # no such site: the merge says so
    ],
)
def test_what_adds_to_it_or_names_the_sites_anew_passes(layer: dict[str, Any]) -> None:
    before = copy.deepcopy(START)
    refuse_dropped([("a.yaml", START), ("b.yaml", layer)])
    assert before == START


def test_protection_of_two_overlays_adds_up(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"+exchange_filters": [FILTER]}))
    for files in ([BASE, PRIVATE, own], [BASE, own, PRIVATE]):
        assert len(read_layers(files)["exchange_filters"]) == 2
    own.write_text(yaml.safe_dump({"exchange_filters": [FILTER]}))
    with pytest.raises(ConfigError, match=r"own.yaml: 'exchange_filters' drops 'fedmonai.federated.privacy.Gauss"):
        read_layers([BASE, PRIVATE, own])


def test_overrides_of_every_command_are_layers() -> None:
    parser = read_layers([BASE, PRIVATE])
    with pytest.raises(ConfigError, match="an override: 'exchange_filters' drops"):
        apply_overrides(parser, {"exchange_filters": []})
    assert len(parser["exchange_filters"]) == 1
    with pytest.raises(Exception) as caught:  # as python -m monai.bundle run does
        create_workflow(
            config_file=[str(BASE), str(PRIVATE)], bundle_root=str(BUNDLE), logging_file=False, exchange_filters=[]
        )
    assert "an override: 'exchange_filters' drops" in str(root_user_error(caught.value))


@pytest.mark.parametrize("name", ["local_timeout", "local::sequence"])
def test_an_override_that_monai_leaves_out_is_refused(name: str) -> None:
    with pytest.raises(Exception) as caught:
        run(config_file=str(BASE), bundle_root=str(BUNDLE), logging_file=False, **{name: None})
    assert f"override '{name}' is None, which MONAI's command line leaves out" in str(root_user_error(caught.value))
