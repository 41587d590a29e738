# SPDX-License-Identifier: Apache-2.0
"""Weight files that Python's zipfile does not take for an archive and torch does: no checksum, any compression."""

from __future__ import annotations

import struct
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


def rewritten(path: Path, kind: int) -> tuple[bytes, bytes, int]:
    """The files of an archive, its directory and how many there are, with another compression."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    whole = path.read_bytes()
    return whole[:start], whole[start:-22], len(entries)


def test_archive_with_two_directories(tmp_path: Path) -> None:
    """Python takes the directory that ends where the end record begins, torch the one at the offset that it names."""
    path, other = tmp_path / "w.pt", tmp_path / "decoy" / "w.pt"
    other.parent.mkdir()
    torch.save({"w": torch.zeros(8_000_000)}, path)
    torch.save({"w": torch.zeros(1)}, other)
    files, directory, count = rewritten(path, zipfile.ZIP_DEFLATED)
    decoys, shown, number = rewritten(other, zipfile.ZIP_STORED)
    assert (count, len(directory)) == (number, len(shown))
    # python adds to each offset what lies between the named directory and the one that it reads
    shift = len(directory) + len(decoys)
    moved, position = bytearray(shown), 0
    while position < len(moved):
        name, extra, comment = struct.unpack_from("<HHH", moved, position + 28)
        (offset,) = struct.unpack_from("<I", moved, position + 42)
        struct.pack_into("<I", moved, position + 42, len(files) + len(directory) + offset - shift)
        position += 46 + name + extra + comment
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(files), 0)
    path.write_bytes(files + directory + decoys + moved + end)
    with pytest.raises(ConfigError):
        print(path.stat().st_size, "bytes became", load_checked(path)["w"].numel(), "numbers")
