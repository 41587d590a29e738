# SPDX-License-Identifier: Apache-2.0
"""The folder that is being filled: what is in it already, and the manifest of all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmonai.data.kspace_file import BLOCK, damage_named, open_volume
from fedmonai.data.manifest import MANIFEST_NAME, file_digest, kspace_digest, read_manifest, write_manifest
from fedmonai.data.volume_list import SECTIONS
from fedmonai.errors import ConfigError

SOURCE = "source_sha256"  # attribute: digest of the input files and the settings a volume was made from


@dataclass(frozen=True)
class Written:
    """A volume in the output folder: path relative to it, and what its attributes say."""

    file: str
    split: str
    sequence: str | None
    subject: str
    source: str
    block: list[int] | None
    slices: int


def read_layout(root: Path) -> list[Written]:
    """List the volumes in ``<root>/[<sequence>/]<split>/*.h5`` that this package wrote or could have written.

    Raises:
        ConfigError: an unreadable volume.
    """
    if not root.is_dir():
        return []
    found = []
    folders = [(None, root), *((path.name, path) for path in sorted(root.iterdir()) if path.is_dir())]
    for sequence, base in folders:
        if sequence in SECTIONS:
            continue
        for split in SECTIONS:
            for path in sorted((base / split).glob("*.h5")):
                if not path.name.startswith("."):
                    found.append(_read(path, root, split, sequence))
    return found


def update_manifest(root: Path, settings: dict[str, Any]) -> Path:
    """Write ``<root>/manifest.json`` for everything that is in the layout; known hashes are kept for unchanged files.

    Raises:
        ConfigError: two splits overlap.
    """
    known: dict[str, dict[str, Any]] = {}
    if (root / MANIFEST_NAME).is_file():
        old = read_manifest(root)
        known = {entry["kspace"]: entry for section in SECTIONS.values() for entry in old[section]}
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SECTIONS}
    volumes = read_layout(root)
    for volume in volumes:
        entry: dict[str, Any] = {"kspace": volume.file, "subject": volume.subject, "slices": volume.slices}
        entry["subject_wise"] = volume.block is None
        if volume.sequence:
            entry["sequence"] = volume.sequence
        if volume.block is not None:
            entry["slice_block"] = volume.block
        before = known.get(volume.file, {})
        path = root / volume.file
        status = path.stat()
        entry |= {"size": status.st_size, "modified_ns": status.st_mtime_ns}
        if all(before.get(key) == entry[key] for key in ("size", "modified_ns")):
            entry |= {"sha256": before["sha256"], "content": before["content"]}
        else:
            entry |= {"sha256": {"kspace": file_digest(path)}, "content": kspace_digest(path)}
        splits[volume.split].append(entry)
    subject_wise = all(volume.block is None for volume in volumes)
    return write_manifest(root, splits, subject_wise=subject_wise, settings=settings)


def _read(path: Path, root: Path, split: str, sequence: str | None) -> Written:
    with damage_named(path), open_volume(path) as file:
        if "kspace" not in file:
            raise ConfigError(f"output: {path} has no 'kspace'; take it out of the folder.")
        block = file.attrs.get(BLOCK)
        return Written(
            file=path.relative_to(root).as_posix(),
            split=split,
            sequence=sequence,
            subject=str(file.attrs.get("patient_id", path.stem)),
            source=str(file.attrs.get(SOURCE, "")),
            block=None if block is None else [int(index) for index in block],
            slices=int(file["kspace"].shape[0]),
        )
