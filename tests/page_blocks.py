# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of a page, for tests that run what it says."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(what stands behind the fence, content) of every block, in the order of the page."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))
