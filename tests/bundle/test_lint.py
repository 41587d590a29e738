# SPDX-License-Identifier: Apache-2.0
"""The static check passes every bundle of the collection and catches every trick of a hostile one."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bundle_copy import copy_bundle
from run_command import run_command

from fedmonai.bundle.lint import lint_bundle
from fedmonai.bundle.lint_files import logging_problems, metadata_problems
from fedmonai.commands.bundle import lint
from fedmonai.errors import ConfigError
from fedmonai.gate import catalogue
from fedmonai.gate.reading import config_files

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("*/configs/metadata.json"))


def test_bundles_are_found() -> None:
    assert BUNDLES and len(BUNDLES) == sum(path.is_dir() for path in ROOT.iterdir())


@pytest.mark.parametrize("bundle", BUNDLES, ids=[b.name for b in BUNDLES])
def test_bundle_of_the_collection_is_clean(bundle: Path) -> None:
    report = lint_bundle(bundle)
    assert [str(finding) for finding in report.findings] == []
    # the check really looked: every config, with components and expressions in them
    assert report.configs == len(config_files(bundle))
    assert report.components and report.expressions


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = copy_bundle(ROOT / "fl_mr", tmp_path / "fl_mr")
    shutil.rmtree(root / "configs" / "federation")
    return root


def rewritten(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def hostile_overlay(root: Path) -> None:
    (root / "configs" / "data" / "evil.yaml").write_text("lr: 1.0\n")


def unknown_overlay_id(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("num_ruonds: 3\n")


def unknown_site_id(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("sites: {B: {sampel_rate: 1}}\nlocal::lr: 1\n")


def overlay_elsewhere(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("sites: {B: {overlay: configs/nowhere.yaml}}\n")


def base_elsewhere(root: Path) -> None:
    (root / "runs").mkdir()
    (root / "runs" / "evil.json").write_text("{}")
    (root / "configs" / "demo.yaml").write_text("federation::base: runs/evil.json\n")


def root_elsewhere(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("bundle_root: runs/evil\n")


def target_in_overlay(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("strategy::_target_: subprocess.Popen\n")


def target_at_a_site(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("sites: {B: {'network_def::_target_': monai.bundle.load}}\n")


def double_key(root: Path) -> None:
    path = root / "configs" / "train.json"
    path.write_text(path.read_text().replace('"seed": 0,', '"seed": 0, "seed": "$os.system(1)",', 1))


def yaml_object(root: Path) -> None:
    (root / "configs" / "demo.yaml").write_text("num_rounds: !!python/object/apply:os.system [true]\n")


def dangling(root: Path) -> None:
    rewritten(root / "configs" / "train.json", lr="@learning_rate")


def code_beside(root: Path) -> None:
    (root / "yaml.py").write_text("raise SystemExit\n")


def link_out(root: Path) -> None:
    (root / "docs" / "data").symlink_to("/etc")


def big_config(root: Path) -> None:
    rewritten(root / "configs" / "evaluate.json", _desc_="x" * (1 << 21))


def foreign_file(root: Path) -> None:
    (root / "configs" / "install.ps1").write_text("")


def evil_weights(root: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("executed",))

    (root / "models" / "model.pt").write_bytes(pickle.dumps(Evil()))


def evil_weights_elsewhere(root: Path) -> None:
    evil_weights(root)
    (root / "models" / "model.pt").rename(root / "docs" / "figure.pt")


def unhashed_download(root: Path) -> None:
    (root / "large_files.yml").write_text("large_files: [{path: models/model.pt, url: x}]\n")


def evaluated_metadata(root: Path) -> None:
    rewritten(root / "configs" / "metadata.json", task="$os.system('true')")


def lost_changelog(root: Path) -> None:
    rewritten(root / "configs" / "metadata.json", version="9.9.9")


def evil_logging(root: Path) -> None:
    path = root / "configs" / "logging.conf"
    path.write_text(path.read_text().replace("(sys.stdout,)", "(__import__('os').system('true'),)"))


BREAKS: list[tuple[Callable[[Path], None], str]] = [
    (hostile_overlay, "configs/data/evil.yaml: lr: is no id of data"),
    (unknown_overlay_id, "configs/demo.yaml: num_ruonds: is unknown"),
    (unknown_site_id, "configs/demo.yaml: sites::B::sampel_rate: is unknown at a site"),
    (overlay_elsewhere, "configs/demo.yaml: sites::B::overlay: 'configs/nowhere.yaml' is no config file"),
    (base_elsewhere, "configs/demo.yaml: federation::base: 'runs/evil.json' is no config file"),
    (root_elsewhere, "configs/demo.yaml: bundle_root: is 'runs/evil'"),
    (target_in_overlay, "configs/demo.yaml: strategy::_target_: 'subprocess.Popen'"),
    (target_at_a_site, "configs/demo.yaml: sites::B::network_def::_target_: 'monai.bundle.load'"),
    (double_key, "configs/train.json: the key 'seed' stands twice"),
    (yaml_object, "configs/demo.yaml: cannot be read (ConstructorError: could not determine a constructor"),
    (dangling, "configs/train.json: lr: refers to '@learning_rate', which no config has"),
    (code_beside, "yaml.py: is code"),
    (link_out, "docs/data: is a link"),
    (big_config, "configs/evaluate.json: has 2,09"),
    (foreign_file, "configs/install.ps1: is of a kind"),
    (evil_weights, "models/model.pt: is not a readable file of tensors"),
    (evil_weights_elsewhere, "docs/figure.pt: is not a readable file of tensors"),
    (unhashed_download, "large_files.yml: entry"),
    (evaluated_metadata, "configs/metadata.json: task: '$os.system('true')' would be evaluated"),
    (lost_changelog, "configs/metadata.json: changelog: says nothing about version 9.9.9"),
    (evil_logging, "configs/logging.conf: handler_console::args: '(__import__"),
]


@pytest.mark.parametrize(("spoil", "line"), BREAKS, ids=[spoil.__name__ for spoil, _ in BREAKS])
def test_spoilt_bundle_is_caught(bundle: Path, spoil: Callable[[Path], None], line: str) -> None:
    spoil(bundle)
    lines = [str(finding) for finding in lint_bundle(bundle).findings]
    assert [found for found in lines if found.startswith(line)], lines


def test_good_weights_and_configs_of_a_copy_are_clean(bundle: Path) -> None:
    torch.save({"w": torch.ones(3), "round": 3}, bundle / "models" / "model.pt")
    assert [str(finding) for finding in lint_bundle(bundle).findings] == []


LOGGING = [
    "[handler_a]\nclass=os.system\n",
    "[handler_a]\nclass=FileHandler\nargs=('/etc/x', 'w')\n",
    "[handler_a]\nclass=StreamHandler\nargs=(open('x', 'w'),)\n",
    "[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\nkwargs={'a': __import__('os')}\n",
    "[formatter_a]\nclass=evil.Formatter\n",
    "[formatter_a]\nvalidate=x\n",
    "[DEFAULT]\nargs=(__import__('os'),)\n[handler_a]\nclass=StreamHandler\n",
    "not a config",
]


@pytest.mark.parametrize("text", LOGGING, ids=range(len(LOGGING)))
def test_logging_tricks_are_caught(text: str, tmp_path: Path) -> None:
    path = tmp_path / "logging.conf"
    path.write_text(text)
    assert list(logging_problems(path))


def test_metadata_sizes_are_small_sums() -> None:
    path = ROOT / "fl_mr" / "configs" / "metadata.json"
    for size, good in (("32*n", True), ("2**p*n", True), ("9**9**9", False), ("__import__('os')", False)):
        metadata = json.loads(path.read_text())
        metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = [size]
        assert (list(metadata_problems(metadata)) == []) == good, size


def test_command_line_prints_one_line_per_finding_and_fails(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    hostile_overlay(bundle)
    code = lint(str(bundle))
    logging.disable(logging.NOTSET)
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert len(lines) == 2
    assert lines[0].startswith("configs/data/evil.yaml: lr: is no id of data")
    assert "1 findings in" in lines[1]


def test_modules_named_by_a_hostile_config_are_not_imported(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of ids looks up the arguments of components; a module that is not allowed must not run for that."""
    (bundle.parent / "witness_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(bundle.parent))
    rewritten(bundle / "configs" / "train.json", extra={"_target_": "witness_module.Thing", "x": 1})
    assert any("witness_module" in str(finding) for finding in lint_bundle(bundle).findings)
    assert "witness_module" not in sys.modules


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder 'configs'"):
        lint_bundle(tmp_path)


def test_overlays_of_the_collection_are_not_empty() -> None:
    overlays = [p for bundle in BUNDLES for p in bundle.glob("configs/data/*.yaml")]
    assert overlays and all(yaml.safe_load(p.read_text()) for p in overlays)


@pytest.mark.parametrize("words", ["--allow own_loss", "--allow own_loss,other.part", "--allow=['own_loss']"])
def test_command_line_admits_a_package_of_ones_own(
    words: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (bundle.parent / "own_loss.py").write_text("raise SystemExit('imported')\nclass Loss: ...\n")
    monkeypatch.syspath_prepend(str(bundle.parent))
    rewritten(bundle / "configs" / "train.json", loss={"_target_": "own_loss.Loss"})
    for given, code in (([], 1), (words.split(), 0)):
        ended = run_command(monkeypatch, "lint", bundle, *given)
        logging.disable(logging.NOTSET)
        assert ended == code, capsys.readouterr().out
    assert "own_loss" not in sys.modules


def test_another_version_is_a_note_and_no_finding(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(catalogue.importlib.metadata, "version", lambda name: "9.9.9")
    code = lint(str(bundle))
    logging.disable(logging.NOTSET)
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert any(line.startswith("note: monai 9.9.9 is installed; the catalogue") for line in lines)


def test_catalogue_of_a_bundle_is_printed(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    lint(str(bundle), catalogue=True)
    logging.disable(logging.NOTSET)
    lines = capsys.readouterr().out.splitlines()
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert {f"id {name}" for name in train} <= set(lines)
    assert "component torch.optim.RMSprop (lr, params)" in lines
    assert "expression @ + ." in lines and "expression @.parameters()" in lines
