# SPDX-License-Identifier: Apache-2.0
"""Numbers out of range, and ids of sites that a federation does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.bundle.id_values import NUMBERS, UNREAD_AT_SITES, refuse_bad_numbers, refuse_unread_ids
from fedmonai.bundle.ids import config_files
from fedmonai.errors import ConfigError

BUNDLES = sorted((Path(__file__).parents[2] / "bundles").glob("*/configs"))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"batch_size": 0}, "config id 'batch_size' is 0; give a whole number of at least 1."),
        ({"local": {"batch_size": 0}}, "config id 'local::batch_size' is 0; give a whole number of at least 1."),
        ({"local": {"lr": -1}}, "config id 'local::lr' is -1; give a number above 0."),
        ({"local": {"lr": 0}}, "config id 'local::lr' is 0; give a number above 0."),
        ({"sites": {"A": {"lr": float("nan")}}}, "config id 'sites::A::lr' is nan; give a number above 0."),
        ({"lr": float("inf")}, "is inf"),
        ({"local": {"num_workers": -1}}, "'local::num_workers' is -1; give a whole number of at least 0."),
        ({"num_rounds": 2.5}, "config id 'num_rounds' is 2.5; give a whole number of at least 1."),
        ({"num_rounds": None}, "config id 'num_rounds' is None;"),
        ({"num_rounds": True}, "config id 'num_rounds' is True;"),
        ({"local_epochs": 1.5}, "config id 'local_epochs' is 1.5; give a whole number of at least 1."),
        ({"local_steps": 0}, "config id 'local_steps' is 0; give a whole number of at least 1, or null."),
        ({"epochs": 0}, "config id 'epochs' is 0;"),
        ({"fraction": 1.5}, "config id 'fraction' is 1.5; give a number above 0 and at most 1."),
        ({"local_timeout": 0}, "config id 'local_timeout' is 0; give a number above 0, or null."),
        ({"batch_size": [4]}, "config id 'batch_size' is [4];"),
    ],
)
def test_a_number_out_of_range_is_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_bad_numbers(config)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "num_rounds": 2.0,
            "local_steps": None,
            "resident_sites": None,
            "local_timeout": 0.5,
            "fraction": 1,
            "seed": 0,
        },
        {
            "batch_size": "$2 * @a",
            "num_rounds": "@a",
            "lr": "%train.json::lr",
            "epochs": {"_target_": "some.component"},
        },
        {"local": None, "sites": {"A": None, "B": {"num_workers": 0, "lr": 1e-6}}},
        {"part": {"lr": -1}, "local": {"part": {"lr": -1}}},  # the component's own argument
    ],
)
def test_the_rest_is_let_through(config: dict[str, Any]) -> None:
    refuse_bad_numbers(config)


@pytest.mark.parametrize("section", ["local", "sites"])
@pytest.mark.parametrize("name", UNREAD_AT_SITES)
def test_ids_of_sites_without_effect(name: str, section: str) -> None:
    ids = {name: 3}
    prefix = "local::" if section == "local" else "sites::A::"
    with pytest.raises(ConfigError) as caught:
        refuse_unread_ids({section: ids if section == "local" else {"A": ids, "B": {}}})
    assert f"config id '{prefix}{name}' (value 3) has no effect in a federation; set " in str(caught.value)
    refuse_unread_ids({name: 3, section: {}})  # the federation's own, or local training by itself


def test_the_files_of_all_bundles_pass() -> None:
    assert BUNDLES
    read: set[str] = set()
    for folder in BUNDLES:
        for path in config_files(folder.parent):
            config = ConfigParser.load_config_file(path) or {}
            plain = {key.removeprefix("local::"): value for key, value in config.items()}
            refuse_bad_numbers(config)
            refuse_bad_numbers(plain)
            refuse_unread_ids(config)
            assert not any(f"local::{name}" in config for name in UNREAD_AT_SITES)
            read |= set(NUMBERS) & set(plain)
    assert read == set(NUMBERS)  # an id that no bundle has would be a misspelt one
