# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/deployed.py`` at toy size: three jobs on NVFlare, both of ours beside a stock one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        find_spec("nvflare") is None, reason="NVFlare is not installed: pip install 'fedmonai[nvflare]'"
    ),
]


def test_benchmark_of_a_deployed_round_runs(tmp_path: Path) -> None:
    output = tmp_path / "deployed.json"
    sizes = ["--rounds", "3", "--sites", "2", "--channels", "8", "--output", str(output)]
    words = [sys.executable, str(ROOT / "benchmarks" / "deployed.py"), *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    content = json.loads(output.read_text())
    for kind, found in content["runs"].items():
        assert found[0]["nvflare_bytes"]["down"] > 0 and found[0]["seconds_per_round"] > 0, kind
    full, half = (content["runs"][kind][0] for kind in ("float32", "bfloat16"))
    for way in ("up", "down"):
        # NVFlare counts its headers, too: a few hundred bytes a message beside models of 1 and 2 MB
        assert full["recorded_bytes"][way] <= full["nvflare_bytes"][way] < 1.05 * full["recorded_bytes"][way] + 200_000
    assert half["nvflare_bytes"]["down"] < 0.6 * full["nvflare_bytes"]["down"]
