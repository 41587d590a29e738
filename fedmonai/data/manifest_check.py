# SPDX-License-Identifier: Apache-2.0
"""Whether the data of a site are still those that their manifest was written for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmonai.data.manifest import MANIFEST_NAME, verify_manifest
from fedmonai.data.volume_list import SECTIONS
from fedmonai.errors import ConfigError

__all__ = ["ManifestCheck", "check_manifests"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ManifestCheck:
    """What hashing the files of one manifest again gave; no problems: all are as they were written."""

    path: str
    files: int
    problems: list[str]


def check_manifests(
    dataset_dir: PathLike | Sequence[PathLike], data_list: PathLike | Sequence[PathLike] | None = None
) -> list[ManifestCheck]:
    """Verify the manifest of every folder: its ``data_list`` if that has hashes, else its ``manifest.json``.

    Args:
        dataset_dir: folder of one site, or several.
        data_list: JSON list, or one for each folder.

    Returns:
        One check for each manifest; none for folders without, and for lists without hashes.

    Raises:
        ConfigError: a manifest that cannot be read.
    """
    folders = [dataset_dir] if isinstance(dataset_dir, (str, os.PathLike)) else list(dataset_dir)
    lists: list[Any]
    if data_list is None or isinstance(data_list, (str, os.PathLike)):
        lists = [data_list] * len(folders)
    else:
        lists = list(data_list)
    found = []
    for folder, listed in zip(folders, lists, strict=True):
        path = next((p for p in (listed, Path(folder) / MANIFEST_NAME) if p is not None and _hashes(Path(p))), None)
        if path is not None:
            found.append(ManifestCheck(str(path), _hashes(Path(path)), verify_manifest(folder, path)))
    return found


def _hashes(path: Path) -> int:
    """How many hashes a list holds; 0 for no file, and for something else of the same name."""
    if not path.is_file():
        return 0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({str(error)[:120]}).") from error
    sections = [content.get(section) for section in SECTIONS.values()] if isinstance(content, dict) else []
    entries = [entry for section in sections if isinstance(section, list) for entry in section]
    hashes = [entry.get("sha256") for entry in entries if isinstance(entry, dict)]
    return sum(len(found) for found in hashes if isinstance(found, dict))
