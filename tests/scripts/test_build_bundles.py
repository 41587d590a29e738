# SPDX-License-Identifier: Apache-2.0
"""The bundles are what their sources say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from build_bundles import SOURCE, build, pinned_versions, rendered  # noqa: E402

BUNDLES = sorted(path.parent.name for path in SOURCE.glob("*/bundle.yaml"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_files_with_a_source_are_what_it_writes(bundle: str) -> None:
    files = rendered(bundle)
    assert {"LICENSE", "configs/ids.yaml"} <= set(files)
    for path, text in files.items():
        there = ROOT / "bundles" / bundle / path
        assert there.is_file() and there.read_text(encoding="utf-8") == text, f"{there}: run 'make bundles'"


def test_own_files_win_and_parts_are_not_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = {
        "shared/_parts/a.txt": "part\n",
        "shared/all.txt": '<% include "shared/_parts/a.txt" %>of << bundle >>\n',
        "family/base.json": '{"a": {"b": 1}}\n<% block own %>\nnone\n<% endblock %>\n',
        "family/absent.txt": "x",
        "one/bundle.yaml": yaml.safe_dump({"family": "family", "without": ["absent.txt"]}),
        "one/base.json": '<% extends "family/base.json" %>\n<% block own %>\nmine\n<% endblock %>\n',
    }
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "one" / "hand.txt").write_text("by hand")
    build(tmp_path / "out", source)
    written = {path.name: path.read_text() for path in (tmp_path / "out" / "one").iterdir()}
    assert written == {
        "all.txt": "part\nof one\n",
        "base.json": '{"a": {"b": 1}}\nmine\n',
        "hand.txt": "by hand",
    }


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_names_the_versions_that_are_installed(bundle: str) -> None:
    metadata = json.loads((ROOT / "bundles" / bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    pins = pinned_versions()
    core = {f"{name}_version": pins[package] for name, package in (("monai", "monai"), ("pytorch", "torch"))}
    assert {**core, "numpy_version": pins["numpy"]}.items() <= metadata.items()
    required = metadata["required_packages_version"]
    assert required == {name: pins[name] for name in required} and "fedmonai" in required
