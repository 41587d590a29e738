# SPDX-License-Identifier: Apache-2.0
"""Provenance of data: manifests of prepared folders, fingerprints of volumes, overlap of splits and sites."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from tqdm import tqdm

from fedmonai.data.cases.read import read_case_file
from fedmonai.data.kspace.list import SECTIONS, read_data_list, resolve_inside
from fedmonai.data.kspace.read import BLOCK, open_volume, own_dataset, read_slice, subject_of
from fedmonai.data.pictures import read_picture
from fedmonai.data.weak.read import IMAGE_KEY, read_dataset
from fedmonai.errors import ConfigError, first_line
from fedmonai.io import write_json

__all__ = [
    "ManifestCheck",
    "VolumeFingerprint",
    "case_fingerprint",
    "changed_files",
    "check_manifests",
    "compare_splits",
    "kspace_fingerprint",
    "weak_fingerprint",
]


@dataclass(frozen=True)
class VolumeFingerprint:
    """Fingerprint of one volume; datasets list those of their volumes with ``volume_fingerprints()``.

    Attributes:
        volume: its name in the dataset.
        content: SHA-256 of the image data alone, the same under every file name, header and compression.
        subject: the subject it is of, None where the file names none.
        whole: False for a block of a volume's slices; two blocks of one subject may be in different splits.
        path: its file.
    """

    volume: str
    content: str
    subject: str | None = None
    whole: bool = True
    path: str = ""


def kspace_fingerprint(volume: Mapping[str, Any]) -> VolumeFingerprint:
    """Fingerprint of an entry of :func:`~fedmonai.data.kspace.list.kspace_volumes`; subject: attribute ``patient_id``.

    Pooled folders number their subjects independently, so the folder's part of the name is part of the subject.

    Raises:
        ConfigError: a file that cannot be read.
    """
    path, name = volume["kspace"], volume["volume"]
    with open_volume(path) as file:
        subject, whole = subject_of(file), BLOCK not in file.attrs
    folder = name.removesuffix(Path(path).stem)
    return VolumeFingerprint(name, kspace_digest(path), None if subject is None else folder + subject, whole, path)


def case_fingerprint(case: Mapping[str, str]) -> VolumeFingerprint:
    """Fingerprint of an entry of :func:`~fedmonai.data.cases.list.prostate_cases`: voxels, on the grid of the file.

    Raises:
        ConfigError: a file that cannot be read.
    """
    path = case["image"]
    return VolumeFingerprint(case["volume"], _digest(read_case_file(path, orientation=None).values), path=path)


def weak_fingerprint(entry: Mapping[str, str]) -> VolumeFingerprint:
    """Fingerprint of an entry of :func:`~fedmonai.data.weak.list.weak_files`: the pixels of the image, for any labels.

    Raises:
        ConfigError: a file that cannot be read.
    """
    path, name = entry["image"], entry["volume"]
    if not path.lower().endswith(".h5"):
        return VolumeFingerprint(name, _digest(read_picture(path)), path=path)
    with open_volume(path) as file:
        image = read_dataset(file, IMAGE_KEY)
        return VolumeFingerprint(name, _digest(image[()].reshape(-1, *image.shape[-2:])), subject_of(file), path=path)


def _digest(values: np.ndarray) -> str:
    """SHA-256 of shape and values, for any stored type."""
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


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
        subject_wise: False for a split within subjects (blocks of slices); recorded in the file, and only the content
            is then checked for overlap.
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
    written = Path(path) if path else Path(dataset_dir) / MANIFEST_NAME
    write_json(content, written)
    return written


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
    seen = _SplitOverlap("; move all of a subject into one split, or declare subject_wise: false for a split by blocks")
    for number, manifest in enumerate(manifests):
        origin = f"{manifest.get('site') or f'manifest {number + 1}'}, " if len(manifests) > 1 else ""
        key = next(iter(manifest.get("keys", ["kspace"])))
        for split, section in SECTIONS.items():
            for entry in manifest.get(section, ()):
                where = f"{origin}{entry[key]}"
                whole = bool(entry.get("subject_wise", manifest.get("subject_wise", True)))
                seen.add("subject", entry["subject"], split, where, whole)
                seen.add("content", entry["content"], split, where)


class _SplitOverlap:
    """Names, image data and subjects seen so far; one that comes up in a second split is refused.

    Args:
        remedy: end of the message.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self.seen: dict[tuple[str, str], list[tuple[str, str, bool]]] = defaultdict(list)

    def add(self, kind: str, value: str, split: str, where: str, whole: bool = True) -> None:
        """Note that ``where`` in ``split`` has this name, content or subject; two blocks of one may be in two splits.

        Raises:
            ConfigError: it was seen in another split.
        """
        for other, its_place, its_whole in self.seen[kind, value]:
            if other != split and (whole or its_whole):
                what = {"name": "have the same name", "content": "hold the same image data"}
                shared = what.get(kind, f"are of one subject ({value})")
                raise ConfigError(f"overlap: '{its_place}' in {other} and '{where}' in {split} {shared}{self.remedy}.")
        self.seen[kind, value].append((split, where, whole))


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
    """SHA-256 of the k-space values and shape of a volume file, of nothing else in it."""
    with open_volume(path) as file:
        kspace = own_dataset(file, "kspace")
        if kspace is None:
            raise ConfigError(f"{path} has no 'kspace'; restore it or take it out of the data list.")
        shape = kspace.shape
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
class ManifestCheck:
    """Result of hashing the files of one manifest again; without problems all are as they were written."""

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
    folders = _as_list(dataset_dir)
    lists = _as_list(data_list)
    if len(lists) == 1:
        lists *= len(folders)
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
        raise ConfigError(f"{path} cannot be read as JSON ({first_line(error, 120)}).") from error
    sections = [content.get(section) for section in SECTIONS.values()] if isinstance(content, dict) else []
    entries = [entry for section in sections if isinstance(section, list) for entry in section]
    hashes = [entry.get("sha256") for entry in entries if isinstance(entry, dict)]
    return sum(len(found) for found in hashes if isinstance(found, dict))


SHOWN = 3  # changed files that a message names


@dataclass(frozen=True)
class SplitComparison:
    """Result of a comparison of splits: one line, and whether it is a warning."""

    found: str
    warning: bool = False


def compare_splits(datasets: Mapping[str, Any]) -> SplitComparison:
    """Compare the names, image data and subjects of the volumes of all splits; report what was compared.

    A dataset lists its volumes with ``volume_fingerprints()`` (``volume``, ``content``, ``subject``, ``whole`` of each,
    see :class:`VolumeFingerprint`); without that method the names in its list ``data`` are compared. Every file is read
    once.

    Args:
        datasets: split to dataset.

    Returns:
        What was compared, empty where no dataset lists anything; a warning names the subjects of which blocks of slices
        lie in two splits, as a split by slices leaves them, or says that a site validates on the same files it trains
        on.

    Raises:
        ConfigError: two splits share a name, image data or a subject; the message names both volumes.
    """
    seen = _SplitOverlap("; move all of a subject into one split")
    found = {
        split: list(
            tqdm(dataset.volume_fingerprints(), desc=f"compare {split}", unit="volume", leave=False, disable=None)
        )
        for split, dataset in datasets.items()
        if hasattr(dataset, "volume_fingerprints")
    }
    paths = {split: sorted(volume.path for volume in volumes) for split, volumes in found.items()}
    reused = paths.get("val") == paths.get("train") and all(paths.get("val", ("",)))
    compared = {split: dataset for split, dataset in datasets.items() if not (reused and split == "val")}
    for split, dataset in compared.items():
        for name in _names(dataset):
            seen.add("name", name, split, name)
    count = named = 0
    places: dict[str, list[str]] = defaultdict(list)
    for split in compared:
        for volume in found.get(split, ()):
            count, named = count + 1, named + (volume.subject is not None)
            seen.add("content", volume.content, split, volume.volume)
            if volume.subject is not None:
                seen.add("subject", volume.subject, split, volume.volume, volume.whole)
                places[volume.subject] += [] if split in places[volume.subject] else [split]
    shared = {subject: splits for subject, splits in places.items() if len(splits) > 1}
    if reused:
        said = "the validation split is the training split, file by file: the best round is chosen on training data"
        return SplitComparison(f"{said}; none of it is in the test split", True)
    if shared:
        listed = "; ".join(f"{subject} in {' and '.join(splits)}" for subject, splits in list(shared.items())[:SHOWN])
        more = f" ({len(shared)} subjects in all)" if len(shared) > SHOWN else ""
        return SplitComparison(
            f"blocks of slices of one subject in two splits: {listed}{more}; results are not those of new subjects",
            True,
        )
    if not count:
        return SplitComparison("no name of a volume in two splits" if seen.seen else "")
    said = f"no subject in two splits ({named} of {count} volumes name theirs)"
    return SplitComparison(f"no image data in two splits; {said if named else 'no volume names its subject'}")


def changed_files(parser: ConfigParser) -> str:
    """Hash again the files of a site's manifest (in its folder, or its ``data_list``).

    Args:
        parser: the site's config.

    Returns:
        One line, or nothing where there is no manifest.

    Raises:
        ConfigError: files that have changed since or are missing; a manifest that cannot be read.
    """
    if "dataset_dir" not in parser:
        return ""
    folders, lists = parser.get_parsed_content("dataset_dir"), None
    if "data_list" in parser:
        lists = parser.get_parsed_content("data_list")
    elif "folder" in parser:  # a site's part of the folder of a federation
        folders = [
            Path(root) / part for root in _as_list(folders) for part in _as_list(parser.get_parsed_content("folder"))
        ]
    checks = check_manifests(folders, lists)
    problems = [problem for check in checks for problem in check.problems]
    if problems:
        more = f" ({len(problems)} files in all)" if len(problems) > SHOWN else ""
        raise ConfigError(" ".join(problems[:SHOWN]) + more)
    return ", ".join(f"{check.files} files as in {check.path}" for check in checks)


def _names(dataset: Any) -> list[str]:
    entries = getattr(dataset, "data", None)
    entries = entries if isinstance(entries, (list, tuple)) else []
    return [entry["volume"] for entry in entries if isinstance(entry, Mapping) and "volume" in entry]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
