# SPDX-License-Identifier: Apache-2.0
"""Conversion of a folder of images into a prepared dataset, with the checks before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedmonai.data.convert.plan import SOURCE, Part, SplitPlan, Written, read_layout, update_manifest
from fedmonai.data.convert.readers import PlaneSize, kspace_to_image, open_source, sampled
from fedmonai.data.convert.scan import Naming, find_sources
from fedmonai.data.convert.volume import Source, Volume
from fedmonai.data.convert.writer import Summary, write_volume
from fedmonai.data.damage import InputError, damage_named
from fedmonai.data.kspace.read import BLOCK
from fedmonai.data.provenance import file_digest
from fedmonai.errors import ConfigError


def describe(volume: Volume, pad: int, max_size: int) -> list[str]:
    """Read every slice and describe shape, spacing, intensities and what is unusual, one fact per line.

    Raises:
        InputError: values that are not finite, or an image that is zero everywhere; both make a volume unusable.
    """
    rows, columns = volume.plane
    coils = "" if volume.coils is None else f" x {volume.coils} coils"
    spacing = volume.spacing
    size = "unknown" if spacing is None else " x ".join(f"{length:.3g}" for length in spacing) + " mm"
    lines = [f"{len(volume)} slices{coils} x {rows} rows x {columns} columns ({volume.domain}), spacing {size}"]
    lines.append(_intensities(volume))
    lines += size_note(volume, pad, max_size)
    if volume.domain == "kspace":
        lines += sampling_note(volume)
    return lines


def size_note(volume: Volume, pad: int, max_size: int) -> list[str]:
    """Describe how the size of the slices changes; empty if it does not."""
    if volume.domain == "kspace":
        return []
    plan = PlaneSize.plan(volume.plane, pad, max_size)
    notes = []
    if plan.reduced != plan.original:
        notes.append(f"reduced to {_by(plan.reduced)} by keeping the center of k-space (--max_size {max_size})")
    if plan.final != plan.reduced:
        notes.append(f"zero-padded to {_by(plan.final)} (--pad {pad})")
    if pad and max(plan.final) > pad:
        notes.append(
            f"size {_by(plan.final)} kept: larger than --pad {pad}, nothing is cropped (--max_size reduces it)"
        )
    return notes


def sampling_note(volume: Volume) -> list[str]:
    """Describe how much of the k-space is sampled, and whether a target exists or follows from it."""
    mask, share = sampled(volume)
    if volume.target is not None:
        return [f"k-space with its own target, {share:.1%} of the samples are not zero"]
    if mask is None and volume.mask is None:
        return ["k-space fully sampled: its root-sum-of-squares magnitude becomes the target"]
    kept = volume.mask if volume.mask is not None else mask
    columns = int(np.count_nonzero(kept))  # type: ignore[arg-type]
    pattern = "; a 2-D pattern, its zeros stay in the k-space" if share < 0.9 * columns / volume.plane[1] else ""
    return [
        f"k-space undersampled: {share:.1%} of the samples, {columns} of {volume.plane[1]} columns{pattern}; no target "
        "(inference only)"
    ]


def _intensities(volume: Volume) -> str:
    """Range and mean of the magnitude image; says what is negative or empty."""
    low, high, total, negative = np.inf, -np.inf, 0.0, 0
    broken: list[int] = []
    empty: list[int] = []
    for index, plane in enumerate(volume.planes(), start=volume.first):
        if not np.isfinite(plane).all():
            broken.append(index)
            continue
        if volume.domain == "kspace":
            plane = kspace_to_image(plane).numpy()
        elif plane.dtype.kind == "c":
            plane = np.abs(plane)
        negative += int((plane < 0).sum())
        low, high, total = min(low, float(plane.min())), max(high, float(plane.max())), total + float(plane.mean())
        if not plane.any():
            empty.append(index)
    if broken:
        raise InputError(f"{len(broken)} slices hold values that are not finite: {_listed(broken)}")
    if len(empty) == len(volume):
        raise InputError("the image is zero everywhere")
    line = f"intensity {low:.4g} to {high:.4g}, mean {total / len(volume):.4g}"
    if negative:
        line += f"; {negative} negative values, their magnitude is the target"
    return line + (f"; {len(empty)} empty slices: {_listed(empty)}" if empty else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _listed(indices: list[int]) -> str:
    return ", ".join(str(index) for index in indices[:10]) + (", ..." if len(indices) > 10 else "")


_AXES = ("slice", "coil", "row", "column")


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
    subject: str = "auto",
    salt: str = "",
    hash_names: bool = False,
    seed: int = 0,
    resume: bool = False,
    check: bool = False,
) -> Summary:
    """Turn DICOM series, NIfTI, .npy, .mat or fastMRI HDF5 into <output>/[<sequence>/]<train|val|test>/*.h5.

    Images get a zero imaginary part (if real) and a centered orthonormal 2-D FFT; their magnitude is the target.
    k-space (HDF5, or arrays with --domain kspace) is kept as it is; without a target it gets one only if it is fully
    sampled, otherwise a mask of its empty columns. Magnitude images simulate k-space; they are not raw scanner data.

    Args:
        input: folder (searched with its sub-folders) or one file.
        output: dataset folder; also gets manifest.json, a data list with subjects and hashes. Not needed by --check.
        sequence: sub-folder, such as T1.
        split: fractions of the subjects (train,val,test); or train, val or test for everything; or slices:38,6,10 (or
            shares) to cut every volume into blocks of slices, which is not subject-wise and meant for a single volume.
        pad: images with fewer rows or columns are zero-padded to this around the center; larger ones keep their size.
        max_size: images with a longer side lose resolution (k-space crop), not field of view; 0 keeps every size.
        slice_range: first,last: only these slices, first included, last not.
        axis: NIfTI voxel axis that counts the slices, 0 to 2.
        domain: of .npy and .mat arrays: image or kspace.
        axes: their axes, such as coil,row,column; default: slices first (.npy) or last (.mat).
        key: variable of .mat files.
        subject: where the subject comes from: auto, study, folder, file, or a regular expression for the path.
        salt: secret of this site that goes into the pseudonyms of subjects.
        hash_names: pseudonyms as names of all files, if input file names identify people (DICOM always is).
        seed: of the split.
        resume: keep volumes that were made from the same input with the same settings; without it an existing file
            is an error.
        check: report shapes, spacing, intensities, gaps, duplicates and the planned split; write nothing.

    Returns:
        The summary; its ``exit_code`` is 1 if an input was unknown or damaged, or if there was none.

    Raises:
        ConfigError: a wrong option, an existing output, an overlap of splits, an output that cannot be written.
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
        seed=seed,
        resume=resume,
        check=check,
    )
    return conversion.run(Path(input), Naming(str(subject), str(salt), hash_names))


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

    def run(self, source_root: Path, naming: Naming) -> Summary:
        found = find_sources(source_root, naming)
        self.summary.ignored = found.ignored
        for label, reason in found.failed:
            self.summary.add("failed", label, reason)
        earlier = [] if self.root is None else read_layout(self.root)
        assigned = self._assign(found.sources, earlier)
        if not self.check:
            self._refuse_existing(found.sources, {Path(volume.file) for volume in earlier})
        known = {volume.file: volume for volume in earlier}
        for source in tqdm(found.sources, desc="check" if self.check else "prepare", unit="volume", disable=None):
            try:
                self._one(source, assigned, known)
            except InputError as error:
                self.summary.add("failed", source.label, str(error), source.notes)
        self._finish()
        if not self.summary.outcomes:
            self.summary.hints.append(f"input: no DICOM, NIfTI, .npy, .mat or HDF5 file in {source_root}.")
        return self.summary

    def _assign(self, sources: Sequence[Source], earlier: Sequence[Written]) -> dict[str, str] | None:
        """Map subjects to splits; a check reports an impossible split and continues."""
        try:
            return self.plan.assign(sources, self.seed, earlier)
        except ConfigError as error:
            if not self.check:
                raise
            self.summary.hints.append(f"warning: {error}")
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
        with open_source(source, self.axis, self.domain, self.axes, self.key) as volume:
            if self.slice_range is not None:
                volume = volume.select(*self.slice_range)
            if not len(volume):
                raise InputError(f"slice_range {self.slice_range} leaves none of {volume.last} slices")
            parts = [] if assigned is None else self.plan.parts(source, len(volume), assigned)
            notes = [f"warning: {note}" for note in (*source.notes, *volume.warnings)]
            if self.check:
                planned = ", ".join(self._file(part).as_posix() for part in parts) or "in no split"
                described = describe(volume, self.pad, self.max_size)
                self.summary.add("checked", source.label, f"would be {planned}", (*described, *notes))
                return
            kept = [part for part in parts if self._kept(part, digest, known)]
            new = [part for part in parts if part not in kept]
            try:
                facts = [self._write(source, volume, part, digest) for part in new]
            except ConfigError:
                for part in new:  # blocks of a volume that is damaged further on
                    (self._root / self._file(part)).unlink(missing_ok=True)
                raise
        for part in kept:
            self.summary.add("kept", source.label, self._file(part).as_posix())
        for part, lines in zip(new, facts, strict=True):
            self.summary.add("written", source.label, self._file(part).as_posix(), (*lines, *notes))

    def _kept(self, part: Part, digest: str, known: dict[str, Written]) -> bool:
        """Whether an earlier run wrote this part from the same input with the same settings."""
        file = self._file(part).as_posix()
        if file in known and known[file].source != digest:
            raise InputError(f"{file} exists and was made from other data or with other settings; remove it first")
        return file in known

    def _write(self, source: Source, volume: Volume, part: Part, digest: str) -> list[str]:
        """Write one part and return the lines to report about it."""
        attributes: dict[str, Any] = {"patient_id": source.subject, SOURCE: digest}
        attributes["acquisition"] = volume.acquisition or self.sequence or "unknown"
        piece = volume.select(part.first, part.last)
        if not self.plan.subject_wise:
            attributes[BLOCK] = [piece.first, piece.last]
        written = write_volume(self._root / self._file(part), piece, self.pad, self.max_size, attributes)
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

    def _file(self, part: Part) -> Path:
        return Path(self.sequence or "") / part.split / f"{part.name}.h5"

    def _settings(self) -> str:
        """The settings that change a volume file."""
        return repr((self.pad, self.max_size, self.slice_range, self.axis, self.domain, self.axes, self.key, self.plan))

    def _refuse_existing(self, sources: Sequence[Source], existing: set[Path]) -> None:
        """Without --resume, stop before the first volume is written if any would meet an existing file."""
        if self.resume:
            return
        names = {path.name: path for path in existing if path.parent.parent == Path(self.sequence or "")}
        suffixes = ("",) if self.plan.subject_wise else ("_train", "_val", "_test")
        met = [names[f"{s.name}{end}.h5"] for s in sources for end in suffixes if f"{s.name}{end}.h5" in names]
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
        sequence = f", sequence: {self.sequence}" if self.sequence else ""
        self.summary.hints += [
            f"manifest: {manifest}",
            f'data list entry: {{"kspace": "{written[0].result}"}}; use dataset_dir: {self._root}{sequence}',
        ]


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
