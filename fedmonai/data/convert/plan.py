# SPDX-License-Identifier: Apache-2.0
"""Plan of a conversion: which source files become which volumes, splits and file names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmonai.data.convert.volume import Source
from fedmonai.data.damage import InputError
from fedmonai.data.kspace.list import SECTIONS
from fedmonai.data.kspace.read import BLOCK, open_volume, own_dataset
from fedmonai.data.partition import SPLITS, check_fractions, fraction_counts, split_subjects
from fedmonai.data.provenance import MANIFEST_NAME, file_digest, kspace_digest, read_manifest, write_manifest
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
    with open_volume(path) as file:
        kspace = own_dataset(file, "kspace")
        if kspace is None:
            raise ConfigError(f"output: {path} has no 'kspace'; take it out of the folder.")
        block = file.attrs.get(BLOCK)
        return Written(
            file=path.relative_to(root).as_posix(),
            split=split,
            sequence=sequence,
            subject=str(file.attrs.get("patient_id", path.stem)),
            source=str(file.attrs.get(SOURCE, "")),
            block=None if block is None else [int(index) for index in block],
            slices=int(kspace.shape[0]),
        )


@dataclass(frozen=True)
class Part:
    """Slices ``first`` to ``last - 1`` of a volume go to ``<split>/<name>.h5``."""

    split: str
    name: str
    first: int
    last: int


@dataclass(frozen=True)
class SplitPlan:
    """Assignment of volumes to splits, by the option ``split``.

    Attributes:
        fixed: everything goes to this split.
        split_fractions: fractions of the subjects in train, val and test.
        blocks: consecutive blocks of slices of *every* volume, as counts or fractions. Neighboring slices are alike, so
            this is not a subject-wise split; it is for a single volume.

    Example:
        >>> SplitPlan.parse("0.7,0.15,0.15").split_fractions
        (0.7, 0.15, 0.15)
        >>> SplitPlan.parse("slices:38,6,10").blocks
        (38.0, 6.0, 10.0)
    """

    fixed: str | None = None
    split_fractions: tuple[float, ...] | None = None
    blocks: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, option: str | Sequence[float]) -> SplitPlan:
        """Read ``train`` | ``0.7,0.15,0.15`` | ``slices:38,6,10`` | ``slices:0.7,0.1,0.2``.

        Raises:
            ConfigError: anything else.
        """
        if isinstance(option, str) and option in SPLITS:
            return cls(fixed=option)
        text = ",".join(str(part) for part in option) if isinstance(option, (tuple, list)) else str(option)
        try:
            numbers = tuple(float(part) for part in text.removeprefix("slices:").split(","))
        except ValueError:
            numbers = ()
        if text.startswith("slices:") and len(numbers) == 3 and min(numbers) >= 0 and max(numbers) > 0:
            whole = all(number.is_integer() for number in numbers) and sum(numbers) > 1
            return cls(blocks=numbers if whole else check_fractions(numbers))
        if not text.startswith("slices:") and len(numbers) == 3:
            return cls(split_fractions=check_fractions(numbers))
        raise ConfigError(
            f"split: '{text}' is not understood; give train, val or test, fractions such as 0.7,0.15,0.15, or blocks "
            "of slices such as slices:38,6,10."
        )

    @property
    def subject_wise(self) -> bool:
        """Whether all slices of a subject end up in one split."""
        return self.blocks is None

    def assign(self, sources: Iterable[Source], seed: int, earlier: Iterable[Written]) -> dict[str, str]:
        """Subject to split (empty for blocks). Subjects of an earlier run keep the split they have.

        Raises:
            ConfigError: too few subjects, or a subject of which an earlier run put something into another split.
        """
        subjects = sorted({source.subject for source in sources})
        present = {volume.subject: volume.split for volume in earlier}
        for volume in earlier:
            planned = self.fixed if self.blocks is None else None
            mixed = (volume.block is None) != (self.blocks is None) or planned not in (None, volume.split)
            if volume.subject in subjects and mixed:
                raise ConfigError(
                    f"overlap: subject {volume.subject} is in '{volume.split}' of the output ({volume.file}) and would "
                    f"be in '{planned or 'another split'}' too; choose another split or another output."
                )
        if self.fixed is not None:
            return dict.fromkeys(subjects, self.fixed)
        if self.split_fractions is not None and subjects:
            filled = sum(fraction > 0 for fraction in self.split_fractions)
            if len(subjects) < filled:
                raise ConfigError(
                    f"split: {len(subjects)} subject(s) cannot fill {filled} splits; give --split 1,0,0 or --split "
                    "train, or cut a single subject into blocks of slices with --split slices:0.7,0.15,0.15."
                )
            return split_subjects(subjects, self.split_fractions, seed, present)
        return {}

    def parts(self, source: Source, slices: int, assigned: Mapping[str, str]) -> list[Part]:
        """The output files of one volume with ``slices`` slices.

        Raises:
            InputError: fewer slices than the blocks ask for.
        """
        if self.blocks is None:
            return [Part(assigned[source.subject], source.name, 0, slices)]
        if sum(self.blocks) > 1.5:
            counts = [int(count) for count in self.blocks]
        elif slices >= sum(share > 0 for share in self.blocks):
            counts = fraction_counts(slices, self.blocks)
        else:
            counts = [slices + 1]
        if sum(counts) > slices:
            raise InputError(
                f"{slices} slices cannot be split into blocks of {','.join(f'{b:g}' for b in self.blocks)}"
            )
        parts, first = [], 0
        for split, count in zip(SPLITS, counts, strict=True):
            if count:
                parts.append(Part(split, f"{source.name}_{split}", first, first + count))
            first += count
        return parts
