# SPDX-License-Identifier: Apache-2.0
"""500 mutated files for each reader, in a process with limits on its memory and on the time for each file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reader_fuzz import READERS

PROGRAM = Path(__file__).parents[1] / "reader_fuzz.py"


@pytest.mark.integration
@pytest.mark.parametrize("reader", READERS)
def test_no_mutated_file_ends_a_process_or_is_handed_on(reader: str, tmp_path: Path) -> None:
    """A crash in a library and a file that takes too long both end the process, which is not allowed to end."""
    root = str(PROGRAM.parents[1])
    run = subprocess.run(
        [sys.executable, str(PROGRAM), reader, "500", str(tmp_path / "files")],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    counts = json.loads(run.stdout)
    print(f"{reader}: {counts['read']} read, {counts['refused']} refused")
    assert not counts["faults"]
    assert counts["read"] and counts["refused"]
