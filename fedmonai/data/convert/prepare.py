# SPDX-License-Identifier: Apache-2.0
"""Conversion of a folder of images into a prepared dataset, with the checks before it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedmonai.data.convert.describe import describe, sampling_note, size_note, subject_note
from fedmonai.data.convert.file_names import contrast_of, is_label_name, shared_beginnings
from fedmonai.data.convert.plan import SOURCE, Part, SplitPlan, Written, read_layout, update_manifest
from fedmonai.data.convert.readers import open_source
from fedmonai.data.convert.scan import Found, Naming, find_sources
from fedmonai.data.convert.volume import Source, Volume, label_values
from fedmonai.data.convert.writer import Summary, write_volume
from fedmonai.data.damage import InputError, damage_named
from fedmonai.data.kspace.read import BLOCK
from fedmonai.data.provenance import file_digest
from fedmonai.errors import ConfigError

_AXES = ("slice", "coil", "row", "column")
BY_CONTRAST = "auto"  # as sequence: every contrast in its own folder


def prepare_mri(
    input: str,
    output: str | None = None,
    sequence: str | None = None,
    split: str | Sequence[float] = "0.7,0.15,0.15",
    pad: int = 256,
    max_size: int = 0,
    slice_range: Sequence[int] | str | None = None,
    axis: int = 2,
    domain: str = "image",
    axes: str | Sequence[str] | None = None,
    key: str | None = None,
    frame: int | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    subject: str = "auto",
    salt: str = "",
    hash_names: bool = False,
    seed: int = 0,
    resume: bool = False,
    check: bool = False,
) -> Summary:
    """Convert DICOM series, NIfTI, .npy, .mat or fastMRI HDF5 to <output>/[<sequence>/]<train|val|test>/*.h5.

    Images get a zero imaginary part (if real) and a centered orthonormal 2-D FFT; their magnitude is the target.
    k-space (HDF5, or arrays with --domain kspace) is kept as it is; without a target it gets one only if it is fully
    sampled, otherwise a mask of its empty columns. Magnitude images simulate k-space; they are not raw scanner data.
    Label maps (volumes of few whole values) are not converted: those named as such (..._seg) are left out, others fail.

    Args:
        input: folder (searched with its sub-folders) or one file.
        output: dataset folder; also gets manifest.json, a data list with subjects and hashes. Not needed by --check.
        sequence: sub-folder, such as T1; inputs whose names or headers say another contrast are then left out. auto
            gives every contrast its own sub-folder.
        split: fractions of the subjects (train,val,test); or train, val or test for everything; or slices:38,6,10 (or
            shares) to cut every volume into blocks of slices, which is not subject-wise and meant for a single volume.
        pad: images with fewer rows or columns are zero-padded to this around the center; larger ones keep their size.
        max_size: images with a longer side lose resolution (k-space crop), not field of view; 0 keeps every size.
        slice_range: first,last: only these slices, first included, last not.
        axis: NIfTI voxel axis that counts the slices, 0 to 2.
        domain: of .npy and .mat arrays: image or kspace.
        axes: their axes, such as coil,row,column; default: slices first (.npy) or last (.mat); k-space needs it.
        key: variable of .mat files.
        frame: which volume of 4-D NIfTI files (over time, or of echoes), from 0.
        include: only files whose name or path in the folder matches one of these patterns, *_t1.nii.gz,*_t2.nii.gz.
        exclude: no files that match one of these patterns.
        subject: where the subject comes from: auto (DICOM PatientID, patient_id of HDF5 files, BIDS sub-..., the file's
            name without its contrast, the folder), study, folder, file, or a regular expression for the path.
        salt: secret of this site that goes into the pseudonyms of subjects.
        hash_names: pseudonyms as names of all files, if input file names identify people (DICOM always is).
        seed: of the split.
        resume: keep volumes that were made from the same input with the same settings; without it an existing file
            is an error.
        check: report shapes, spacing, intensities, gaps, duplicates and the planned split; write nothing.

    Returns:
        The summary; its ``exit_code`` is 1 if an input was unknown or damaged, or if there was none.

    Raises:
        ConfigError: a wrong option, an existing output, an overlap of splits, an output that cannot be written, names
            that leave it open to which subject a file belongs.
    """
    conversion = _Conversion(
        root=None if output is None else Path(output),
        sequence=None if sequence is None else str(sequence),
        plan=SplitPlan.parse(split),
        pad=_at_least(pad, 0, "pad"),
        max_size=_at_least(max_size, 0, "max_size"),
        slice_range=_range(slice_range),
        axis=_at_least(axis, 0, "axis"),
        domain=domain,
        axes=_axes(axes),
        key=None if key is None else str(key),
        frame=None if frame is None else _at_least(frame, 0, "frame"),
        seed=seed,
        resume=resume,
        check=check,
    )
    found = find_sources(
        Path(input), Naming(str(subject), str(salt), hash_names), _patterns(include), _patterns(exclude)
    )
    return conversion.run(found)


@dataclass
class _Conversion:
    """State of one run: its settings and the volumes so far."""

    root: Path | None
    sequence: str | None
    plan: SplitPlan
    pad: int
    max_size: int
    slice_range: tuple[int, int] | None
    axis: int
    domain: str
    axes: tuple[str, ...] | None
    key: str | None
    frame: int | None
    seed: int
    resume: bool
    check: bool
    summary: Summary = field(default_factory=Summary)
    seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.check:
            _ = self._root
        if self.axis > 2:
            raise ConfigError(f"axis: {self.axis} is not a voxel axis of a 3-D image; choose 0, 1 or 2.")
        if self.domain not in ("image", "kspace"):
            raise ConfigError(f"domain: '{self.domain}' is unknown; choose image or kspace.")
        if self.sequence is not None and (not self.sequence.strip(".") or set(self.sequence) & set("/\\")):
            raise ConfigError(f"sequence: '{self.sequence}' cannot be a folder name; use one such as T1.")

    def run(self, found: Found) -> Summary:
        self.summary.ignored = found.ignored
        self.summary.left_out = found.left_out
        for label, reason in found.failed:
            self.summary.add("failed", label, reason)
        sources = self._of_sequence([source for source in found.sources if not self._left_out_as_label(source)])
        if sources:
            self.summary.found = subject_note(sources)
        earlier = [] if self.root is None else read_layout(self.root)
        assigned = self._assign(sources, earlier)
        if not self.check:
            self._refuse_existing(sources, {Path(volume.file) for volume in earlier})
        known = {volume.file: volume for volume in earlier}
        for source in tqdm(sources, desc="check" if self.check else "prepare", unit="volume", disable=None):
            try:
                self._one(source, assigned, known)
            except InputError as error:
                self.summary.add("failed", source.label, str(error), source.notes)
        self._finish()
        if not self.summary.outcomes:
            self.summary.problems.append(f"input: no DICOM, NIfTI, .npy, .mat or HDF5 file in {found.root}.")
        return self.summary

    def _open(self, source: Source) -> AbstractContextManager[Volume]:
        return open_source(source, self.axis, self.domain, self.axes, self.key, self.frame)

    def _left_out_as_label(self, source: Source) -> bool:
        """Leave out a label map that is named as one; an image that is named as a label map is an error."""
        if source.kind == "dicom" or not is_label_name(source.files[0].name):
            return False
        try:
            with self._open(source) as volume:
                values = label_values(volume)
        except InputError as error:
            self.summary.add("failed", source.label, str(error), source.notes)
            return True
        if values is None:
            reason = "is called a label map and holds gray levels of an image; rename it, or leave it out (--exclude)"
            self.summary.add("failed", source.label, reason)
        else:
            self.summary.add("skipped", source.label, f"a label map by its name and its values {_few(values)}")
        return True

    def _of_sequence(self, sources: list[Source]) -> list[Source]:
        """Leave out volumes of another contrast than that of ``sequence``; warn of mixed contrasts."""
        wanted = contrast_of(self.sequence or "")
        taken = []
        for source in sources:
            if self.sequence == BY_CONTRAST and source.contrast is None:
                reason = "neither name nor header says its contrast; convert it alone, with --sequence T1 (or T2, ...)"
                self.summary.add("failed", source.label, reason)
            elif wanted is not None and source.contrast not in (None, wanted):
                self.summary.add("skipped", source.label, f"its name or header says {source.contrast}, not {wanted}")
            else:
                taken.append(source)
        contrasts = Counter(source.contrast for source in taken if source.contrast is not None)
        if self.sequence != BY_CONTRAST and len(contrasts) > 1:
            counted = ", ".join(f"{count} {contrast}" for contrast, count in sorted(contrasts.items()))
            self.summary.hints.append(
                f"warning: several contrasts in one folder ({counted}); --sequence {next(iter(contrasts))} takes one, "
                f"--sequence {BY_CONTRAST} gives each its own sub-folder."
            )
        return taken

    def _assign(self, sources: Sequence[Source], earlier: Sequence[Written]) -> dict[str, str] | None:
        """Map subjects to splits; a check reports an impossible split and continues."""
        try:
            if self.plan.split_fractions is not None:
                _refuse_unclear_subjects(sources)
            return self.plan.assign(sources, self.seed, earlier)
        except ConfigError as error:
            if not self.check:
                raise
            self.summary.problems.append(str(error))
            return None

    def _one(self, source: Source, assigned: dict[str, str] | None, known: dict[str, Written]) -> None:
        """Check or convert one source; every output of it is written, or none."""
        with damage_named("cannot be read"):
            bytes_digest = file_digest(*source.files)
        if bytes_digest in self.seen:
            self.summary.add("skipped", source.label, f"the same data as {self.seen[bytes_digest]}")
            return
        self.seen[bytes_digest] = source.label
        digest = hashlib.sha256(f"{bytes_digest} {self._settings()}".encode()).hexdigest()
        with self._open(source) as volume:
            if (values := label_values(volume)) is not None:
                raise InputError(
                    f"holds nothing but the whole values {_few(values)}: a label map, no image; leave it out with "
                    f"--exclude '{_pattern_of(source)}'"
                )
            if self.slice_range is not None:
                volume = volume.select(*self.slice_range)
            if not len(volume):
                raise InputError(f"slice_range {self.slice_range} leaves none of {volume.last} slices")
            parts = [] if assigned is None else self.plan.parts(source, len(volume), assigned)
            notes = [f"warning: {note}" for note in (*source.notes, *volume.warnings)]
            if self.check:
                planned = ", ".join(self._file(source, part).as_posix() for part in parts) or "in no split"
                described = describe(volume, self.pad, self.max_size)
                self.summary.add("checked", source.label, f"would be {planned}", (*described, *notes))
                return
            kept = [part for part in parts if self._kept(source, part, digest, known)]
            new = [part for part in parts if part not in kept]
            try:
                facts = [self._write(source, volume, part, digest) for part in new]
            except ConfigError:
                for part in new:  # blocks of a volume that is damaged further on
                    (self._root / self._file(source, part)).unlink(missing_ok=True)
                raise
        for part in kept:
            self.summary.add("kept", source.label, self._file(source, part).as_posix())
        for part, lines in zip(new, facts, strict=True):
            self.summary.add("written", source.label, self._file(source, part).as_posix(), (*lines, *notes))

    def _kept(self, source: Source, part: Part, digest: str, known: dict[str, Written]) -> bool:
        """Whether an earlier run wrote this part from the same input with the same settings."""
        file = self._file(source, part).as_posix()
        if file in known and known[file].source != digest:
            raise InputError(f"{file} exists and was made from other data or with other settings; remove it first")
        return file in known

    def _write(self, source: Source, volume: Volume, part: Part, digest: str) -> list[str]:
        """Write one part and return the lines to report about it."""
        attributes: dict[str, Any] = {"patient_id": source.subject, SOURCE: digest}
        attributes["acquisition"] = volume.acquisition or self._folder(source) or "unknown"
        piece = volume.select(part.first, part.last)
        if not self.plan.subject_wise:
            attributes[BLOCK] = [piece.first, piece.last]
        written = write_volume(self._root / self._file(source, part), piece, self.pad, self.max_size, attributes)
        facts = [f"{len(written)} slices {volume.plane[0]}x{volume.plane[1]}, subject {source.subject}"]
        facts += size_note(volume, self.pad, self.max_size)
        if volume.domain == "kspace" and volume.target is None:
            facts += sampling_note(volume)
        return facts

    @property
    def _root(self) -> Path:
        if self.root is None:
            raise ConfigError("output: give the dataset folder to write (or --check to write nothing).")
        return self.root

    def _folder(self, source: Source) -> str:
        return (source.contrast if self.sequence == BY_CONTRAST else self.sequence) or ""

    def _file(self, source: Source, part: Part) -> Path:
        return Path(self._folder(source)) / part.split / f"{part.name}.h5"

    def _settings(self) -> str:
        """The settings that change a volume file."""
        reading = (self.axis, self.domain, self.axes, self.key, self.frame)
        return repr((self.pad, self.max_size, self.slice_range, *reading, self.plan))

    def _refuse_existing(self, sources: Sequence[Source], existing: set[Path]) -> None:
        """Without --resume, stop before the first volume is written if any of their files exists."""
        if self.resume:
            return
        ends = ("",) if self.plan.subject_wise else ("_train", "_val", "_test")
        made = {Path(self._folder(source)) / f"{source.name}{end}.h5" for source in sources for end in ends}
        met = sorted(path for path in existing if path.parent.parent / path.name in made)
        if met:
            raise ConfigError(
                f"output: {len(met)} volumes exist in {self._root} already, first {met[0]}; --resume keeps them, or "
                "choose another folder."
            )

    def _finish(self) -> None:
        written = [outcome for outcome in self.summary.outcomes if outcome.status in ("written", "kept")]
        if self.check or not written:
            return
        manifest = update_manifest(self._root, {"seed": self.seed, "pad": self.pad, "max_size": self.max_size})
        folder = Path(written[0].result).parent.parent.name
        sequence = f", sequence: {folder}" if folder else ""
        self.summary.hints += [
            f"manifest: {manifest}",
            f'data list entry: {{"kspace": "{written[0].result}"}}; use dataset_dir: {self._root}{sequence}',
        ]


def _refuse_unclear_subjects(sources: Sequence[Source]) -> None:
    """Refuse file names that leave subjects unclear; ids in the files and a rule of the user are not questioned.

    Raises:
        ConfigError: names that share a beginning.
    """
    guessed = [source.identity for source in sources if source.rule.startswith(("file name", "folder"))]
    groups = shared_beginnings(guessed)
    if groups:
        begin, names = next(iter(groups.items()))
        listed = "', '".join(names[:3])
        raise ConfigError(
            f"subject: '{listed}' begin alike ('{begin}'; {len(groups)} such groups): one subject, or {len(names)}? "
            f"Give --subject '{_rule_for(begin, names)}' if names that begin alike are one subject, --subject "
            f"{'folder' if '/' in names[0] else 'file'} if each is another subject."
        )


def _rule_for(begin: str, names: Sequence[str]) -> str:
    """A regular expression that takes as many words of a path as ``begin`` has."""
    if "/" in names[0]:
        return f"^((?:[^/]+/){{{begin.count('/') + 1}}})"
    words = len(re.findall(r"[_\-.\s+]", begin))
    return rf"((?:[^/_\-. +]+[_\-. +]){{{words}}}[^/_\-. +]+)[^/]*$"


def _pattern_of(source: Source) -> str:
    """A pattern for the files that end as this one does."""
    name = source.files[0].name
    end = re.search(r"[_-][A-Za-z]+(?=\.)", name)
    return "*" + name[end.start() :] if end else name


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")


def _patterns(value: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value.split(",") if isinstance(value, str) else map(str, value)))


def _at_least(value: int, least: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: {value} is not a whole number of at least {least}.")
    return value


def _range(value: Sequence[int] | str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        first, last = (int(part) for part in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        first, last = 0, 0
    if not 0 <= first < last:
        raise ConfigError(f"slice_range: {value} is not first,last with 0 <= first < last.")
    return first, last


def _axes(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in (value.split(",") if isinstance(value, str) else value))
    if not {"row", "column"} <= set(names) <= set(_AXES) or len(set(names)) != len(names):
        raise ConfigError(f"axes: {','.join(names)} must name row and column, and may name slice and coil, once each.")
    return names
