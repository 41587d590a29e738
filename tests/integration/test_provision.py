# SPDX-License-Identifier: Apache-2.0
"""The page on provisioning runs as it stands: a kit is made whose private key was in no file that travelled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from page_blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "provision.md"


@pytest.mark.integration
def test_kit_is_made_and_the_key_stays(tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()

    def run(text: str, good: bool = True) -> str:
        command = ["bash", "-e", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is good, done.stdout + done.stderr
        return done.stdout + done.stderr

    fingerprint = ""
    for kind, text in blocks(PAGE):
        if kind == "bash":
            if "$FINGERPRINT" in text:
                environment["FINGERPRINT"] = "SHA256:" + ":".join(["AB"] * 32)
                run(text, good=False)  # the root certificate of somebody else
                environment["FINGERPRINT"] = fingerprint
            said = run(text)
            if found := re.search(r"SHA256(?::[0-9A-F]{2}){32}", said):
                fingerprint = found[0]
        else:
            (tmp_path / kind.removeprefix("yaml ")).write_text(text)
    kit = tmp_path / "kits/fl_mr/prod_00/hospital-1"
    key = kit / "startup/client.key"
    assert (kit / "startup/start.sh").is_file() and key.stat().st_mode & 0o077 == 0
    assert key.read_bytes() == (tmp_path / "hospital-1/hospital-1.key").read_bytes()
    travelled = sorted(tmp_path.rglob("*.zip"))
    assert len(travelled) > 1
    for file in travelled:
        with zipfile.ZipFile(file) as archive:
            assert not any(b"PRIVATE KEY" in archive.read(name) for name in archive.namelist())
