# SPDX-License-Identifier: Apache-2.0
"""The table of attacks through two doors: ``try``, and the process of a site.

The sender checks nothing: where a command would refuse to make a job of such a bundle, the job is made without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_kit import fresh, write
from attack_table import ATTACKS

from fedmonai.federated.messages import Request
from fedmonai.integrations.job import describe, stage
from fedmonai.integrations.worker import SiteProcess

pytestmark = pytest.mark.integration
#: what a site has beside the folder of a job
SETTINGS = "ids: {lr: 0.001}\n"


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)}


def by_try(bundle: Path, folder: Path) -> str:
    """Tried on one's own machine."""
    files = ["configs/federated.yaml", "configs/federation/evil.yaml"]
    words = [sys.executable, "-m", "fedmonai.bundle", "try", str(bundle), f"--config_file={files}"]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment(folder))
    assert ended.returncode, ended.stdout[-2000:]
    return ended.stderr


def by_process(bundle: Path, folder: Path) -> str:
    """Sent to the process in which a site of a deployed federation trains."""
    stage(describe(bundle, "evil", run="r"), bundle, folder / "job")
    site = SiteProcess(folder / "job", "B", folder / "kit" / "local" / "fedmonai.yaml", folder / "kit")
    try:
        error = site.answer(Request("join", "B", 0, None, {"state_round": 0})).error
    finally:
        site.close()
    assert error is not None
    return error + "".join(path.read_text() for path in (folder / "kit").rglob("errors.log"))


@pytest.mark.parametrize("way", [by_try, by_process], ids=lambda way: way.__name__)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_does_nothing(
    attack: Callable[[], dict[str, Any]], way: Callable[[Path, Path], str], tmp_path: Path
) -> None:
    bundle = fresh(tmp_path)
    write(bundle, "federation/evil.yaml", attack())
    settings = tmp_path / "kit" / "local" / "fedmonai.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(SETTINGS)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    said = way(bundle, tmp_path)
    assert "evil.yaml" in said or "refused" in said, said[-3000:]
    assert settings.read_text() == SETTINGS
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    made = {path.name for path in tmp_path.rglob("*")}
    assert not {"marker", "torchio.py", "runs"} & made, sorted(made)
    assert not [name for name in made if name.startswith("events.out")]
