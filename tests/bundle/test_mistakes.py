# SPDX-License-Identifier: Apache-2.0
"""Every mistake that people make with a federation ends in one clear error before anything is trained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from fedmonai.bundle.site_check import check_site
from fedmonai.errors import ConfigError, root_user_error

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"


def swap_dataset(root: Path) -> None:
    with h5py.File(root / "B" / "train" / "B_train.h5", "w") as stream:
        stream["image"], stream["label"] = np.zeros((32, 32)), np.zeros((32, 32), np.uint8)


def empty_split(root: Path) -> None:
    (root / "B" / "train" / "B_train.h5").unlink()


def spoil_file(root: Path) -> None:
    (root / "B" / "val" / "B_val.h5").write_bytes(b"not hdf5 at all")


def misshape(root: Path) -> None:
    with h5py.File(root / "B" / "train" / "B_train.h5", "w") as stream:
        stream["kspace"] = np.ones((32, 32), np.complex64)


def leave(root: Path) -> None:
    """The data are good; the mistake is in a setting."""


FILTERS = [{"_target_": "fedmonai.federated.privacy.GaussianPrivacy", "clip": 1}]
MISTAKES: list[tuple[str, Callable[[Path], None], dict[str, Any], tuple[str, ...]]] = [
    ("dataset swap", swap_dataset, {}, ("site 'B'", "B_train.h5", "no dataset 'kspace' (found: image, label)")),
    ("misspelt id", leave, {"num_rouns": 3}, ("'num_rouns' (value 3)", "did you mean 'num_rounds'")),
    ("misspelt id for all sites", leave, {"local::epohcs": 3}, ("site 'A'", "'epohcs'", "did you mean 'epochs'")),
    ("misspelt id of a site", leave, {"sites::B::sampel_rate": 1}, ("site 'B'", "did you mean 'sample_rate'")),
    ("missing folder", leave, {"sites::B::dataset_dir": "/no/such"}, ("site 'B': dataset_dir: /no/such", "val|test>")),
    ("empty split", empty_split, {}, ("site 'B'", "split 'train' is empty", "*.h5")),
    ("unreadable file", spoil_file, {}, ("site 'B'", "B_val.h5 is not a readable HDF5 file")),
    ("k-space shape", misshape, {}, ("site 'B'", "B_train.h5: 'kspace' has shape (32, 32)", "(slices, rows, columns)")),
    ("acceleration", leave, {"local::accelerations": [0.5]}, ("site 'A'", "acceleration", "0.5", "1")),
    ("center fraction 0", leave, {"local::center_fractions": [0.0]}, ("site 'A'", "center_fraction", "(0, 1]")),
    ("center fraction 1.5", leave, {"local::center_fractions": [1.5]}, ("site 'A'", "1.5", "(0, 1]")),
    ("batch of 0", leave, {"local::batch_size": 0}, ("config id 'local::batch_size' is 0", "of at least 1")),
    ("batch of 0 at a site", leave, {"sites::B::batch_size": 0}, ("'sites::B::batch_size' is 0", "of at least 1")),
    ("rate below 0", leave, {"local::lr": -1}, ("config id 'local::lr' is -1", "above 0")),
    ("workers below 0", leave, {"local::num_workers": -1}, ("config id 'local::num_workers' is -1", "at least 0")),
    ("half a round", leave, {"num_rounds": 2.5}, ("config id 'num_rounds' is 2.5", "whole number")),
    ("half an epoch", leave, {"local_epochs": 1.5}, ("config id 'local_epochs' is 1.5", "whole number")),
    ("no step", leave, {"local_steps": 0}, ("config id 'local_steps' is 0", "at least 1, or null")),
    ("epochs of sites", leave, {"local::epochs": 3}, ("'local::epochs' (value 3) has no effect", "set local_epochs")),
    ("unknown site", leave, {"train_sites": ["A", "Z"]}, ("train_sites names 'Z'", "are A, B")),
    (
        "argument in a list",
        leave,
        {"exchange_filters": FILTERS},
        ("'exchange_filters::0::clip'", "clip_norm"),
    ),
    (
        "no such component",
        leave,
        {"strategy": {"_target_": "fedmonai.x.Y"}},
        ("'fedmonai.x.Y'", "correct its _target_"),
    ),
    (
        "nested id of a site",
        leave,
        {"sites::B": {"train::datset::slice_range": [0, 1]}},
        ("site 'B': config id 'train::datset::slice_range' stands in a section that is not there", "'dataset'"),
    ),
    (
        "place in a list",
        leave,
        {"sites::B": {"train::handlers::99::network": None}},
        ("site 'B': config id 'train::handlers::99::network' stands in a section that is not there",),
    ),
    ("no device", leave, {"device": "gpu"}, ("device is 'gpu', which is none; give cpu, cuda",)),
    ("device that is not there", leave, {"device": "cuda:99"}, ("device is 'cuda:99', but this machine has",)),
    ("device of a site", leave, {"local::device": "cuda:99"}, ("site 'A': device is 'cuda:99', but this machine",)),
    ("site without ids", leave, {"sites::A": 5}, ("sites: 'A' is 5; give ids with their values",)),
    ("no filter", leave, {"exchange_filters": "x"}, ("exchange_filters holds 'x', which is no filter",)),
    ("no handler", leave, {"handlers": "none"}, ("handlers holds 'none', which is no handler",)),
    ("bound", leave, {"guard::max_norm": "abc"}, ("guard: max_norm is 'abc'; give a positive number, or null",)),
    ("weights that are not there", leave, {"init_ckpt": "/no/file.pt"}, ("init_ckpt: there is no file '/no/file.pt'",)),
    (
        "round that is not there",
        leave,
        {"resume_round": 7},
        ("resume_round is 7, but output_dir", "no committed round"),
    ),
    ("more sites than there are", leave, {"min_sites": 9}, ("min_sites is 9; give a number from 1 to", "(2)")),
    (
        "keys of nothing",
        leave,
        {"shared_keys": "encodr.*"},
        ("the pattern 'encodr.*' matches none of", "correct or rem"),
    ),
    ("no sites", leave, {"sites": {}}, ("sites is empty; name at least one site",)),
    ("site without a name", leave, {"sites": {"": {}}}, ("sites: '' cannot be a site name",)),
    ("sites as a text", leave, {"sites": "A"}, ("sites is 'A'; give ids with their values by site",)),
    ("slices", leave, {"local::slice_range": [5, 2]}, ("slice_range: [5, 2] is not [first, last)",)),
    ("output_dir that is a file", leave, {"output_dir": __file__}, ("output_dir '", "cannot be written")),
    ("missing overlay", leave, {"sites::B::overlay": "configs/x.yaml"}, ("site 'B'", "'configs/x.yaml' is not in")),
]


@pytest.mark.parametrize(("harm", "ids", "texts"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_one_clear_error(
    make_site: Callable[..., Path],
    tiny: dict[str, Any],
    tmp_path: Path,
    harm: Callable[[Path], None],
    ids: dict[str, Any],
    texts: tuple[str, ...],
) -> None:
    sites = {"sites": {name: {"dataset_dir": str(make_site(name))} for name in "AB"}}
    harm(tmp_path)
    own = {"bundle_root": str(FL_MR), "output_dir": str(tmp_path / "run"), "num_rounds": 1, "device": "cpu"}
    files = [str(FL_MR / "configs" / "federated.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**own, **sites, **tiny, **ids})
    with pytest.raises(Exception) as caught:
        workflow.initialize()
        workflow.run()
    found = root_user_error(caught.value)
    assert isinstance(found, ConfigError), repr(caught.value)
    assert all(text in str(found) for text in texts), str(found)
    assert len(str(found).splitlines()) <= 2
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_number_in_an_overlay_of_a_site(make_site: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(Path(FL_MR, "configs"), bundle / "configs")
    (bundle / "configs" / "low.yaml").write_text("lr: 0")
    sites = {"A": {"dataset_dir": str(make_site("A")), "overlay": "configs/low.yaml"}}
    found = check_site(bundle, "A", sites=sites, output_dir=str(tmp_path / "run"), **tiny)
    assert [(f.good, f.found) for f in found] == [(False, "site 'A': config id 'lr' is 0; give a number above 0.")]


COMMANDS = [
    (
        "configs/federated.yaml",
        ["--num_rouns", "3"],
        "unknown config id 'num_rouns' (value 3); did you mean 'num_rounds'?",
    ),
    (
        "configs/federated.yaml",
        ["--sites::B::dataset_dir", "/no/such"],
        "site 'B': dataset_dir: /no/such is not a folder",
    ),
    (
        "configs/federated.yaml",
        ["--local::lr", "0.1", "--local", "{'mu': 0.1}"],
        "override 'local' drops 'local::lr', which was given before it",
    ),
    ("configs/train.json", ["--dataset_dir", "/no/such"], "dataset_dir: /no/such is not"),
    ("configs/train.json", ["--epochs", "0"], "config id 'epochs' is 0; give a whole number of at least 1."),
    ("configs/inference.json", ["--ckpt_path", "/no/such.pt"], "ckpt_path: there is no file '/no/such.pt'"),
]


@pytest.mark.parametrize(
    ("config", "overrides", "text"), COMMANDS, ids=["id", "site", "order", "training", "number", "inference"]
)
def test_command_line_ends_in_one_line(config: str, overrides: list[str], text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *overrides]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], cwd=FL_MR, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    # all that MONAI itself says is a warning about trust, two lines with the place in its source
    (line,) = [line for line in done.stderr.splitlines() if "UserWarning" not in line and not line.startswith("  ")]
    assert line.startswith(f"error: {text}"), line
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
