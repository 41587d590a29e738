# SPDX-License-Identifier: Apache-2.0
"""The command ``fedmonai`` run in this process, with words as typed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fedmonai.__main__ import TABLE
from fedmonai.command_line import run_command_line


def run_command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> Any:
    """What the command ends with: an exit status, or the message that it prints as an error."""
    monkeypatch.setattr(sys, "argv", ["fedmonai", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command_line(TABLE)
    return ended.value.code
