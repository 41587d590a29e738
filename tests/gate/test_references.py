# SPDX-License-Identifier: Apache-2.0
"""What the gate knows of MONAI's configs without MONAI is what MONAI does."""

from __future__ import annotations

import copy
import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import merge_kv

from fedmonai.gate.policy import load_policy
from fedmonai.gate.reading import SEP, config_files, load_strictly, walk
from fedmonai.gate.references import LOCAL_REFERENCES, as_evaluated, merge_layers, references

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = [load_strictly(path) for bundle in sorted(BUNDLES.iterdir()) for path in config_files(bundle)]
PARTS = ("@a", "@ab::0", "@a#b", "@::c", "@", "%a", "x", "'", " + ", "#")


def test_constants_are_those_of_monai() -> None:
    assert ReferenceResolver.sep == SEP
    assert ReferenceResolver._vars == LOCAL_REFERENCES
    arguments = set(inspect.signature(ConfigWorkflow.__init__).parameters) - {"self", "override"}
    assert load_policy().workflow_arguments == arguments


def test_references_are_those_of_monai() -> None:
    texts = ["".join(parts) for size in (1, 2, 3) for parts in itertools.product(PARTS, repeat=size)]
    texts += [value for config in CONFIGS for _, value in walk(config) if isinstance(value, str)]
    for text in [*texts, *(f"${text}" for text in texts)]:
        found = ReferenceResolver.match_refs_pattern(text)
        assert references(text) == list(found)
        if text.startswith("$"):
            assert as_evaluated(text) == ReferenceResolver.update_refs_pattern(text, found)[1:]


def merged_by_monai(*layers: dict[str, Any]) -> dict[str, Any]:
    parser = ConfigParser(config={})
    for layer in layers:
        for key, value in layer.items():
            merge_kv(parser, key, copy.deepcopy(value))
    return parser.get()


BASE = {"a": {"b": [1, {"c": 2}], "d": 3}, "e": [4]}
LAYERS: list[dict[str, Any]] = [
    {"a": 1},
    {"a::b::1::c": 5, "a::new": {"x": 1}},
    {"+a": {"d": 7}, "+e": [8]},
    {"+a::b": [9], "f": None},
    {"a::b::0": 2},
]


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_merge_as_in_monai(layer: dict[str, Any]) -> None:
    assert merge_layers(BASE, layer) == merged_by_monai(BASE, layer)
    assert BASE == {"a": {"b": [1, {"c": 2}], "d": 3}, "e": [4]}  # the layers themselves stay


@pytest.mark.parametrize("layer", [{"x::y": 1}, {"+a": [1]}, {"a::d::e": 1}, {"e::5": 1}, {"a::b::c": 1}])
def test_what_monai_cannot_merge_is_an_error(layer: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError, IndexError, TypeError)):
        merged_by_monai(BASE, layer)
    with pytest.raises((KeyError, ValueError, IndexError, TypeError)):
        merge_layers(BASE, layer)
