# SPDX-License-Identifier: Apache-2.0
"""Texts where a bundle has switches and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.id_values import plain_kinds, refuse_wrong_kinds
from fedmonai.bundle.ids import read_configs
from fedmonai.errors import ConfigError

TRAIN = {
    "residual": False,
    "lr": 0.1,
    "epochs": 3,
    "sequence": "T1",
    "device": "$torch.device('cpu')",
    "split": {"a": 1},
}
FEDERATED = {"resume": False, "num_rounds": 5, "local_timeout": None, "local": {}, "sites": {"A": {}}}
OVERLAY = {"lr": 1, "sequence": 2, "local": {"residual": True}}


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle({"train.json": TRAIN, "federated.json": FEDERATED, "data/own.json": OVERLAY})


def test_ids_of_one_plain_kind_everywhere(bundle: Path) -> None:
    kinds = plain_kinds(read_configs(bundle).values())
    assert kinds["residual"] == "bool" and kinds["lr"] == "number" and kinds["split::a"] == "number"
    assert not {"sequence", "device", "local_timeout"} & set(kinds)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"resume": "true"}, "config id 'resume' is the text 'true'; give True or False."),
        ({"num_rounds": "five"}, "config id 'num_rounds' is the text 'five'; give a number."),
        ({"local": {"residual": "false"}}, "config id 'local::residual' is the text 'false'; give True or False."),
        ({"sites": {"A": {"split": {"a": "x"}}}}, "config id 'sites::A::split::a' is the text 'x'; give a number."),
        ({"sites": {"A": {"lr": "1e-4x"}}}, "'sites::A::lr'"),
    ],
)
def test_a_text_is_refused(bundle: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_wrong_kinds({**FEDERATED, **change}, read_configs(bundle), IdTable())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({}, {"resume": 1}),
        ({"resume": True, "num_rounds": 2.0, "local_timeout": "10"}, {"num_rounds": "2"}),  # no file tells the last
        ({"num_rounds": "@other", "resume": "$not @other"}, {"num_rounds": "other"}),
        ({"local": {"lr": "%train.json::lr", "sequence": "T2", "residual": None}}, {"local": {"lr": "train.json::lr"}}),
        ({"sites": None, "local": None}, {"sites": {"A": {"residual": 0}}}),
    ],
)
def test_the_rest_is_let_through(bundle: Path, change: dict[str, Any], worse: dict[str, Any]) -> None:
    refuse_wrong_kinds({**FEDERATED, **change}, read_configs(bundle), IdTable())
    with pytest.raises(ConfigError, match=r"give (True or False|a number)"):
        refuse_wrong_kinds({**FEDERATED, **change, **worse}, read_configs(bundle), IdTable())


def test_the_table_knows_kinds_that_no_file_shows(bundle: Path) -> None:
    table = IdTable({"local_timeout": {"meaning": "seconds", "kind": "float", "optional": True}})
    with pytest.raises(ConfigError, match="'local_timeout' is the text '10'; give a number"):
        refuse_wrong_kinds({**FEDERATED, "local_timeout": "10"}, read_configs(bundle), table)
