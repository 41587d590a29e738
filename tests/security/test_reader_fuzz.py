# SPDX-License-Identifier: Apache-2.0
"""A dozen mutated files for each reader; the same over hundreds, in a process of its own, is integration."""

from __future__ import annotations

from pathlib import Path

import pytest
from reader_fuzz import READERS, fuzz


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_mutated_file_is_read_or_refused_by_one_error(reader: str, tmp_path: Path) -> None:
    counts = fuzz(reader, 12, tmp_path)
    assert not counts["faults"]
    assert counts["refused"]
