# SPDX-License-Identifier: Apache-2.0
"""Log of a run: its folder and tables, the record of every round, versions and machine."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from monai.fl.utils.exchange_object import ExchangeObject

import fedmonai
from fedmonai.errors import ConfigError, FederationError, first_line
from fedmonai.io import make_folder, private_opener, save, write_text, writing
from fedmonai.names import printable

__all__ = [
    "RoundRecord",
    "RunConfig",
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


#: how the files of a run fail
_RUN: dict[str, Any] = {
    "error": FederationError,
    "remedy": "what was committed is complete: make room or repair the folder, then continue with --resume True.",
}
#: one process at a time writes in a run's folder, and its files are private to this user
_WRITTEN: dict[str, Any] = {**_RUN, "alone": True, "private": True}
_RESTORE = "Put back a good copy, or start again in another output_dir."


def save_atomic(state: Any, path: Path) -> None:
    """Write a state of tensors and plain values: ``path`` is either the old file or the whole new one.

    Raises:
        FederationError: when it cannot be written; the old file stays.
    """
    save(state, path, **_WRITTEN)


def write_text_atomic(text: str, path: Path) -> None:
    """Write a text file of a run as :func:`save_atomic` does."""
    write_text(text, path, **_WRITTEN)


@dataclass(frozen=True)
class RunConfig:
    """Config of a run as it is recorded with the results of its rounds.

    Args:
        text: the config that repeats the run, as a file of its own.
        values: the values of all ids that a result may depend on, as texts; those of the sites' files too.

    Example:
        >>> list(RunConfig(values={"lr": "0.01"}).changes(before={"lr": "0.1"}))
        ['lr was 0.1, is 0.01']
    """

    text: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Name of the config in ``rounds.jsonl`` and of its file; empty for a federation that was built without one."""
        content = json.dumps([self.text, dict(self.values)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12] if self.values else ""

    @property
    def file(self) -> str:
        """Name of its file in the folder of the run."""
        return f"config_{self.digest}.yaml"

    def changes(self, before: Mapping[str, str]) -> Iterator[str]:
        """What is different from the values of an earlier config, a sentence for each id."""
        if not before or not self.values:
            return
        for name in sorted(before.keys() | self.values.keys()):
            old, new = (values.get(name, "not set") for values in (before, self.values))
            if old != new:
                yield f"{name} was {printable(old, 100)}, is {printable(new, 100)}"


class RunFolder:
    """Paths and tables of one run.

    What is made here is for this user alone (0700, 0600): there are private weights and names of cases in it. A folder
    that is there already keeps its rights.

    Args:
        path: the folder; made if missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as path:
        ...     folder = RunFolder(path)
        ...     folder.add_round({"round": 1})
        ...     print(folder.rounds())
        ...     folder.close()
        [1]

    Raises:
        ConfigError: when it cannot be written, or another process is running in it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            make_folder(self.path, private=True)
            # held for the life of the run
            self._lock: TextIO | None = open(self.path / ".lock", "w", opener=private_opener)  # noqa: SIM115
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
        with writing(path, **_RUN), _appended(path) as stream:
            stream.write(json.dumps(record) + "\n")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_text_atomic(json.dumps(content, indent=2, default=str) + "\n", self.path / name)

    def write_once(self, name: str, text: str) -> None:
        """Write a text file of the run unless there is one of this name."""
        if not (self.path / name).exists():
            write_text_atomic(text, self.path / name)

    def rounds(self) -> list[int]:
        """The rounds in ``rounds.jsonl``, in the order of its lines.

        Raises:
            ConfigError: when a line is no record of a round.
        """
        path = self.path / "rounds.jsonl"
        return [_round_of(path, number, line) for number, line in enumerate(_whole_lines(path), 1)]

    def truncate(self, last_round: int) -> None:
        """Drop what was recorded after ``last_round``, and all of the final test: both are done again.

        Raises:
            ConfigError: when a line of a table cannot be read; nothing was changed then.
        """
        new: dict[Path, list[str]] = {}
        for name, columns in (("metrics.csv", METRIC_COLUMNS), ("cases.csv", CASE_COLUMNS)):
            rows = list(_checked_rows(self.path / name, columns))
            place = columns.index("split")
            kept = [row for row in rows if int(row[0]) <= last_round and row[place] != "test"]
            new[self.path / name] = [_csv_line(row) for row in (columns, *kept)] if rows or kept else []
        path = self.path / "rounds.jsonl"
        lines = zip(self.rounds(), _whole_lines(path), strict=True)
        new[path] = [f"{line}\n" for number, line in lines if number <= last_round]
        for path, content in new.items():
            if content:
                write_text_atomic("".join(content), path)
            else:
                path.unlink(missing_ok=True)

    def sync(self) -> None:
        """See that the tables are on disk."""
        for name in ("metrics.csv", "cases.csv", "rounds.jsonl"):
            path = self.path / name
            if path.exists():
                with writing(path, **_RUN), open(path, "rb") as stream:
                    os.fsync(stream.fileno())

    def _append_rows(self, name: str, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
        path = self.path / name
        fresh = not path.exists()
        with writing(path, **_RUN), _appended(path) as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)


def _appended(path: Path) -> TextIO:
    return open(path, "a", encoding="utf-8", newline="", opener=private_opener)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a table. What follows the last line end was cut short by a kill; its round was not committed."""
    if not path.exists():
        return []
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is damaged: byte {error.start} is no UTF-8. {_RESTORE}") from error
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror or first_line(error)}). {_RESTORE}") from error


def _damaged(path: Path, number: int, line: str) -> ConfigError:
    shown = line[:40] + "..." * (len(line) > 40)
    return ConfigError(f"'{path}' is damaged: line {number} is {shown!r}. Take the line out or put back a good copy.")


def _round_of(path: Path, number: int, line: str) -> int:
    try:
        found = json.loads(line)["round"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise _damaged(path, number, line) from error
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise _damaged(path, number, line)
    return found


def _checked_rows(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a table below its line of column names."""
    lines = [f"{line}\n" for line in _whole_lines(path)]
    reader = csv.reader(lines, strict=True)
    number = 0
    try:
        for row in reader:
            first, number = number + 1, reader.line_num
            good = row == list(columns) if first == 1 else len(row) == len(columns) and _is_row(row)
            if not good:
                raise _damaged(path, first, lines[first - 1].rstrip("\n"))
            if first > 1:
                yield row
    except csv.Error as error:
        raise _damaged(path, number + 1, lines[min(number, len(lines) - 1)].rstrip("\n")) from error


def _is_row(row: Sequence[str]) -> bool:
    try:
        float(row[-1])
    except ValueError:
        return False
    return row[0].isascii() and row[0].isdecimal() and len(row[0]) < 10


def _csv_line(row: Sequence[str]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(row)
    return stream.getvalue()


class SiteError(RuntimeError):
    """Failure of a site in another process, with the reason it gave, or the lack of a reply."""


class RoundRecord:
    """Record of a round: who took part, who failed and why.

    Args:
        number: the round, from 1.
        participants: the sites that were asked.

    Example:
        >>> record = RoundRecord(1, ["A", "B"])
        >>> record.fail("B", FloatingPointError("the loss is nan"))
        >>> record.failed, record.all_diverged()
        ({'B': 'FloatingPointError: the loss is nan'}, False)
    """

    def __init__(self, number: int, participants: list[str]) -> None:
        self.number = number
        self.participants = participants
        self.started = time.perf_counter()
        self.failed: dict[str, str] = {}
        self.loss: dict[str, float] = {}
        self.train_metrics: dict[str, dict[str, float]] = {}
        self.num_samples: dict[str, int] = {}
        self.update_norm: dict[str, float] = {}
        self.diverged: set[str] = set()
        self.observers: list[str] = []
        #: the sites that were asked to validate
        self.validated: list[str] = []
        self.attachments: dict[str, Any] = {}
        #: by site the privacy that its updates have spent; epsilon is the text "unbounded" where an update had left
        #: without noise
        self.privacy: dict[str, dict[str, float | str]] = {}
        self.notes: list[str] = []

    def completed(self, site: str, update: ExchangeObject, norm: float) -> None:
        """Note an accepted update and the norm of its change."""
        statistics = update.statistics or {}
        self.loss[site] = float(statistics["loss"])
        for name, value in statistics.items():
            if name.startswith("train_"):
                self.train_metrics.setdefault(name.removeprefix("train_"), {})[site] = float(value)
        self.num_samples[site] = int(statistics["num_samples"])
        self.update_norm[site] = norm
        spent = {k.removeprefix("privacy_"): v for k, v in statistics.items() if str(k).startswith("privacy_")}
        if spent:
            self.privacy[site] = {n: value if isinstance(value, str) else float(value) for n, value in spent.items()}

    def observed(self, site: str) -> None:
        """Note a site that contributed without training."""
        self.observers.append(site)

    def fail(self, site: str, error: BaseException) -> None:
        """Note why a site is left out, in place of what was noted of its update; its privacy record stays."""
        self.failed[site] = reason_of(error)
        if _is_divergence(error):
            self.diverged.add(site)
        per_site = (self.loss, self.num_samples, self.update_norm, *self.train_metrics.values())
        for noted in per_site:
            noted.pop(site, None)  # type: ignore[attr-defined]

    def all_diverged(self) -> bool:
        """Whether no participant reached a finite loss: no site can train from what they were sent."""
        return bool(self.participants) and set(self.participants) <= self.diverged

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
            "validated": self.validated,
            "failed": self.failed,
            "seconds": time.perf_counter() - self.started,
            "num_samples": self.num_samples,
            "update_norm": self.update_norm,
            "loss": self.loss,
            "train_metrics": self.train_metrics,
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


def _is_divergence(error: BaseException) -> bool:
    """Whether a site's training reached no finite loss; a remote site reports the name of the exception or its code."""
    text = str(error)  # sites on the user's own machine send the exception, deployed ones its code
    told = text.startswith(f"{FloatingPointError.__name__}:") or "(code numbers," in text
    elsewhere = isinstance(error, SiteError) and told
    return elsewhere or isinstance(error, FloatingPointError)


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
