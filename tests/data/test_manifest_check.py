# SPDX-License-Identifier: Apache-2.0
"""Which manifest of a site is verified, and what is no manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmonai.data.provenance import check_manifests, write_manifest
from fedmonai.errors import ConfigError

SPLITS = {"train": [{"kspace": "a.h5", "subject": "s1"}], "test": [{"kspace": "b.h5", "subject": "s2"}]}


@pytest.fixture
def site(tmp_path: Path, make_volume: Callable[..., Path]) -> Path:
    for seed, name in enumerate("abc"):
        make_volume(tmp_path / "site" / f"{name}.h5", (2, 4, 4), (4, 4), seed=seed)
    return tmp_path / "site"


def test_folder_without_manifest(site: Path) -> None:
    assert check_manifests(site) == []


def test_manifest_beside_the_data(site: Path) -> None:
    write_manifest(site, SPLITS)
    (site / "b.h5").write_bytes(b"")
    (check,) = check_manifests(str(site))
    assert (check.path, check.files) == (str(site / "manifest.json"), 2)
    assert check.problems == ["b.h5 has changed since the manifest was written."]


def test_a_list_with_hashes_goes_before_the_manifest(site: Path, tmp_path: Path) -> None:
    write_manifest(site, SPLITS)
    own = write_manifest(site, {"train": [{"kspace": "c.h5", "subject": "s3"}]}, tmp_path / "lists" / "site1.json")
    (site / "b.h5").unlink()
    assert [(c.path, c.files, c.problems) for c in check_manifests(site, own)] == [(str(own), 1, [])]


def test_a_list_without_hashes_does_not(site: Path, tmp_path: Path) -> None:
    write_manifest(site, SPLITS)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"training": [{"kspace": "a.h5"}]}))
    assert [check.path for check in check_manifests([site], [plain])] == [str(site / "manifest.json")]


@pytest.mark.parametrize("content", [[], {}, {"files": ["a"]}, {"training": 3, "test": ["x", {"sha256": "y"}]}])
def test_another_file_of_that_name_is_no_manifest(site: Path, content: object) -> None:
    (site / "manifest.json").write_text(json.dumps(content))
    assert check_manifests(site) == []


def test_broken_manifest(site: Path) -> None:
    (site / "manifest.json").write_text('{"training": [')
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read as JSON"):
        check_manifests(site)
