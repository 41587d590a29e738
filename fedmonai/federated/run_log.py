# SPDX-License-Identifier: Apache-2.0
"""Log of a run: its folder and tables, the record of every round, versions and machine."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from monai.fl.utils.exchange_object import ExchangeObject

import fedmonai
from fedmonai.errors import ConfigError, FederationError, first_line
from fedmonai.federated.messages import message_bytes
from fedmonai.io import save, write_text, writing

__all__ = [
    "RoundRecord",
    "RunFolder",
    "SiteError",
    "describe_environment",
    "reason_of",
    "save_atomic",
    "summary",
    "write_text_atomic",
]


METRIC_COLUMNS = ("round", "site", "model", "split", "metric", "value")
CASE_COLUMNS = ("round", "site", "model", "split", "case", "metric", "value")


#: how the files of a run fail; one process at a time writes in its folder
_RUN: dict[str, Any] = {
    "error": FederationError,
    "remedy": "what was committed before is whole: make room or mend the folder, then continue with --resume True.",
}


def save_atomic(state: Any, path: Path) -> None:
    """Write a state of tensors and plain values: ``path`` is either the old file or the whole new one.

    Raises:
        FederationError: when it cannot be written; the old file stays.
    """
    save(state, path, alone=True, **_RUN)


def write_text_atomic(text: str, path: Path) -> None:
    """Write a text file of a run as :func:`save_atomic` does."""
    write_text(text, path, alone=True, **_RUN)


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
        """Release the folder for other processes."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
        path = self.path / "rounds.jsonl"
        with writing(path, **_RUN), open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_text_atomic(json.dumps(content, indent=2, default=str) + "\n", self.path / name)

    def truncate(self, last_round: int) -> None:
        """Drop what was recorded after ``last_round``, and all of the final test: both are done again."""

        def kept(line: str) -> bool:
            number, _, _, split, *_ = [*line.split(",", 4), *[""] * 4]
            return number.isdecimal() and int(number) <= last_round and split != "test"

        for name in ("metrics.csv", "cases.csv"):
            self._keep_lines(name, 1, kept)
        self._keep_lines("rounds.jsonl", 0, lambda line: json.loads(line)["round"] <= last_round)

    def _append_rows(self, name: str, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
        path = self.path / name
        fresh = not path.exists()
        with writing(path, **_RUN), open(path, "a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)

    def _keep_lines(self, name: str, header: int, keep: Callable[[str], bool]) -> None:
        path = self.path / name
        if not path.exists():
            return
        # what follows the last line end was cut short by a kill; its round was not committed either
        whole = [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        kept = whole[:header] + [line for line in whole[header:] if keep(line)]
        write_text_atomic("".join(kept), path) if kept else path.unlink()


class SiteError(RuntimeError):
    """A site in another process failed, with the reason it gave, or did not reply."""


class RoundRecord:
    """Collects who took part in a round, who failed and why, and what crossed the wire.

    Args:
        number: the round, from 1.
        participants: the sites that were asked.
    """

    def __init__(self, number: int, participants: list[str]) -> None:
        self.number = number
        self.participants = participants
        self.started = time.perf_counter()
        self.failed: dict[str, str] = {}
        self.loss: dict[str, float] = {}
        self.train_metrics: dict[str, dict[str, float]] = {}
        self.num_samples: dict[str, int] = {}
        self.seconds_per_site: dict[str, float] = {}
        self.bytes_up: dict[str, dict[str, int]] = {}
        self.bytes_down: dict[str, dict[str, int]] = {}
        self.observers: list[str] = []
        self.attachments: dict[str, Any] = {}
        #: by site what its noise has spent; epsilon is the text "unbounded" where an update had left without noise
        self.privacy: dict[str, dict[str, float | str]] = {}
        self.notes: list[str] = []

    def completed(self, site: str, update: ExchangeObject) -> None:
        """Note an accepted update."""
        statistics = update.statistics or {}
        self.loss[site] = float(statistics["loss"])
        for name, value in statistics.items():
            if name.startswith("train_"):
                self.train_metrics.setdefault(name.removeprefix("train_"), {})[site] = float(value)
        self.num_samples[site] = int(statistics["num_samples"])
        self.bytes_up[site] = message_bytes(update)
        spent = {k.removeprefix("privacy_"): v for k, v in statistics.items() if str(k).startswith("privacy_")}
        if spent:
            self.privacy[site] = {n: value if isinstance(value, str) else float(value) for n, value in spent.items()}

    def observed(self, site: str, update: ExchangeObject) -> None:
        """Note what a site contributed that did not train."""
        self.observers.append(site)
        self.bytes_up[site] = message_bytes(update)

    def fail(self, site: str, error: BaseException) -> None:
        """Note why a site is left out."""
        self.failed[site] = reason_of(error)

    def metric_rows(self) -> list[dict[str, Any]]:
        """Losses and training metrics as rows of ``metrics.csv``."""
        where = {"round": self.number, "model": "global", "split": "train"}
        return [
            {**where, "site": site, "metric": name, "value": value}
            for name, values in self._trained().items()
            for site, value in sorted(values.items())
        ]

    def train_summary(self) -> dict[str, float]:
        """Losses and training metrics as ``train_<name>`` and ``train_<name>_<site>``."""
        found: dict[str, float] = {}
        for name, values in self._trained().items():
            found |= summary(f"train_{name}", values)
        return found

    def _trained(self) -> dict[str, dict[str, float]]:
        return {"loss": self.loss, **self.train_metrics}

    def as_dict(self, **further: Any) -> dict[str, Any]:
        """One line of ``rounds.jsonl``."""
        return {
            "round": self.number,
            "participants": self.participants,
            "completed": sorted(self.loss),
            "observers": self.observers,
            "failed": self.failed,
            "seconds": time.perf_counter() - self.started,
            "seconds_per_site": self.seconds_per_site,
            "num_samples": self.num_samples,
            "loss": self.loss,
            "train_metrics": self.train_metrics,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "attachments": self.attachments,
            **({"privacy": self.privacy} if self.privacy else {}),
            "notes": self.notes,
            **further,
        }


def summary(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """A metric's mean over sites as ``<name>`` and its value at each as ``<name>_<site>``; NaN without any site."""
    mean = sum(values.values()) / len(values) if values else math.nan
    return {name: mean, **{f"{name}_{site}": value for site, value in values.items()}}


def reason_of(error: BaseException) -> str:
    """Type and first line of an exception: enough to act on, short enough for a table."""
    if isinstance(error, SiteError):
        return first_line(error, 400)
    return f"{type(error).__name__}: {first_line(error, 300) if str(error).strip() else 'no message'}"


PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "h5py", "nibabel")


def describe_environment() -> dict[str, Any]:
    """Versions of all that numbers depend on, thread count, processor and GPU."""
    versions = {"python": platform.python_version(), "fedmonai": fedmonai.__version__}
    versions.update({name: metadata.version(name) for name in PACKAGES})
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
