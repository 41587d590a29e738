# SPDX-License-Identifier: Apache-2.0
"""Tests on a simulated CUDA device run in a process of their own; see ``simulated_cuda.py`` and ``make test-all``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

simulated_cuda: Any = sys.modules.get("simulated_cuda")
if simulated_cuda is None:  # an ordinary run of the suite: the device can no longer be made
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    reason = getattr(simulated_cuda, "UNAVAILABLE", "")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=f"no CUDA device and no simulated one: {reason}"))
