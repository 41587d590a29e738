# SPDX-License-Identifier: Apache-2.0
"""One site trained by two real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL = {
    "fedicra": {
        "generated_images": "[4,2,2]",
        "image_size": 32,
        "batch_size": 2,
        "channels": "[2,2,2,2,16]",
        "head_channels": 2,
    },
    "fedmri": {"generated_size": 32},
    "fl_mr": {"generated_size": 32},
    "fl_mrcm": {"generated_size": 32},
    "iop_fl": {"generated_size": 32, "generated_cases": 3, "generated_slices": 4, "num_pool": 2},
}


def test_every_bundle_is_in_the_table() -> None:
    assert sorted(SMALL) == sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/multi_gpu_train.json"))


@pytest.mark.integration
@pytest.mark.parametrize("bundle", SMALL)
def test_two_processes_train_one_site(tmp_path: Path, bundle: str) -> None:
    files = "['configs/train.json','configs/multi_gpu_train.json']"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    ids = {"generated_dir": tmp_path / "data", "output_dir": tmp_path / "out", "ckpt_dir": tmp_path / "models"}
    ids |= {"epochs": 2, "base_channels": 2, "device": "cpu", **SMALL[bundle]}
    overrides = [text for key, value in ids.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(
        [*launch, "run", "--config_file", files, *overrides],
        cwd=BUNDLES / bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Epoch[2] Metrics" in done.stdout
    assert (tmp_path / "models" / "model.pt").is_file()
