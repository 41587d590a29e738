# SPDX-License-Identifier: Apache-2.0
"""Texts that are harmless in parts and harm as a whole: addresses, paths out of the bundle, computed names."""

from __future__ import annotations

from typing import Any

import pytest

from fedmonai.gate.config import config_problems
from fedmonai.gate.names import names_for
from fedmonai.gate.texts import Texts

BASE: dict[str, Any] = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/runs'",
    "site": None,
    "sizes": [64, 32],
    "scheme": "ftp:",
    "slash": "/",
    "empty": "",
    "hidden": "xos.system",
    "items": {"_target_": "CopyItemsd", "keys": ["a"]},
    "made": {"_target_": "fedmonai.data.generated.mri_federation.generated_mri_site", "root": "@output_dir"},
}


def problems(**ids: Any) -> list[str]:
    config = {**BASE, **ids}
    names = names_for()
    assert not [found for found in config_problems(config, names) if found[0].startswith("x")], "seen by itself"
    return [f"{config_id}: {problem}" for config_id, problem in Texts(config, names).problems()]


def saver(path: Any) -> dict[str, Any]:
    return {"_target_": "CheckpointSaver", "save_dir": path}


GOOD = [
    "$@bundle_root + '/eval'",
    "$@output_dir + '/a_' + str(@sizes::0)",
    "$@output_dir + '/outside/' + @site",
    "$@output_dir + '/rank' + os.environ['RANK']",
    "$@output_dir + '/a' if @site else @output_dir",
    "$@made + '/test'",
    "@made",
    "@output_dir",
    "models",
    None,
]


@pytest.mark.parametrize("path", GOOD)
def test_path_below_a_folder_of_the_config_passes(path: Any) -> None:
    assert problems(x=saver(path)) == []


BAD = [
    ("$'ftp:' + '/' + '/host/' + @site", "becomes an address"),
    ("$@scheme + @slash + @slash + 'host'", "becomes an address"),
    ("$@empty + '/etc'", "becomes a path out of the bundle"),
    ("$@output_dir + '/.' + './x'", "becomes a path out of the bundle"),
    ("$@output_dir + '/torchio.py'", "names a file of code"),
    ("$@output_dir + '/fedmonai' + '.yaml'", "names a file of code or settings"),
    ("$@hidden[1:]", "cannot be told here"),
    ("$@items::keys", ""),
    ("$str(@items)", "cannot be told here"),
    ("$@output_dir + @items", "cannot be told here"),
    ("@items", "cannot be told here"),
    (["@output_dir", "@items"], "cannot be told here"),
    ("$@output_dir if @site else @items", "cannot be told here"),
    ("$os.path.join(@output_dir, @hidden)", "cannot be told here"),
    ("$@output_dir.lower()", "cannot be told here"),
    ("$-@sizes::0", "cannot be told here"),
]


@pytest.mark.parametrize(("path", "reason"), BAD, ids=range(len(BAD)))
def test_path_that_is_computed_or_leads_away_is_refused(path: Any, reason: str) -> None:
    found = problems(x=saver(path))
    assert any(reason in problem for problem in found) if reason else not found, found


def test_address_is_found_wherever_it_is_put_together() -> None:
    assert any("becomes an address" in problem for problem in problems(y="$@scheme + '/' + '/host'"))


def test_path_of_a_nested_component_and_of_an_annotated_argument_is_found() -> None:
    found = problems(a={"b": [saver("$@hidden[1:]")]}, w={"_target_": "fedmonai.networks.prepare.load_weights"})
    assert [line.split(": ")[0] for line in found] == ["a::b::0::save_dir"]


def test_references_in_a_circle_end() -> None:
    assert problems(x=saver("@b"), b="@c", c="$@b + '/x'")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("@sizes", True),
        ("$@output_dir + '/a'", True),
        ({"a": ["@scheme"]}, True),
        ("@items", False),
        ("@made", False),
        ({"a": ["@items"]}, False),
        ("$@hidden[1:]", False),
        ({"_target_": "torch.nn.L1Loss"}, False),
    ],
)
def test_what_is_written_in_the_config_is_told_from_what_is_made(value: Any, written: bool) -> None:
    assert Texts(BASE, names_for()).is_written(value) == written
