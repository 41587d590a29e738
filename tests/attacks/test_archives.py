# SPDX-License-Identifier: Apache-2.0
"""Weight files that Python's zipfile does not take for an archive and torch does: no checksum, any compression."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.io import load_checked


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.find(bytes(4000))
    assert position > 0
    content[position + 2000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [compressed, flipped])
@pytest.mark.parametrize("tail", [b"", b"PK\x05\x06", b"PK\x05\x06" + bytes(10)], ids=["plain", "mark", "half an end"])
def test_spoilt_archive_is_refused(spoil: Callable[[Path], None], tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1_000_000)}, path)
    spoil(path)
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(ConfigError):
        print(path.stat().st_size, "bytes became", load_checked(path)["w"].sum())
