# SPDX-License-Identifier: Apache-2.0
"""Which part of which volume goes to which split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedmonai.data.convert.layout import Written
from fedmonai.data.convert.volume import InputError, Source
from fedmonai.data.subject_split import SPLITS, check_shares, share_counts, split_subjects
from fedmonai.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """Slices ``first`` to ``last - 1`` of a volume go to ``<split>/<name>.h5``."""

    split: str
    name: str
    first: int
    last: int


@dataclass(frozen=True)
class SplitPlan:
    """How volumes are dealt to the splits; read from the option ``split``.

    Attributes:
        fixed: everything goes to this split.
        shares: (train, val, test) shares of the subjects.
        blocks: consecutive blocks of slices of *every* volume, as counts or shares. Neighboring slices are alike, so
            this is not a subject-wise split; it is for a single volume.
    """

    fixed: str | None = None
    shares: tuple[float, ...] | None = None
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
            return cls(blocks=numbers if whole else check_shares(numbers))
        if not text.startswith("slices:") and len(numbers) == 3:
            return cls(shares=check_shares(numbers))
        raise ConfigError(
            f"split: '{text}' is not understood; give train, val or test, shares such as 0.7,0.15,0.15, or blocks of "
            "slices such as slices:38,6,10."
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
        if self.shares is not None and subjects:
            return split_subjects(subjects, self.shares, seed, present)
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
            counts = share_counts(slices, self.blocks)
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
