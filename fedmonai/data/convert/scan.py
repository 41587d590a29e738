# SPDX-License-Identifier: Apache-2.0
"""Search of a folder for volumes, which get pseudonymous names."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from fedmonai.data.convert.dicom import SliceHeader, is_dicom, read_slice_header
from fedmonai.data.convert.file_names import contrast_of, subject_part
from fedmonai.data.convert.readers import raw_facts
from fedmonai.data.convert.volume import Source
from fedmonai.data.damage import InputError
from fedmonai.errors import ConfigError

_SIDECARS = {".json", ".txt", ".csv", ".tsv", ".md", ".bval", ".bvec", ".xml", ".log", ".pdf", ".html", ".yaml", ".yml"}
_KINDS = {".nii": "nifti", ".npy": "array", ".mat": "array", ".h5": "hdf5", ".hdf5": "hdf5"}
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


@dataclass
class Found:
    """Sources, inputs that cannot be used (label, reason), and files that are not images (side-car texts).

    ``left_out`` counts the files that patterns of the user leave out; ``root`` is the folder that was searched.
    """

    sources: list[Source] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    left_out: int = 0
    root: Path = Path()


@dataclass(frozen=True)
class Naming:
    """Names of subjects and output files.

    Attributes:
        subject: ``auto`` (DICOM PatientID, else the study; HDF5 ``patient_id``; BIDS ``sub-...``; the file's name
            without its contrast; the folder where the name holds nothing else), ``study``, ``folder``, ``file``, or a
            regular expression found in the relative path.
        salt: secret of the site that goes into the pseudonyms; without one, short ids can be found by trial.
        hash_names: name files by pseudonym too, for file names that identify a person (DICOM always is).

    Example:
        >>> Naming(salt="of site A").pseudonym("patient 7") == Naming(salt="of site B").pseudonym("patient 7")
        False
    """

    subject: str = "auto"
    salt: str = ""
    hash_names: bool = False

    def pseudonym(self, identity: str, length: int = 12) -> str:
        """A keyed SHA-256 of an id: the same id gives the same pseudonym wherever the salt is the same."""
        return hmac.new(self.salt.encode(), identity.encode(), hashlib.sha256).hexdigest()[:length]

    def of_file(self, path: Path, root: Path, kind: str) -> Source:
        """Subject and name of a file that is a whole volume."""
        relative = _relative(path, root)
        stem = re.sub(r"\.(nii\.gz|[^.]+)$", "", path.name)
        stored, acquisition = raw_facts(path) if kind == "hdf5" else (None, None)
        identity, rule = self._identity(relative, stem, path, root, stored)
        subject = f"sub-{self.pseudonym(identity)}"
        name = re.sub(r"[^\w.+-]+", "_", stem)
        if self.hash_names:
            name = f"{subject}_{kind}-{self.pseudonym(relative, 8)}"
        contrast = contrast_of(acquisition or "") or contrast_of(str(Path(relative).with_name(stem)))
        return Source(kind, relative, (path,), subject, name, (), rule, identity, contrast)

    def of_series(self, headers: list[SliceHeader], root: Path) -> Source:
        """Subject and name of a DICOM series; no text of its header goes into either."""
        uid, study, patient = headers[0].series, headers[0].study, headers[0].patient
        paths = [header.path for header in headers]
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        notes: tuple[str, ...] = ()
        if self.subject == "auto" and re.search(r"[A-Za-z0-9]", patient):
            identity, rule = patient, "DICOM PatientID"
        elif self.subject in ("auto", "study"):
            identity, rule = study, "DICOM study"
            if self.subject == "auto":
                notes = (f"PatientID {patient!r} identifies no subject: the study is taken",)
        else:
            identity, rule = self._identity(_relative(paths[0], root), folder.name, paths[0], root, None)
        subject = f"sub-{self.pseudonym(identity)}"
        label = f"{_relative(folder, root)}, series ending in {uid[-8:].lstrip('.')} ({len(paths)} files)"
        name = f"{subject}_series-{self.pseudonym(uid, 8)}"
        contrast = contrast_of(headers[0].description.replace("/", "_")) or contrast_of(_relative(folder, root))
        return Source("dicom", label, tuple(paths), subject, name, notes, rule, identity, contrast)

    def _identity(self, relative: str, stem: str, path: Path, root: Path, stored: str | None) -> tuple[str, str]:
        """What identifies the subject, and the rule that found it."""
        if self.subject in ("auto", "study"):
            bids, part = _BIDS.search(relative), subject_part(stem)
            if stored:
                return stored, "patient_id in the file"
            if bids:
                return bids.group(1), "BIDS entity sub-"
            if part:
                return part, "file name" if part == stem else "file name without its contrast"
            return _relative(path.parent, root), "folder, since the file name is a contrast alone"
        if self.subject == "file":
            return stem, "--subject file"
        if self.subject == "folder":
            return _relative(path.parent, root), "--subject folder"
        match = re.search(self.subject, relative)
        if match is None:
            raise InputError(f"--subject '{self.subject}' finds nothing in the path")
        return match.group(1) if match.groups() else match.group(0), f"--subject '{self.subject}'"


def find_sources(root: Path, naming: Naming, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Found:
    """Search ``root`` (a folder, or one file) for volumes; order and names do not depend on the file system.

    Args:
        root: folder, searched with its sub-folders, or one file.
        naming: how subjects and outputs are named.
        include: only files whose name or path in the folder matches a pattern (``*_t1.nii.gz``); empty = all.
        exclude: no files that match one of these patterns.

    Raises:
        ConfigError: nothing there, a ``subject`` that is not a regular expression, a pattern that no file matches.
    """
    if not root.exists():
        raise ConfigError(f"input: {root} does not exist.")
    try:
        re.compile(naming.subject)
    except re.error as error:
        raise ConfigError(f"subject: '{naming.subject}' is not a regular expression ({error}).") from error
    found = Found(root=root)
    series: dict[str, list[SliceHeader]] = defaultdict(list)
    base = root if root.is_dir() else root.parent
    paths = _chosen(_files(root), base, include, exclude)
    found.left_out = len(_files(root)) - len(paths)
    for path in paths:
        label = _relative(path, base)
        try:
            kind = _kind(path)
            if kind == "ignored":
                found.ignored.append(label)
            elif kind == "dicom":
                header = read_slice_header(path)
                series[header.series].append(header)
            else:
                found.sources.append(naming.of_file(path, base, kind))
        except InputError as error:
            found.failed.append((label, str(error)))
    for headers in series.values():
        try:
            found.sources.append(naming.of_series(headers, base))
        except InputError as error:
            found.failed.append((_relative(headers[0].path, base), str(error)))
    found.sources = _unique(found.sources)
    return found


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    paths = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _chosen(paths: list[Path], base: Path, include: Sequence[str], exclude: Sequence[str]) -> list[Path]:
    """The paths that match a pattern of ``include``, if there are any, and none of ``exclude``."""

    def of(pattern: str, path: Path) -> bool:
        return fnmatch(path.name, pattern) or fnmatch(_relative(path, base), pattern)

    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(of(pattern, path) for path in paths):
                raise ConfigError(
                    f"{option}: no file in {base} is called '{pattern}'; a pattern is such as '*_t1.nii.gz'."
                )
    taken = [path for path in paths if not include or any(of(pattern, path) for pattern in include)]
    return [path for path in taken if not any(of(pattern, path) for pattern in exclude)]


def _kind(path: Path) -> str:
    suffix = ".nii" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
    if suffix in _KINDS:
        return _KINDS[suffix]
    if suffix in _SIDECARS or path.name.upper() in ("DICOMDIR", "LICENSE", "README"):
        return "ignored"
    try:
        if suffix in (".dcm", ".ima") or is_dicom(path):
            return "dicom"
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    raise InputError("unknown kind of file; expected DICOM, .nii, .nii.gz, .npy, .mat, .h5 or .hdf5")


def _unique(sources: list[Source]) -> list[Source]:
    """Sort by name; where files in several folders share a name, their folders are put before it, as many as needed."""
    depth = 0
    while again := {name for name, count in Counter(source.name for source in sources).items() if count > 1}:
        depth += 1
        if depth > max(len(Path(source.label).parts) for source in sources):
            name = min(again)
            raise ConfigError(f"input: several files would be called {name}.h5; convert their folders one by one.")
        sources = [_with_folder(source, depth) if source.name in again else source for source in sources]
    return sorted(sources, key=lambda source: source.name)


def _with_folder(source: Source, depth: int) -> Source:
    folders = Path(source.label).parts[:-1][-depth:]
    if len(folders) < depth:
        return source
    folder = re.sub(r"[^\w.+-]+", "_", folders[0])
    return replace(source, name=f"{folder}_{source.name}")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else root.resolve().name
