# SPDX-License-Identifier: Apache-2.0
"""The table of a leave-one-site-out experiment."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from fedmonai.errors import ConfigError

__all__ = ["outside_table", "write_outside_report"]


def outside_table(folders: Mapping[str, Path], metric: str = "dice") -> list[list[str]]:
    """Rows of text: one per outside site, the columns as in its ``adaptation.json``, last the mean over sites.

    Raises:
        ConfigError: a folder without a finished adaptation, or one that was not measured.
    """
    found: dict[str, dict[str, float]] = {}
    for site, folder in sorted(folders.items()):
        path = Path(folder) / "adaptation.json"
        try:
            found[site] = json.loads(path.read_text(encoding="utf-8"))[metric]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path} holds no {metric}: the adaptation is unfinished or had no labels.") from error
    columns = list(next(iter(found.values())))
    rows = [["outside site", *(name.replace("_", " ") for name in columns)]]
    rows += [[site, *(f"{values[name]:.4f}" for name in columns)] for site, values in found.items()]
    means = [statistics.fmean(values[name] for values in found.values()) for name in columns]
    return [*rows, ["mean", *(f"{mean:.4f}" for mean in means)]]


def write_outside_report(folders: Mapping[str, Path], path: Path, metric: str = "dice") -> str:
    """Write the table as markdown to ``path`` and return the text."""
    rows = outside_table(folders, metric)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return text
