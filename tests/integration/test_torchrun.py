# SPDX-License-Identifier: Apache-2.0
"""One site trained by two real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stock_checks import site_ids
from tiny_sites import BUNDLES

WITH_TWO = [bundle for bundle in BUNDLES if (bundle / "configs" / "multi_gpu_train.json").is_file()]


def test_bundles_for_several_processes_are_found() -> None:
    assert WITH_TWO


@pytest.mark.integration
@pytest.mark.parametrize("bundle", WITH_TWO, ids=[bundle.name for bundle in WITH_TWO])
def test_two_processes_train_one_site(tmp_path: Path, bundle: Path) -> None:
    files = "['configs/train.json','configs/multi_gpu_train.json']"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"]
    ids = {**site_ids(bundle, tmp_path, tmp_path), "bundle_root": ".", "epochs": 2}
    # on a command line None would mean that nothing is given
    overrides = [text for key, value in ids.items() for text in (f"--{key}", "$None" if value is None else str(value))]
    done = subprocess.run(
        [*launch, "run", "--config_file", files, *overrides],
        cwd=bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Epoch[2] Metrics" in done.stdout
    assert (tmp_path / "models" / "model.pt").is_file()
