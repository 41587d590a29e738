# SPDX-License-Identifier: Apache-2.0
"""Modules that lie in the folder of a bundle, which somebody reviews by standing in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attack_kit import fresh

from fedmonai import __file__ as package

ROOT = Path(package).parents[1]
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
#: what is imported on the way to a command: Python's own, ours, and those of others
MODULES = (
    "runpy.py",
    "json/__init__.py",
    "fire.py",
    "torchio.py",
    "yaml.py",
    "fedmonai/__init__.py",
    "sitecustomize.py",
)


def program(name: str, folder: Path) -> Path:
    """The program that pip installs for an entry of ``project.scripts``."""
    line = next(line for line in PROJECT.read_text().splitlines() if line.startswith(f"{name} = "))
    module, function = line.split('"')[1].split(":")
    file = folder / "bin" / name
    file.parent.mkdir()
    file.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return file


@pytest.mark.parametrize("how", ["program", "python -m"])
def test_a_command_imports_nothing_from_the_folder_it_is_started_in(how: str, tmp_path: Path) -> None:
    bundle, marker = fresh(tmp_path), tmp_path / "marker"
    for name in MODULES:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
    words = ["-m", "fedmonai"] if how == "python -m" else [str(program("fedmonai", tmp_path))]
    ended = subprocess.run(
        [sys.executable, *words, "lint", "."],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if how == "python -m":
        assert marker.exists(), "python -m has become safe; say so in SECURITY.md"
        return
    assert not marker.exists(), ended.stderr[-2000:]
    assert "code" in ended.stdout and ended.returncode == 1, ended.stdout  # the modules are findings
