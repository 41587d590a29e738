# SPDX-License-Identifier: Apache-2.0
"""What a conversion did, for reading and for the exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ORDER = ("checked", "written", "kept", "skipped", "failed")


@dataclass(frozen=True)
class Outcome:
    """What happened to one input.

    Attributes:
        status: ``checked``, ``written``, ``kept`` (there already, by --resume), ``skipped`` (a copy of another
            input), or ``failed`` (unknown or damaged).
        label: the input.
        result: the output file, or why there is none.
        notes: facts and warnings, one per line.
    """

    status: str
    label: str
    result: str
    notes: tuple[str, ...] = ()


@dataclass
class Summary:
    """Outcomes of all inputs; ``str(summary)`` is the report, ``exit_code`` is 1 if any failed or there is none."""

    outcomes: list[Outcome] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def add(self, status: str, label: str, result: str, notes: tuple[str, ...] | list[str] = ()) -> None:
        self.outcomes.append(Outcome(status, label, result, tuple(notes)))

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 if there was an input and every one was understood, else 1."""
        return int(not self.outcomes or self.count("failed") > 0)

    def __str__(self) -> str:
        lines = []
        for outcome in sorted(self.outcomes, key=lambda outcome: ORDER.index(outcome.status)):
            lines.append(f"{outcome.status}: {outcome.label} -> {outcome.result}")
            lines += [f"    {note}" for note in outcome.notes]
        if self.ignored:
            suffixes = Counter("." + name.rsplit(".", 1)[-1] if "." in name else name for name in self.ignored)
            listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
            lines.append(f"ignored (no images): {listed}")
        counts = [f"{self.count(status)} {status}" for status in ORDER if self.count(status)]
        return "\n".join([*lines, f"summary: {', '.join(counts) or 'no volumes found'}", *self.hints])
