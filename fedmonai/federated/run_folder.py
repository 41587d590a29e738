# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who may write in it, its tables, and files that are never half-written."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from ignite.handlers import DiskSaver

from fedmonai.errors import ConfigError

__all__ = ["RunFolder", "load_checked", "save_atomic", "write_text_atomic"]

METRIC_COLUMNS = ("round", "site", "model", "split", "metric", "value")
CASE_COLUMNS = ("round", "site", "model", "split", "case", "metric", "value")


def save_atomic(state: Any, path: Path) -> None:
    """Write a state with ``torch.save`` so that ``path`` is either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    DiskSaver(str(path.parent), atomic=True, create_dir=False, require_empty=False)(state, path.name)


def load_checked(path: Path) -> Any:
    """Load tensors and plain values; never runs code from the file.

    Raises:
        ConfigError: when the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file.") from error
    except Exception as error:  # torch raises six kinds by where a file is cut or what it hides
        raise ConfigError(
            f"{path}: not a readable file of tensors ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "it is truncated, damaged or not from a trusted source. Take a good copy."
        ) from error


def write_text_atomic(text: str, path: Path) -> None:
    """Write a text file so that ``path`` is either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class RunFolder:
    """Paths and tables of one run.

    Args:
        path: the folder; made if missing.

    Raises:
        ConfigError: when it cannot be written, or another process is running in it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: TextIO | None = open(self.path / ".lock", "w")  # noqa: SIM115 (held for the life of the run)
        except OSError as error:
            raise ConfigError(
                f"output_dir '{path}' cannot be written ({error.strerror}); choose another one."
            ) from error
        self._take_lock()

    def _take_lock(self) -> None:
        import fcntl  # POSIX only, as are the deployments this is for

        try:
            # the kernel drops this lock with the process, however it ends: no stale locks after kill -9
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
        except OSError as error:
            self.close()
            raise ConfigError(
                f"output_dir '{self.path}' is in use by another running process; wait for it or choose another one."
            ) from error

    def close(self) -> None:
        """Give the folder free for other processes."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def site(self, name: str) -> Path:
        """Folder of a site: its private state and examples."""
        return self.path / "sites" / name

    def model(self, name: str) -> Path:
        """File of a model."""
        return self.path / "models" / f"{name}.pt"

    def add_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to ``metrics.csv``."""
        self._append_rows("metrics.csv", METRIC_COLUMNS, rows)

    def add_cases(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to ``cases.csv``."""
        self._append_rows("cases.csv", CASE_COLUMNS, rows)

    def add_round(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``rounds.jsonl``."""
        with open(self.path / "rounds.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_text_atomic(json.dumps(content, indent=2, default=str) + "\n", self.path / name)

    def truncate(self, last_round: int) -> None:
        """Drop what was recorded after ``last_round``, and all of the final test: both are done again."""

        def kept(line: str) -> bool:
            number, _, _, split, *_ = line.split(",", 4)
            return int(number) <= last_round and split != "test"

        for name in ("metrics.csv", "cases.csv"):
            self._keep_lines(name, 1, kept)
        self._keep_lines("rounds.jsonl", 0, lambda line: json.loads(line)["round"] <= last_round)

    def _append_rows(self, name: str, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
        path = self.path / name
        fresh = not path.exists()
        with open(path, "a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)

    def _keep_lines(self, name: str, header: int, keep: Callable[[str], bool]) -> None:
        path = self.path / name
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # a line cut short by a kill has no line end; its round was not committed either
        whole = [line for line in lines[header:] if line.endswith("\n") and keep(line)]
        write_text_atomic("".join(lines[:header] + whole), path)
