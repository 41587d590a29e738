# SPDX-License-Identifier: Apache-2.0
"""Search of a folder for volumes, which get pseudonymous names."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedmonai.data.convert.dicom import SliceHeader, is_dicom, read_slice_header
from fedmonai.data.convert.readers import raw_subject
from fedmonai.data.convert.volume import Source
from fedmonai.data.damage import InputError
from fedmonai.errors import ConfigError

_SIDECARS = {".json", ".txt", ".csv", ".tsv", ".md", ".bval", ".bvec", ".xml", ".log", ".pdf", ".html", ".yaml", ".yml"}
_KINDS = {".nii": "nifti", ".npy": "array", ".mat": "array", ".h5": "hdf5", ".hdf5": "hdf5"}
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


@dataclass
class Found:
    """Sources, inputs that cannot be used (label, reason), and files that are not images (side-car texts)."""

    sources: list[Source] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Naming:
    """How subjects and output files are called.

    Attributes:
        subject: ``auto`` (DICOM PatientID, else the study; HDF5 ``patient_id``; BIDS ``sub-...``; else the file),
            ``study``, ``folder``, ``file``, or a regular expression found in the relative path.
        salt: secret of the site that goes into the pseudonyms; without one, short ids can be found by trying.
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
        identity = self._identity(relative, stem, path, root, raw_subject(path) if kind == "hdf5" else None)
        subject = f"sub-{self.pseudonym(identity)}"
        name = re.sub(r"[^\w.+-]+", "_", stem)
        if self.hash_names:
            name = f"{subject}_{kind}-{self.pseudonym(relative, 8)}"
        return Source(kind, relative, (path,), subject, name)

    def of_series(self, headers: list[SliceHeader], root: Path) -> Source:
        """Subject and name of a DICOM series; nothing of its text goes into either."""
        uid, study, patient = headers[0].series, headers[0].study, headers[0].patient
        paths = [header.path for header in headers]
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        notes: tuple[str, ...] = ()
        if self.subject == "auto":
            usable = bool(re.search(r"[A-Za-z0-9]", patient))
            identity = patient if usable else study
            notes = () if usable else (f"PatientID {patient!r} identifies no subject: the study is taken",)
        elif self.subject == "study":
            identity = study
        else:
            identity = self._identity(_relative(paths[0], root), folder.name, paths[0], root, None)
        subject = f"sub-{self.pseudonym(identity)}"
        label = f"{_relative(folder, root)}, series ending in {uid[-8:].lstrip('.')} ({len(paths)} files)"
        return Source("dicom", label, tuple(paths), subject, f"{subject}_series-{self.pseudonym(uid, 8)}", notes)

    def _identity(self, relative: str, stem: str, path: Path, root: Path, stored: str | None) -> str:
        if self.subject in ("auto", "study"):
            bids = _BIDS.search(relative)
            return stored or (bids.group(1) if bids else stem)
        if self.subject == "file":
            return stem
        if self.subject == "folder":
            return _relative(path.parent, root)
        match = re.search(self.subject, relative)
        if match is None:
            raise InputError(f"--subject '{self.subject}' finds nothing in the path")
        return match.group(1) if match.groups() else match.group(0)


def find_sources(root: Path, naming: Naming) -> Found:
    """Search ``root`` (a folder, or one file) for volumes; order and names do not depend on the file system.

    Raises:
        ConfigError: nothing there, or a ``subject`` that is not a regular expression.
    """
    if not root.exists():
        raise ConfigError(f"input: {root} does not exist.")
    try:
        re.compile(naming.subject)
    except re.error as error:
        raise ConfigError(f"subject: '{naming.subject}' is not a regular expression ({error}).") from error
    found = Found()
    series: dict[str, list[SliceHeader]] = defaultdict(list)
    base = root if root.is_dir() else root.parent
    for path in _files(root):
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
    """Sort by name; where files in several folders share a name, the folder is put before it."""
    counts = Counter(source.name for source in sources)
    named = []
    for source in sources:
        if counts[source.name] > 1:
            folder = re.sub(r"[^\w.+-]+", "_", source.files[0].parent.name)
            source = replace(source, name=f"{folder}_{source.name}")
        named.append(source)
    again = [name for name, count in Counter(source.name for source in named).items() if count > 1]
    if again:
        raise ConfigError(f"input: several files would be called {again[0]}.h5; convert their folders one by one.")
    return sorted(named, key=lambda source: source.name)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else root.resolve().name
