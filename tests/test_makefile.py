# SPDX-License-Identifier: Apache-2.0
"""The Makefile refuses the Python versions that pyproject.toml refuses, before anything is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def asked(version: tuple[int, int, int]) -> subprocess.CompletedProcess[str]:
    """What the check of the Makefile says under another version."""
    found = re.search(r"^IN_RANGE := import sys; (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    text = ".".join(map(str, version))
    code = f"import sys; sys.version_info, sys.version = {version}, '{text} (main)'; {found[1]}"
    return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("version", "good"), [((3, 9, 20), False), ((3, 10, 0), True), ((3, 13, 9), True), ((3, 14, 0), False)]
)
def test_both_ends_of_the_range(version: tuple[int, int, int], good: bool) -> None:
    done = asked(version)
    assert (done.returncode == 0) is good
    said = "Python 3.10 to 3.13 is needed; this is {}.{}.{}. Name another: make PYTHON=python3.12\n".format(*version)
    assert done.stderr == ("" if good else said)


def test_the_range_is_that_of_the_package() -> None:
    assert 'requires-python = ">=3.10,<3.14"' in (ROOT / "pyproject.toml").read_text()


def test_every_environment_is_made_after_the_check() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    made = [number for number, line in enumerate(lines) if "-m venv" in line]
    assert len(made) == 2
    assert all(lines[number - 1] == "\t@$(PYTHON) -c '$(IN_RANGE)'" for number in made)
