# SPDX-License-Identifier: Apache-2.0
"""Lists of k-space volumes, from the folder layout or from a MONAI data list."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fedmonai.errors import ConfigError, first_line
from fedmonai.io import FileName, InputEntries, InputPath

#: Names of the splits as folders, and the sections they are called in a MONAI data list.
SECTIONS = {"train": "training", "val": "validation", "test": "test"}

PathLike = str | os.PathLike[str]


def kspace_volumes(
    dataset_dir: InputPath | Sequence[InputPath],
    split: str,
    sequence: FileName | None = None,
    data_list: InputPath | Sequence[InputPath] | None = None,
    sample_rate: float = 1.0,
    seed: int = 0,
) -> InputEntries:
    """List the HDF5 volumes of one split.

    Files come from ``<dataset_dir>/[<sequence>/]<train|val|test>/*.h5`` or, with ``data_list``, from a JSON file in
    MONAI's form ``{"training": [{"kspace": "relative/path.h5"}, ...], "validation": [...], "test": [...]}``; the
    manifests that :func:`fedmonai.data.provenance.write_manifest` writes are such lists.

    Args:
        dataset_dir: folder of one site, or several folders whose volumes are pooled (the upper bound of a federation).
        split: ``train``, ``val`` or ``test``.
        sequence: sub-folder such as ``T1``; None for a dataset without one. Entries of a list that name another
            ``sequence`` are left out.
        data_list: JSON list; with several folders, one list per folder.
        sample_rate: share of the volumes of *each* folder that is used, in (0, 1]; at least one is kept. 1 keeps all.
        seed: of the choice made by ``sample_rate``; the same seed always chooses the same volumes.

    Returns:
        One dict per volume, in file order: ``kspace`` (path) and ``volume`` (file stem; with several folders
        preceded by the folder's name, so that it stays unique).

    Raises:
        ConfigError: missing folder or list, empty split, two volumes of one name, a listed path that is missing or
            leads out of ``dataset_dir``, a ``sample_rate`` outside (0, 1].
    """
    if split not in SECTIONS:
        raise ConfigError(f"split: '{split}' is unknown; choose one of {', '.join(SECTIONS)}.")
    if not 0 < sample_rate <= 1:
        raise ConfigError(f"sample_rate: {sample_rate} is not in (0, 1]; it is the share of volumes to use.")
    folders = [dataset_dir] if isinstance(dataset_dir, (str, os.PathLike)) else list(dataset_dir)
    lists = [data_list] if data_list is None or isinstance(data_list, (str, os.PathLike)) else list(data_list)
    if data_list is None:
        lists = lists * len(folders)
    if not folders or len(lists) != len(folders):
        raise ConfigError(
            f"dataset_dir: {len(folders)} folders with {len(lists)} data lists; give one list per folder."
        )
    prefixes = _prefixes([Path(folder) for folder in folders])
    volumes: list[dict[str, str]] = []
    for folder, listed, prefix in zip(folders, lists, prefixes, strict=True):
        root = _existing_folder(Path(folder))
        paths = (
            _from_layout(root, split, sequence) if listed is None else _from_list(root, Path(listed), split, sequence)
        )
        chosen = _share(paths, sample_rate, seed)
        volumes += [{"kspace": str(path), "volume": prefix + path.stem} for path in chosen]
    _refuse_same_names(volumes)
    return volumes


def read_data_list(path: PathLike) -> dict[str, Any]:
    """Read a JSON data list in MONAI's form and check its structure (not its paths).

    Raises:
        ConfigError: missing file, invalid JSON, a section that is not a list of objects.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"data_list: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"data_list: {path} is not valid JSON ({first_line(error, 120)}).") from error
    if not isinstance(content, dict) or not any(section in content for section in SECTIONS.values()):
        raise ConfigError(
            f'data_list: {path} needs the form {{"training": [{{"kspace": "a.h5"}}], "validation": [], ...}}.'
        )
    for section in SECTIONS.values():
        entries = content.setdefault(section, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ConfigError(f"data_list: '{section}' of {path} is not a list of objects.")
    return content


def resolve_inside(root: Path, relative: Any, source: PathLike) -> Path:
    """The file ``root/relative``, refused when it is missing or does not lie inside ``root`` (``..``, absolute, link).

    Raises:
        ConfigError: naming the entry, the list it comes from and the folder.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise ConfigError(f"{source}: {relative!r} is not a relative file path.")
    base = root.resolve()
    path = (base / relative).resolve()
    escapes = Path(relative).is_absolute() or ".." in PurePosixPath(relative.replace("\\", "/")).parts
    if escapes or not path.is_relative_to(base):
        raise ConfigError(f"{source}: '{relative}' leads out of {root}; list files by paths relative to it.")
    if not path.is_file():
        raise ConfigError(f"{source}: '{relative}' is not a file in {root}.")
    return path


def _from_layout(root: Path, split: str, sequence: str | None) -> list[Path]:
    folder = root / sequence / split if sequence else root / split
    expected = f"{root}/{f'{sequence}/' if sequence else ''}<{'|'.join(SECTIONS)}>/*.h5"
    if not folder.is_dir():
        hint = sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob(f"{split}/")))
        more = f" There is {', '.join(hint)}: set 'sequence'." if hint and not sequence else ""
        raise ConfigError(f"dataset_dir: no folder {folder}; expected {expected}.{more}")
    paths = sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))
    if not paths:
        raise ConfigError(f"dataset_dir: split '{split}' is empty, {folder} holds no *.h5; expected {expected}.")
    return paths


def _from_list(root: Path, listed: Path, split: str, sequence: str | None) -> list[Path]:
    entries = read_data_list(listed)[SECTIONS[split]]
    if sequence:
        entries = [entry for entry in entries if entry.get("sequence", sequence) == sequence]
    if not entries:
        raise ConfigError(f"data_list: split '{split}' ('{SECTIONS[split]}') of {listed} is empty.")
    return [resolve_inside(root, entry.get("kspace"), listed) for entry in entries]


def _existing_folder(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigError(
            f"dataset_dir: {root} is not a folder; expected {root}/[<sequence>/]<{'|'.join(SECTIONS)}>/*.h5 "
            "(fedmonai prepare mri writes it)."
        )
    return root


def _share(paths: list[Path], sample_rate: float, seed: int) -> list[Path]:
    if sample_rate == 1:
        return paths
    count = max(1, round(len(paths) * sample_rate))
    kept = np.random.RandomState(seed).permutation(len(paths))[:count]
    return [paths[index] for index in sorted(kept)]


def _prefixes(folders: list[Path]) -> list[str]:
    """Distinct name parts for pooled folders: the last path component, numbered when two folders share it."""
    if len(folders) == 1:
        return [""]
    names = [folder.resolve().name for folder in folders]
    return [f"{name}_" if names.count(name) == 1 else f"{name}-{index}_" for index, name in enumerate(names)]


def _refuse_same_names(volumes: list[dict[str, str]]) -> None:
    seen: dict[str, str] = {}
    for volume in volumes:
        other = seen.get(volume["volume"])
        seen[volume["volume"]] = volume["kspace"]
        if other is not None:
            raise ConfigError(
                f"data_list: {other} and {volume['kspace']} share the name '{volume['volume']}'; rename one."
            )
