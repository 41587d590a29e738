# SPDX-License-Identifier: Apache-2.0
"""Whatever is drawn inside the catalogue with hostile values and passes the gate does no harm when it is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmonai.bundle.lint_merged import isolated

PROGRAM = Path(__file__).with_name("drawn_components.py")


def drawn(folder: Path, seed: int, draws: int, program: Path = PROGRAM) -> dict[str, Any]:
    for name in ("bundle/data", "bundle/configs", "outside", "temporary"):
        (folder / name).mkdir(parents=True)
    (folder / "outside" / "evil.h5").write_bytes(b"secret")
    (folder / "local_module.py").write_text("raise SystemExit('imported')\n")
    words = [sys.executable, *isolated("x")[:1], str(program), str(folder), str(seed), str(draws)]
    ended = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "Agg", "TMPDIR": str(folder / "temporary")},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def judged(found: dict[str, Any]) -> None:
    print(found)
    assert found["passed"] and found["built"] and found["called"], "nothing was drawn that could have done harm"
    assert found["seen"] == []


def test_drawn_components_do_no_harm(tmp_path: Path) -> None:
    judged(drawn(tmp_path, seed=1, draws=600))


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(10))
def test_many_drawn_components_do_no_harm(seed: int, tmp_path: Path) -> None:
    judged(drawn(tmp_path, seed=100 + seed, draws=10_000))


def test_without_the_gate_the_draws_do_harm(tmp_path: Path) -> None:
    """The hook sees what the gate keeps away: the same draws, with nothing refused."""
    program = tmp_path / "open_gate.py"
    text = PROGRAM.read_text().replace("if any(True for _ in merged_problems(config, names)):", "if False:")
    assert text != PROGRAM.read_text()
    program.write_text(text)
    assert drawn(tmp_path / "run", seed=1, draws=600, program=program)["seen"]
