# SPDX-License-Identifier: Apache-2.0
"""Which ids a bundle knows, and which it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.ids import known_ids, read_configs, refuse_unknown, unknown_ids
from fedmonai.errors import ConfigError
from fedmonai.gate.reading import config_files

LAYER = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}
TRAIN = {"epochs": 3, "lr": 0.1, "layer": LAYER, "plain": {"a": 1}, "open": {}, "sites": {}, "steps": ["@lr", {"b": 2}]}


@pytest.fixture
def known(make_bundle: Callable[..., Path]) -> set[str]:
    overlay = "'+steps': [1]\n'layer#bias': false\nonly_here::deep: 1\n"
    root = make_bundle({"train.json": TRAIN, "data/own.yaml": overlay, "metadata.json": {"version": "1"}})
    return known_ids(read_configs(root).values(), IdTable())


def test_ids_of_all_files_and_sections_but_not_of_the_metadata(known: set[str]) -> None:
    assert {"epochs", "layer", "layer::in_features", "layer::_target_", "steps", "steps::1::b"} <= known
    assert {"layer::bias", "only_here", "only_here::deep"} <= known  # '#' and '+' are MONAI's other spellings
    assert "version" not in known


def test_config_files_are_found_at_any_depth(make_bundle: Callable[..., Path]) -> None:
    root = make_bundle(
        {
            "train.json": {},
            "data/own.yaml": "",
            "federation/all.yml": "",
            "metadata.json": {},
            "ids.yaml": "",
            "a.md": "",
        }
    )
    assert [p.relative_to(root).as_posix() for p in config_files(root)] == [
        "configs/data/own.yaml",
        "configs/federation/all.yml",
        "configs/train.json",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"epochs": 5, "lr": 0.2}, []),
        ({"epohcs": 5}, ["epohcs"]),
        ({"layer": {**LAYER, "bias": True}}, []),
        ({"layer": {**LAYER, "device": "cpu"}}, []),  # in no file, but torch.nn.Linear takes it
        ({"layer": {**LAYER, "biass": True}}, ["layer::biass"]),
        ({"layer": {**LAYER, "_disabled_": True}}, []),
        ({"layer": {"_target_": "torch.nn.Sequential", "in_features": 2, "x": 1}}, ["layer::x"]),
        ({"layer": {"_target_": "builtins.dict", "anything": 1}}, []),  # its arguments cannot be told
        ({"plain": {"a": 1, "c": 2}}, ["plain::c"]),
        ({"open": {"any": {"depth": 1}}}, []),  # a section that is empty in the bundle may hold any key
        ({"sites": {"A": {"dataset_dir": "/a"}}}, []),  # names that a user gives; each site checks its own ids
        ({"epochs": "@mine", "mine": 4}, []),  # something reads it
        ({"epochs": "$@deep::er + 1", "deep": {"er": 4}}, []),
        ({"run_name": "x", "tracking_uri": "file:///x", "_meta_": {}}, []),
        ({"first": 1, "second": 2}, ["first", "second"]),
    ],
)
def test_unknown_ids(known: set[str], change: dict[str, Any], expected: list[str]) -> None:
    assert unknown_ids({**TRAIN, **change}, known) == expected


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epohcs": 5}, "unknown config id 'epohcs' (value 5); did you mean 'epochs'?"),
        ({"layer": {**LAYER, "in_feature": 3}}, "did you mean 'layer::in_features'?"),
        ({"layer": {**LAYER, "in_feature": 3}}, "'layer::in_feature' (value 3)"),
        ({"steps": ["@lr", {**LAYER, "qwertz": 2}]}, "'steps::1::qwertz' (value 2); choose one of bias, device, dtype"),
        ({"qwertz": 5}, "unknown config id 'qwertz' (value 5); choose one of epochs, layer, lr, only_here, open, "),
    ],
)
def test_nearest_id_is_named(known: set[str], change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_unknown({**TRAIN, **change}, known)
    assert text in str(caught.value)


def test_known_ids_are_let_through_and_each_of_them_counts(known: set[str]) -> None:
    refuse_unknown(TRAIN, known)
    for name in TRAIN.keys() - {"lr"}:  # to which a list of the config refers
        with pytest.raises(ConfigError, match=f"unknown config id '{name}"):
            refuse_unknown(TRAIN, {one for one in known if one.split("::")[0] != name})


def test_top_level_is_what_the_table_says_and_sections_are_what_the_files_write() -> None:
    contents = [{"epochs": 3, "typo": 1, "layer": LAYER}]
    table = IdTable({"epochs": {"meaning": "epochs"}, "layer": {"meaning": "the layer", "kind": "component"}})
    known = known_ids(contents, table)
    assert unknown_ids({"epochs": 5, "layer": {**LAYER, "in_features": 3}}, known) == []
    assert unknown_ids({"typo": 1}, known) == ["typo"]  # a misspelt id in a file of the bundle is not known by that


def test_keys_of_open_ids_are_the_users(known: set[str]) -> None:
    known = known | {"label_map", "label_map::255"}
    config = {"label_map": {100: 1, "cup": None}}
    assert unknown_ids(config, known) == ["label_map::100", "label_map::cup"]
    assert unknown_ids(config, known, {"label_map"}) == []
