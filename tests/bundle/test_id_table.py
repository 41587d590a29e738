# SPDX-License-Identifier: Apache-2.0
"""The table of ids of each bundle: complete, without dead entries, strict about its own form, and shown as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ReferenceResolver

from fedmonai.bundle.id_list import id_page, id_rows
from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.id_values import site_sections
from fedmonai.bundle.ids import RUNTIME_IDS, read_configs
from fedmonai.commands.bundle import ids
from fedmonai.errors import ConfigError

SEP = ReferenceResolver.sep
BUNDLES = sorted(path.parents[1] for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
GOOD = {"meaning": "a number", "kind": "float", "min": 0}


def top_level(bundle: Path) -> set[str]:
    """Every top-level id of every config of a bundle, those set for sites included."""
    found: set[str] = set()
    for content in read_configs(bundle).values():
        found |= {key.lstrip("+").split(SEP)[0] for key in content}
        found |= {key.removeprefix(f"local{SEP}") for key in content if key.startswith(f"local{SEP}")}
        found |= {key for section in site_sections(content).values() for key in section}
    return found - {"overlay"}


@each_bundle
def test_every_id_has_an_entry_and_no_entry_is_dead(bundle: Path) -> None:
    table = IdTable.of_bundle(bundle, read_configs(bundle))
    assert top_level(bundle) - (RUNTIME_IDS - set(table)) == set(table)


@each_bundle
def test_defaults_are_of_the_kind_and_range_that_the_table_says(bundle: Path) -> None:
    table = IdTable.of_bundle(bundle, read_configs(bundle))
    kinds = {"bool": bool, "list": list, "map": dict, "text": (str, int), "path": str}
    for path, content in read_configs(bundle).items():
        for name, value in content.items():
            entry = table.get(name)
            if entry is None or (isinstance(value, str) and value.startswith(("$", "@", "%"))):
                continue
            wanted = kinds.get(entry.kind, object)
            assert isinstance(value, wanted) or (value is None and entry.optional) or entry.choices, (path.name, name)
            assert not entry.is_number or entry.allows(value), (path.name, name, value)


@each_bundle
def test_page_of_the_ids_is_up_to_date(bundle: Path) -> None:
    page = (bundle / "docs" / "ids.md").read_text(encoding="utf-8")
    assert page == id_page(bundle), f"run: fedmonai ids {bundle} --page > {bundle}/docs/ids.md"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({**GOOD, "unitt": "mm"}, "the entry of 'x' has a field 'unitt'; did you mean 'unit'?"),
        ({**GOOD, "kind": "number"}, "kind is 'number'; choose one of bool, int, float"),
        ({**GOOD, "read": "never"}, "read is 'never'; choose one of alone, federation, both"),
        ({"kind": "float"}, "lacks its 'meaning'"),
        ("a number", "is 'a number'; give a mapping"),
        ({**GOOD, "needs": "mixing"}, "needs is 'mixing'; give ids with what they have to be"),
    ],
)
def test_wrong_entries_are_named(spec: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        IdTable({"x": spec})
    assert text in str(caught.value)


def test_an_overlay_declares_ids_of_its_own(make_bundle: Callable[..., Path]) -> None:
    overlay = {"ids": {"momentum": GOOD}, "momentum": 0.9}
    root = make_bundle({"ids.yaml": "lr: {meaning: rate, kind: float}", "federation/new.json": overlay})
    table = IdTable.of_bundle(root, read_configs(root))
    assert set(table) == {"lr", "momentum"} and not table["momentum"].allows(-1)
    with pytest.raises(ConfigError, match="'ids' is 3; give entries by id"):
        table.extended(3)


NEEDS = {"mixing": True, "layout": ["pairs", "volumes"]}


@pytest.mark.parametrize(
    ("needs", "values", "text"),
    [
        (NEEDS, {"mixing": 1, "layout": "pairs"}, ""),
        (NEEDS, {"mixing": 0.0, "layout": "pairs"}, "it needs mixing, which is 0.0"),
        (NEEDS, {"mixing": 2, "layout": "release"}, "it needs layout pairs or volumes, which is 'release'"),
        (NEEDS, {"mixing": True, "layout": ["release", "volumes"]}, ""),  # data of both kinds
        (NEEDS, {"layout": "pairs"}, ""),  # not known: it may be on
        ({"steps": False}, {"steps": None}, ""),
        ({"steps": False}, {"steps": 3}, "it needs no steps, which is 3"),
        ([{"a": True}, {"b": True}], {"a": [], "b": 1}, ""),
        ([{"a": True}, {"b": True}], {"a": [], "b": None}, "it needs a, which is [] or b, which is None"),
        ((), {}, ""),
    ],
)
def test_what_an_id_needs(needs: Any, values: dict[str, Any], text: str) -> None:
    entry = IdTable({"x": {**GOOD, "needs": needs}})["x"]
    assert entry.lacks(lambda name: values.get(name, ...)) == text


def test_what_an_id_needs_is_an_id_and_stands_in_the_listing(make_bundle: Callable[..., Path]) -> None:
    table = "lr: {meaning: rate, needs: %s}\nfall: {meaning: fall}\nb: {meaning: b}"
    root = make_bundle({"ids.yaml": table % "[{fall: true}, {b: [x, y]}]", "train.json": {"lr": 1}})
    assert id_rows(root)[0]["meaning"] == "rate (needs fall or b x or y)"
    (root / "configs" / "ids.yaml").write_text(table % "{fal: true}")
    with pytest.raises(ConfigError, match="'lr' needs 'fal', which is no id of the bundle; correct it"):
        id_rows(root)


def test_listing(make_bundle: Callable[..., Path]) -> None:
    table = "lr: {meaning: learning rate, kind: float, above: 0, unit: 1/s}\nnet: {meaning: network, kind: component}"
    configs = {"train.json": {"bundle_root": ".", "lr": 0.1}, "federated.yaml": "bundle_root: '.'\nlr: 0.2"}
    root = make_bundle({"ids.yaml": table, **configs})
    (row,) = id_rows(root)
    assert (row["id"], row["allowed"]) == ("lr", "a number above 0 (1/s)")
    assert row["default"] == "0.2 (federated.yaml); 0.1 (train.json)"
    assert ids(str(root), find="RATE").splitlines()[1].strip() == "learning rate"
    assert [row["id"] for row in json.loads(ids(str(root), as_json=True))] == ["lr", "net"]
    with pytest.raises(ConfigError, match=r"no id of .* has 'zzz'"):
        ids(str(root), find="zzz")
    with pytest.raises(ConfigError, match=r".* has no table of ids"):
        ids(str(root.parent))
