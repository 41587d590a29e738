# SPDX-License-Identifier: Apache-2.0
"""Tables of a run folder, read and checked."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError

__all__ = ["TABLES", "RunTables", "read_rows", "read_run"]

#: of metrics, and of single cases
TABLES = ("metrics.csv", "cases.csv")


@dataclass
class RunTables:
    """A run as written: its description, its rounds, its metrics and its cases."""

    folder: Path
    run: dict[str, Any]
    rounds: list[dict[str, Any]]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sites(self) -> list[str]:
        """All sites that have any metric, sorted."""
        return sorted({row["site"] for row in self.metrics})

    def metric_names(self, split: str) -> list[str]:
        """Metrics of a split in the order of writing, without the loss."""
        return list(dict.fromkeys(r["metric"] for r in self.metrics if r["split"] == split and r["metric"] != "loss"))

    def series(self, site: str, metric: str, split: str, model: str | None = None) -> list[tuple[int, float]]:
        """(round, value) of a model, by round; by default the site's own one where it has one, else the global one."""
        models = {r["model"] for r in self.metrics if r["site"] == site and r["split"] == split}
        model = model or ("personal" if "personal" in models else "global")
        wanted = {"site": site, "metric": metric, "split": split, "model": model}
        rows = [r for r in self.metrics if all(r[k] == v for k, v in wanted.items())]
        return sorted((r["round"], r["value"]) for r in rows)

    def test_columns(self) -> list[tuple[str, str, int]]:
        """(heading, model, -1 before or 1 after) of the test table: reference methods, before and after training."""
        models = list(dict.fromkeys(r["model"] for r in self.metrics if r["split"] == "test"))
        columns = [(m.replace("_", "-"), m, -1) for m in models if m not in ("global", "personal")]
        both = {"global", "personal"} <= set(models)
        for model in ("global", "personal"):
            if model in models:
                suffix = f" ({model})" if both else ""
                columns += [(f"before{suffix}", model, -1), (f"after{suffix}", model, 1)]
        return columns

    def test_cases(self, site: str, metric: str, model: str, end: int) -> list[float]:
        """Values per case of the first (``end=-1``) or the last (``end=1``) test of a model; empty without one.

        A metric that is not measured per case gives its single value.
        """
        return [row["value"] for row in self._tested(site, metric, model, end)]

    def named_test_cases(self, site: str, metric: str, model: str) -> dict[str, float]:
        """As :meth:`test_cases` of the last test, by the name of the case."""
        return {row.get("case", ""): row["value"] for row in self._tested(site, metric, model, 1)}

    def _tested(self, site: str, metric: str, model: str, end: int) -> list[dict[str, Any]]:
        wanted = {"split": "test", "site": site, "metric": metric, "model": model}
        rows = [r for r in self.cases if all(r[k] == v for k, v in wanted.items())]
        rows = rows or [r for r in self.metrics if all(r[k] == v for k, v in wanted.items())]
        if not rows:
            return []
        numbers = [r["round"] for r in rows]
        number = min(numbers) if end < 0 else max(numbers)
        if end > 0 and number == 0 and model in ("global", "personal"):
            return []
        return [row for row in rows if row["round"] == number]


def read_run(run_dir: str | Path) -> RunTables:
    """Read a run folder; tables that a partial run has not written yet are empty.

    Raises:
        ConfigError: when the folder holds no run, or a file of it is damaged.
    """
    folder = Path(run_dir)
    if not (folder / "run.json").is_file():
        raise ConfigError(f"'{folder}' holds no run (no run.json); give the output_dir of a federated run.")
    return RunTables(
        folder,
        _parsed(folder / "run.json")[0],
        _parsed(folder / "rounds.jsonl", lines=True),
        *(read_rows(folder / name) for name in TABLES),
    )


def _parsed(path: Path, lines: bool = False) -> list[Any]:
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(part) for part in (text.splitlines() if lines else [text])]
        if not all(isinstance(part, dict) and (not lines or isinstance(part.get("round"), int)) for part in found):
            raise ValueError("not a record")
        return found
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); restore it or run again in another output_dir.") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of metrics, none where it is not there yet.

    Raises:
        ConfigError: when it is damaged.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        try:
            return [{**row, "round": int(row["round"]), "value": float(row["value"])} for row in csv.DictReader(stream)]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is damaged ({error}); restore it or run again in another output_dir.") from error
