# SPDX-License-Identifier: Apache-2.0
"""The written record of a split: which file, of which subject, with which hash, is in which split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmonai.data.atomic import write_json
from fedmonai.data.kspace_file import damage_named, open_volume, read_slice
from fedmonai.data.volume_list import SECTIONS, read_data_list, resolve_inside
from fedmonai.errors import ConfigError

PathLike = str | os.PathLike[str]
MANIFEST_NAME = "manifest.json"


def write_manifest(
    dataset_dir: PathLike,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    path: PathLike | None = None,
    keys: Sequence[str] = ("kspace",),
    subject_wise: bool = True,
    **info: Any,
) -> Path:
    """Write a split as a MONAI data list with subject and hashes, so that ``data_list`` can point at it.

    Every entry gets ``sha256`` (of each file) and ``content`` (of the image data alone, which stays the same when a
    volume is stored under another name or subject). Nothing is written if two splits overlap.

    Args:
        dataset_dir: folder the paths of the entries are relative to.
        splits: ``train``, ``val``, ``test`` to entries with ``subject`` and a relative path under each of ``keys``;
            further fields are kept; hashes that are there already are not computed again.
        path: default ``<dataset_dir>/manifest.json``; written atomically.
        keys: the fields that name files: ``kspace``, or ``image`` and ``label``.
        subject_wise: False for a split within subjects (blocks of slices); said in the file, and only the content is
            then checked for overlap.
        info: further top-level fields, e.g. seed and site.

    Raises:
        ConfigError: an unknown split, an entry without subject, a missing file, an overlap of splits.
    """
    unknown = sorted(set(splits) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"splits: {', '.join(unknown)} unknown; allowed are {', '.join(SECTIONS)}.")
    content: dict[str, Any] = {"subject_wise": bool(subject_wise), "keys": list(keys), **info}
    for split, section in SECTIONS.items():
        content[section] = [_complete(Path(dataset_dir), entry, keys) for entry in splits.get(split, ())]
    check_overlap(content)
    return write_json(Path(path) if path else Path(dataset_dir) / MANIFEST_NAME, content)


def read_manifest(path: PathLike) -> dict[str, Any]:
    """Read a manifest (a file, or the folder that holds ``manifest.json``).

    Raises:
        ConfigError: no such file, invalid JSON, an entry without subject or hash.
    """
    path = Path(path)
    path = path / MANIFEST_NAME if path.is_dir() else path
    content = read_data_list(path)
    for section in SECTIONS.values():
        for number, entry in enumerate(content[section]):
            missing = [key for key in ("subject", "sha256", "content") if key not in entry]
            if missing:
                raise ConfigError(
                    f"{path}: entry {number} of '{section}' has no {missing[0]}; write_manifest makes them."
                )
    return content


def check_overlap(*manifests: Mapping[str, Any]) -> None:
    """Refuse splits that share a subject or image data.

    With several manifests (the sites of a federation, or the training and test sites of a protocol) an overlap between
    *different* splits of any two is found as well. Two blocks of slices of one subject (``subject_wise`` false, in
    the entry or for the whole manifest) may be in different splits, their image data may not be the same.

    Raises:
        ConfigError: naming the subject, both splits and both files.
    """
    subjects: dict[str, list[_Place]] = {}
    contents: dict[str, list[_Place]] = {}
    for number, manifest in enumerate(manifests):
        origin = f"{manifest.get('site') or f'manifest {number + 1}'}, " if len(manifests) > 1 else ""
        key = next(iter(manifest.get("keys", ["kspace"])))
        for split, section in SECTIONS.items():
            for entry in manifest.get(section, ()):
                where = f"'{split}' ({origin}{entry[key]})"
                whole = bool(entry.get("subject_wise", manifest.get("subject_wise", True)))
                subject = f"subject {entry['subject']}"
                _claim(subjects.setdefault(entry["subject"], []), _Place(split, where, whole), subject)
                _claim(
                    contents.setdefault(entry["content"], []), _Place(split, where, True), f"image data of {subject}"
                )


def verify_manifest(dataset_dir: PathLike, path: PathLike | None = None) -> list[str]:
    """Hash the files again; return one line per file that is missing or has changed (an empty list: all as written)."""
    manifest = read_manifest(path or dataset_dir)
    problems = []
    for section in SECTIONS.values():
        for entry in manifest[section]:
            for key, digest in entry["sha256"].items():
                try:
                    file = resolve_inside(Path(dataset_dir), entry[key], path or dataset_dir)
                except ConfigError as error:
                    problems.append(str(error))
                    continue
                if file_digest(file) != digest:
                    problems.append(f"{entry[key]} has changed since the manifest was written.")
    return problems


def file_digest(*paths: PathLike) -> str:
    """SHA-256 of one file, or of several in the given order, as hexadecimal text."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def kspace_digest(path: PathLike) -> str:
    """SHA-256 of the k-space values and shape of a volume file, whatever else the file holds."""
    with damage_named(path), open_volume(path) as file:
        shape = file["kspace"].shape
        digest = hashlib.sha256(repr(shape).encode())
        for index in range(shape[0]):
            digest.update(read_slice(file, "kspace", index).tobytes())
    return digest.hexdigest()


def _complete(root: Path, entry: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(entry.get("subject"), str) or not entry["subject"]:
        raise ConfigError(f"manifest: {dict(entry)} has no subject; every file needs one, to keep subjects together.")
    paths = {key: resolve_inside(root, entry.get(key), "manifest") for key in keys}
    out = dict(entry)
    out.setdefault("sha256", {key: file_digest(path) for key, path in paths.items()})
    out.setdefault("content", kspace_digest(paths["kspace"]) if "kspace" in paths else out["sha256"][keys[0]])
    return out


@dataclass(frozen=True)
class _Place:
    """Where a subject or its data were seen; ``whole`` is False for a block of slices."""

    split: str
    where: str
    whole: bool


def _claim(seen: list[_Place], place: _Place, what: str) -> None:
    for other in seen:
        if other.split != place.split and (other.whole or place.whole):
            raise ConfigError(
                f"overlap: {what} is in {other.where} and in {place.where}; move all of a subject into one split (or "
                "declare subject_wise: false if the split is by blocks of slices)."
            )
    seen.append(place)
