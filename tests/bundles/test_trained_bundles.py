# SPDX-License-Identifier: Apache-2.0
"""What trained weights depend on goes with them: values that differ by site, files, and a word on other values."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from bundle_copy import copy_bundle
from monai.bundle import ConfigParser, ConfigWorkflow
from tiny_sites import BUNDLES, MR, tiny_site

from fedmonai.bundle.trained import trained_ids, trained_settings, write_settings, write_trained_bundle
from fedmonai.errors import ConfigError
from fedmonai.federated.plan import SitePlan

MR_BUNDLES = [bundle for bundle in BUNDLES if tiny_site(bundle) is MR]
FEDMRI = next(bundle for bundle in MR_BUNDLES if "mask_file" in (bundle / "configs" / "inference.json").read_text())


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_every_argument_of_network_and_mask_is_among_them(bundle: Path) -> None:
    config = ConfigParser.load_config_file(bundle / "configs" / "inference.json")
    train = ConfigParser.load_config_file(bundle / "configs" / "train.json")
    text = json.dumps([config["network_def"], config.get("mask"), config["dataset"]])
    named = {name for name in config if name in train and f'"@{name}"' in text}
    assert named and named - {"dataset_dir"} <= set(trained_ids(bundle))
    assert not {"device", "amp", "output_dir", "dataset_dir", "num_workers"} & set(trained_ids(bundle))


def test_values_that_differ_by_site_are_told_apart(tmp_path: Path) -> None:
    sites = {"A": {"accelerations": [8]}, "B": {}}
    plan = SitePlan(FEDMRI, sites, output_dir=tmp_path, local={"base_channels": 4, "mask_kind": "radial"})
    agreed, others = trained_settings(plan, ["A", "B"])
    assert agreed["base_channels"] == 4 and agreed["mask_kind"] == "radial" and "accelerations" not in agreed
    assert others == {"accelerations": {"A": [8], "B": [4]}}


def test_a_file_of_the_settings_goes_with_the_bundle(tmp_path: Path) -> None:
    own, weights = tmp_path / "ours.npy", tmp_path / "w.pt"
    own.write_bytes(b"a pattern")
    torch.save({"a": torch.zeros(1)}, weights)
    new = write_trained_bundle(FEDMRI, tmp_path / "new", weights, {"mask_file": str(own)}, {})
    config = json.loads((new / "configs" / "inference.json").read_text())
    assert config["mask_file"] == "$@bundle_root + '/models/mask_file.npy'"
    assert (new / "models" / "mask_file.npy").read_bytes() == b"a pattern"
    with pytest.raises(ConfigError, match=r"mask_file: '.*none.npy' is no file"):
        write_trained_bundle(FEDMRI, tmp_path / "new", weights, {"mask_file": str(tmp_path / "none.npy")}, {})
    assert (new / "models" / "mask_file.npy").is_file(), "the old one stays while the new one is not whole"


def test_another_sampling_pattern_than_in_training_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes do not show it, so a bundle that knows nothing of the training asks the file beside the weights."""
    root = copy_bundle(FEDMRI, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    weights = root / "models" / "model.pt"
    weights.write_bytes(b"")
    write_settings({"mask_kind": "radial", "base_channels": 32}, weights)
    for given, told in ((None, True), ("radial", False)):
        caplog.clear()
        ids = {} if given is None else {"mask_kind": given}
        workflow = ConfigWorkflow(
            str(root / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **ids
        )
        with caplog.at_level(logging.WARNING):
            workflow.initialize()
        found = [record.getMessage() for record in caplog.records if "were trained with" in record.getMessage()]
        assert bool(found) is told and all('"radial"' in text and str(weights) in text for text in found)


def test_a_bundle_runs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_bundle(FEDMRI, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow(str(root / "configs" / "inference.json"), workflow_type="infer", logging_file=False)
    workflow.initialize()
    assert workflow.parser.get_parsed_content("output_dir") == f"{root}/eval/inference"
