# SPDX-License-Identifier: Apache-2.0
"""A bundle to change, without what running it leaves beside its files."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_bundle(bundle: Path, target: Path) -> Path:
    """Copy what a bundle is made of: the data, runs, evaluations and weights that lie beside it can be gigabytes."""
    for folder in ("configs", "docs"):
        shutil.copytree(bundle / folder, target / folder)
    (target / "models").mkdir()
    for file in ("LICENSE", "models/README.md"):
        shutil.copy(bundle / file, target / file)
    return target
