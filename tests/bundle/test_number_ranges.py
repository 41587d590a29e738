# SPDX-License-Identifier: Apache-2.0
"""Values out of the range of the bundles' tables, and ids of sites that a federation does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedmonai.bundle.id_effects import refuse_unread_ids
from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.id_values import refuse_out_of_range
from fedmonai.bundle.ids import read_configs
from fedmonai.errors import ConfigError

BUNDLES = sorted(path.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs"))
TABLES = {bundle.name: IdTable.of_bundle(bundle, read_configs(bundle)) for bundle in BUNDLES}
FL_MR = TABLES["fl_mr"]
UNREAD = sorted(name for name, entry in FL_MR.items() if entry.at_sites)


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
        ({"num_rounds": 2.5}, "config id 'num_rounds' is 2.5; give a whole number of at least 0."),
        ({"num_rounds": None}, "config id 'num_rounds' is None;"),
        ({"num_rounds": True}, "config id 'num_rounds' is True;"),
        ({"local_epochs": 1.5}, "config id 'local_epochs' is 1.5; give a whole number of at least 1."),
        ({"local_steps": 0}, "config id 'local_steps' is 0; give a whole number of at least 1, or null."),
        ({"epochs": 0}, "config id 'epochs' is 0;"),
        ({"fraction": 1.5}, "config id 'fraction' is 1.5; give a number above 0 and at most 1."),
        ({"local_timeout": 0}, "config id 'local_timeout' is 0; give a number above 0, or null."),
        ({"batch_size": [4]}, "config id 'batch_size' is [4];"),
        ({"local": {"norm": "layer"}}, "'local::norm' is 'layer'; choose one of instance, instance_affine, batch."),
        ({"mask_kind": ["random", "raster"]}, "'mask_kind' is 'raster'; choose one of random, equispaced."),
        ({"key_metric_mode": None}, "'key_metric_mode' is None; choose one of max, min."),
    ],
)
def test_a_number_out_of_range_is_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_out_of_range(config, FL_MR)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("config", "beyond"),
    [
        ({"num_rounds": 2.0}, {"num_rounds": 2.5}),
        ({"local_steps": None}, {"local_steps": 0}),
        ({"resident_sites": None, "local_timeout": 0.5}, {"local_timeout": 0}),
        ({"fraction": 1}, {"fraction": 1.01}),
        ({"seed": 0}, {"seed": -1}),
        ({"batch_size": "$2 * @a", "num_rounds": "@a", "lr": "%train.json::lr"}, {"lr": -1}),
        ({"epochs": {"_target_": "some.component"}}, {"epochs": 0}),
        ({"local": None, "sites": {"A": None, "B": {"num_workers": 0}}}, {"sites": {"B": {"num_workers": -1}}}),
        ({"part": {"lr": -1}, "local": {"part": {"lr": -1}}}, {"local": {"lr": -1}}),  # the component's own argument
    ],
)
def test_the_rest_is_let_through_up_to_its_limit(config: dict[str, Any], beyond: dict[str, Any]) -> None:
    refuse_out_of_range(config, FL_MR)
    with pytest.raises(ConfigError):
        refuse_out_of_range({**config, **beyond}, FL_MR)


@pytest.mark.parametrize("value", ["all", 5, ["A"], None])
def test_a_mapping_is_none_else(value: Any) -> None:
    for config, name in (
        ({"tensor_owners": value}, "tensor_owners"),
        ({"local": {"targets": value}}, "local::targets"),
    ):
        with pytest.raises(ConfigError, match=f"config id '{name}' is .*; give a mapping"):
            refuse_out_of_range(config, TABLES["fedicra"])
    refuse_out_of_range({"tensor_owners": {}, "label_map": None}, TABLES["fedicra"])


@pytest.mark.parametrize("section", ["local", "sites"])
@pytest.mark.parametrize("name", UNREAD)
def test_ids_of_sites_without_effect(name: str, section: str) -> None:
    ids = {name: 3}
    prefix = "local::" if section == "local" else "sites::A::"
    with pytest.raises(ConfigError) as caught:
        refuse_unread_ids({section: ids if section == "local" else {"A": ids, "B": {}}}, FL_MR)
    assert f"config id '{prefix}{name}' (value 3) has no effect in a federation; set " in str(caught.value)
    refuse_unread_ids({name: 3, section: {}}, FL_MR)  # the federation's own, or local training by itself


def test_ids_of_other_commands_are_refused_at_sites() -> None:
    with pytest.raises(ConfigError, match=r"'local::overwrite' \(value True\) has no effect in a federation: "):
        refuse_unread_ids({"local": {"overwrite": True}}, FL_MR)


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_the_files_of_a_bundle_pass_and_are_looked_at(bundle: Path) -> None:
    table, looked_at = TABLES[bundle.name], set()
    for config in read_configs(bundle).values():
        plain = {key.removeprefix("local::"): value for key, value in config.items()}
        refuse_out_of_range(config, table)
        refuse_out_of_range(plain, table)
        refuse_unread_ids(config, table)
        refuse_unread_ids({"local": {key.removeprefix("local::"): 1 for key in config if "local::" in key}}, table)
        for name in {key for key in plain.keys() & table.keys() if table[key].is_number}:
            looked_at.add(name)
            with pytest.raises(ConfigError, match=f"'{name}' is nan"):
                refuse_out_of_range({**plain, name: float("nan")}, table)
    assert {"num_rounds", "epochs", "lr"} <= looked_at
