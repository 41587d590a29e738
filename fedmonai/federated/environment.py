# SPDX-License-Identifier: Apache-2.0
"""What a run was made with: versions, threads, machine."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

import fedmonai

__all__ = ["describe_environment"]

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "h5py", "nibabel")


def describe_environment() -> dict[str, Any]:
    """Versions of all that numbers depend on, thread count, processor and GPU."""
    versions = {"python": platform.python_version(), "fedmonai": fedmonai.__version__}
    versions.update({name: metadata.version(name) for name in PACKAGES})
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
