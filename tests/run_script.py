# SPDX-License-Identifier: Apache-2.0
"""A script of the project run in this process, with options as typed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest


def run_script(script: Path, monkeypatch: pytest.MonkeyPatch, *options: Any) -> Any:
    """What the script ends with: an exit status, or the message that it prints as an error."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code
