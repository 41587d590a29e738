# SPDX-License-Identifier: Apache-2.0
"""A small site of real files, and a small bundle, for the tests of the bundle room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tiny_sites import MR, write_kspace


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Overrides of a federation that make its sites small."""
    return {f"local::{key}": value for key, value in MR.ids.items()}


@pytest.fixture
def volume_file() -> Callable[..., None]:
    """Write one volume: volume_file(path, shape=(4, 32, 32), bad=None)."""
    return write_volume


def write_volume(path: Path, shape: tuple[int, ...] = (4, 32, 32), bad: float | None = None) -> None:
    """A volume of noise whose k-space belongs to its image; ``bad`` replaces one value of the k-space."""
    write_kspace(path, np.random.RandomState(len(path.name)), shape)
    if bad is not None:
        with h5py.File(path, "r+") as stream:
            stream["kspace"][..., 0, 16] = bad  # in the fully sampled center, so that every mask keeps it


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Path]:
    """Write the three splits of a site: make_site("A")."""

    def make(name: str = "A") -> Path:
        for split in ("train", "val", "test"):
            write_volume(tmp_path / name / split / f"{name}_{split}.h5")
        return tmp_path / name

    return make


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle that holds nothing but configs: make_bundle({"train.json": {...}})."""

    def make(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / "bundle" / "configs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "bundle"

    return make
