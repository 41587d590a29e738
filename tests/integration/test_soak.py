# SPDX-License-Identifier: Apache-2.0
"""The soak in small: real processes, killed and resumed under injected faults, its books in order at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def test_soak_in_small() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--rounds", "45", "--sites", "6", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("| yes |") == 5
