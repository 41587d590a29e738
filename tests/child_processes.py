# SPDX-License-Identifier: Apache-2.0
"""Processes beside the one of the tests: a fork that does some work, and OpenSSH's ``ssh-keygen``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def in_child(work: Callable[[], Any]) -> int:
    """Run ``work`` in a process of its own; its wait status."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the parent's threads are not there any more
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def keygen(*arguments: str | Path) -> None:
    """Run ``ssh-keygen``; without it the test is skipped."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", *map(str, arguments)], check=True, capture_output=True)
