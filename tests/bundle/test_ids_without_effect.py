# SPDX-License-Identifier: Apache-2.0
"""An id that is set acts or is refused, alone and in a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.id_values import refuse_without_effect
from fedmonai.bundle.ids import read_configs
from fedmonai.errors import ConfigError

TRANSFER = {"_target_": "fedmonai.methods.cyclic_transfer.CyclicWeightTransfer"}
ROOT = Path(__file__).parents[2] / "bundles"


def refused(bundle: str, files: list[str], **ids: Any) -> str | None:
    """The message about ids without effect, None when all act."""
    contents = read_configs(ROOT / bundle)
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / file) for file in files])
    config = {key: value for key, value in parser.get().items() if key != "_meta_"}
    table = IdTable.of_bundle(ROOT / bundle, contents)
    try:
        refuse_without_effect({**config, **ids}, contents, table)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("bundle", "file", "ids", "text"),
    [
        ("fl_mr", "federated.yaml", {"epochs": 5}, "'epochs' (value 5) has no effect here: in a federation set local_"),
        ("fl_mr", "federated.yaml", {"standalone": True}, "it is read where a site runs alone."),
        ("fl_mr", "federated.yaml", {"strategy": TRANSFER, "weighting": "steps"}, "what read it was replaced"),
        ("fl_mr", "federated.yaml", {"preview": False}, "it belongs to configs/inference.json."),
        ("fl_mr", "train.json", {"weighting": "samples"}, "it belongs to configs/federated.yaml."),
        ("fl_mr", "train.json", {"overwrite": True}, "it belongs to configs/inference.json."),
        ("fl_mr", "train.json", {"reset_optimizer": False}, "it acts in a federation only (configs/federated.yaml)."),
        ("fl_mr", "train.json", {"save_latents": True}, "it acts in a federation only"),
        ("fl_mrcm", "train.json", {"lambda_adv": 0.1}, "it acts in a federation only"),
        ("fedmri", "train.json", {"beta": 1.0}, "it acts in a federation only"),
        ("fedmri", "train.json", {"negatives": "self"}, "it acts in a federation only"),  # as an overlay has it
        ("iop_fl", "train.json", {"personalize": False}, "it acts in a federation only"),
        ("fedicra", "train.json", {"mixing": False}, "it acts in a federation only"),
        ("fl_mr", "train.json", {"dataset_dir": "/data", "generated_shift": "none"}, "what read it was replaced"),
        ("fl_mr", "train.json", {"standalone": False, "epochs": 3}, "in a federation set local_epochs, the epochs"),
    ],
)
def test_refused(bundle: str, file: str, ids: dict[str, Any], text: str) -> None:
    found = refused(bundle, [file], **ids)
    assert found is not None and text in found and len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("bundle", "files", "ids"),
    [
        ("fl_mr", ["train.json"], {"epochs": 3, "lr": 0.1, "lr_milestones": [1], "mu": 0.1, "val_interval": 2}),
        ("fl_mr", ["train.json"], {"reset_optimizer": True, "save_latents": False}),  # the defaults
        ("fl_mr", ["train.json"], {"site": "X", "dataset_dir": "/data"}),
        ("fedmri", ["train.json", "network/dual_domain.yaml"], {}),
        ("fedmri", ["inference.json", "network/dual_domain.yaml"], {}),  # an overlay may set more than one config reads
        ("fl_mr", ["train.json", "evaluate.json"], {"ckpt_path": "model.pt"}),
        ("fl_mr", ["train.json"], {"standalone": False, "reset_optimizer": False, "seed": 5, "output_dir": "/o"}),
        ("fl_mr", ["federated.yaml"], {"lr": 0.5, "mu": 0.1, "weighting": "steps"}),  # sites read the first two
        ("fl_mr", ["federated.yaml"], {"num_rounds": 3, "mine": 4, "epochs_of_mine": "@mine"}),
        ("iop_fl", ["train.json", "data/prostate6.yaml", "outside.yaml"], {"passes": 3}),
        ("fedicra", ["train.json", "data/generated_fundus.yaml"], {"dataset_dir": "/data", "num_rounds": 4}),
    ],
)
def test_let_through(bundle: str, files: list[str], ids: dict[str, Any]) -> None:
    assert refused(bundle, files, **ids) is None
