# SPDX-License-Identifier: Apache-2.0
"""Results of an inference as files that are whole or not there."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError

__all__ = ["refuse_existing", "write_table", "write_whole"]


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ConfigError for a result of an earlier run that may not be replaced."""
    if path.exists() and not overwrite:
        raise ConfigError(f"output_dir: {path} exists; choose another folder or set overwrite: true.")


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path`` with the same suffix, and rename it when it is complete.

    Raises:
        ConfigError: when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            write(str(partial))
            partial.replace(path)
    except OSError as error:
        raise ConfigError(f"output_dir: {path} cannot be written ({error}); nothing of it is left behind.") from error


def write_table(table: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of this run, after those of earlier runs whose ``file`` is still valid."""
    new = {row["file"] for row in rows}

    def write(path: str) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            if table.exists():
                with open(table, newline="", encoding="utf-8") as earlier:
                    writer.writerows(row for row in csv.DictReader(earlier) if row["file"] not in new)
            writer.writerows(rows)

    write_whole(table, write)
