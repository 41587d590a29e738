# SPDX-License-Identifier: Apache-2.0
"""A packed bundle is the bundle: what belongs to it, in the model zoo's form, byte for byte again."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from bundle_copy import copy_bundle
from run_command import run_command

from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.pack import pack_bundle, write_hub_folder
from fedmonai.errors import ConfigError

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with weights, and with results beside them."""
    root = copy_bundle(FL_MR, tmp_path / "fl_mr")
    torch.save({"a": torch.zeros(2)}, root / "models" / "model.pt")
    (root / "eval").mkdir()
    (root / "eval" / "cases.csv").write_text("patient")
    return root


def test_archive_unpacks_to_the_bundle_and_is_the_same_again(bundle: Path, tmp_path: Path) -> None:
    first = pack_bundle(bundle, tmp_path / "dist", "fl_mr")
    version = json.loads((FL_MR / "configs" / "metadata.json").read_text())["version"]
    assert first.name == f"fl_mr_v{version}.zip"
    content = first.read_bytes()
    assert pack_bundle(bundle, tmp_path / "again", "fl_mr").read_bytes() == content
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        for name in names:
            assert archive.read(name) == (bundle.parent / name).read_bytes()
    assert {"fl_mr/models/model.pt", "fl_mr/configs/metadata.json", "fl_mr/LICENSE"} <= set(names)
    assert not any("eval" in name.split("/") for name in names)


def test_hub_folder_has_a_card(bundle: Path, tmp_path: Path) -> None:
    folder = write_hub_folder(bundle, tmp_path / "hub")
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0" and yaml.safe_load(head)["library_name"] == "monai"
    assert "Intended use: Research" in text and "# FL-MR" in text
    assert (folder / "models" / "model.pt").is_file() and not (folder / "eval").exists()
    with pytest.raises(ConfigError, match="is there already"):
        write_hub_folder(bundle, folder)


def test_a_bundle_with_findings_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "evil.py").write_text("print()")
    assert lint_bundle(bundle).findings
    with pytest.raises(ConfigError, match=r"is not packed: configs/evil\.py"):
        pack_bundle(bundle, tmp_path / "dist", "x")
    assert not (tmp_path / "dist").exists()


def test_the_command_takes_a_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    bundle.rename(tmp_path / "run" / "bundle")
    assert run_command(monkeypatch, "pack", tmp_path / "run", "--output", tmp_path / "dist") == 0
    assert [path.name.split("_v")[0] for path in (tmp_path / "dist").iterdir()] == ["fl_mr"]
    assert "no folder 'configs'" in run_command(monkeypatch, "pack", tmp_path / "dist", "--name", "x")
