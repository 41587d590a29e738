# SPDX-License-Identifier: Apache-2.0
"""Comparison of runs: values per test volume, their spread, and paired tests against one method."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedmonai.errors import ConfigError
from fedmonai.federated.costs import added
from fedmonai.report.run_tables import RunTables, read_run

__all__ = ["ComparedRun", "Comparison", "Difference", "Score"]

#: fewest pairs for a test: with five, Wilcoxon's exact two-sided p cannot fall below 0.06
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class ComparedRun:
    """A run folder and what it is a run of; ``model`` is judged, ``None``: a site's own model where it has one."""

    method: str
    seed: int
    folder: Path
    model: str | None = None


@dataclass(frozen=True)
class Score:
    """A mean over seeds of the mean over test volumes.

    ``over_seeds`` and ``over_volumes`` are standard deviations: of the seeds' means, and of the volumes' means over
    seeds; 0 where there is one only.
    """

    mean: float
    over_seeds: float
    over_volumes: float
    seeds: int
    volumes: int


@dataclass(frozen=True)
class Difference:
    """Mean paired difference to the reference method, and p of Wilcoxon's signed-rank test, ``None`` without one."""

    mean: float
    pairs: int
    p: float | None


class Comparison:
    """Reads the runs of a comparison; a method is judged by the model that counts, a site's own one where it has one.

    Args:
        runs: finished runs; those of one method differ in their seed only.
        reference: the method that the others are tested against.

    Raises:
        ConfigError: without a run of the reference, or when a run has no final test.
    """

    def __init__(self, runs: Iterable[ComparedRun], reference: str) -> None:
        self.runs = list(runs)
        self.reference = reference
        self.methods = list(dict.fromkeys(run.method for run in self.runs))
        if reference not in self.methods:
            raise ConfigError(f"comparison: no finished run of the reference method '{reference}'.")
        self.tables = {run: read_run(run.folder) for run in self.runs}
        for run, tables in self.tables.items():
            tested = {row["model"] for row in tables.metrics if row["split"] == "test"}
            if not tested:
                raise ConfigError(f"comparison: '{run.folder}' has no final test; finish that run first.")
            if run.model is not None and run.model not in tested:
                raise ConfigError(f"comparison: '{run.folder}' has no test of a {run.model} model; leave 'model' out.")
        first = next(iter(self.tables.values()))
        self.metrics = first.metric_names("test")
        self.sites = sorted({site for tables in self.tables.values() for site in tables.run["test_sites"]})
        self.untrained = [m for _, m, end in first.test_columns() if end < 0 and m not in ("global", "personal")]
        self._values = {run: self._read(run, tables) for run, tables in self.tables.items()}

    def _read(self, run: ComparedRun, tables: RunTables) -> dict[tuple[str, str, str], dict[str, float]]:
        """{(model or "", site, metric): {volume: value}}; "" is the model that counts."""
        found = {}
        for site in self.sites:
            for metric in self.metrics:
                if run.model is None:
                    own = tables.named_test_cases(site, metric, "personal")
                    found["", site, metric] = own or tables.named_test_cases(site, metric, "global")
                else:
                    found["", site, metric] = tables.named_test_cases(site, metric, run.model)
                for model in self.untrained:
                    found[model, site, metric] = tables.named_test_cases(site, metric, model)
        return found

    def seeds(self, method: str) -> set[int]:
        """The seeds of which a method has a run."""
        return {run.seed for run in self._of(method)}

    def volumes(
        self, method: str, metric: str, site: str | None = None, model: str = "", seeds: set[int] | None = None
    ) -> dict[str, float]:
        """Mean over seeds (all by default) of every test volume of a site, or of all sites (named site/volume)."""
        collected: dict[str, list[float]] = {}
        for run in [run for run in self._of(method) if seeds is None or run.seed in seeds]:
            for name in self.sites if site is None else [site]:
                for case, value in self._values[run][model, name, metric].items():
                    collected.setdefault(f"{name}/{case}", []).append(value)
        return {name: statistics.fmean(values) for name, values in collected.items()}

    def score(self, method: str, metric: str, site: str | None = None, model: str = "") -> Score | None:
        """The score at a site, or the mean of the sites' scores; ``None`` where it was not tested."""
        by_seed = [mean for run in self._of(method) if (mean := self._mean(run, metric, site, model)) is not None]
        volumes = list(self.volumes(method, metric, site, model).values())
        if not by_seed:
            return None
        return Score(statistics.fmean(by_seed), _spread(by_seed), _spread(volumes), len(by_seed), len(volumes))

    def _mean(self, run: ComparedRun, metric: str, site: str | None, model: str) -> float | None:
        found = [list(self._values[run][model, name, metric].values()) for name in ([site] if site else self.sites)]
        means = [statistics.fmean(values) for values in found if values]
        return statistics.fmean(means) if means else None

    def difference(self, method: str, metric: str, site: str | None = None) -> Difference | None:
        """The method's volumes against the reference's, paired by volume after the mean over the seeds of both."""
        both = self.seeds(method) & self.seeds(self.reference)
        ours, theirs = (self.volumes(name, metric, site, seeds=both) for name in (method, self.reference))
        differences = [ours[name] - theirs[name] for name in sorted(ours) if name in theirs]
        if not differences:
            return None
        return Difference(statistics.fmean(differences), len(differences), _wilcoxon(differences))

    def curve(self, method: str, metric: str, split: str = "val") -> dict[int, list[float]]:
        """{round: one value per seed, each the mean over the sites that have one in every listed round}."""
        collected: dict[int, list[float]] = {}
        for run in self._of(method):
            series = {site: dict(self.tables[run].series(site, metric, split, run.model)) for site in self.sites}
            known = [values for values in series.values() if values]
            for number in sorted(set.intersection(*(set(values) for values in known))) if known else []:
                collected.setdefault(number, []).append(statistics.fmean(values[number] for values in known))
        return collected

    def cost(self, method: str) -> tuple[float, float, float]:
        """Bytes up and down per round (mean over rounds and seeds), and seconds per round (median)."""
        records = [record for run in self._of(method) for record in self.tables[run].rounds]
        up, down = (statistics.fmean(added(record[f"bytes_{way}"]) for record in records) for way in ("up", "down"))
        return up, down, statistics.median(record["seconds"] for record in records)

    def cross_site(self, method: str, metric: str) -> dict[tuple[str, str], float]:
        """{(site of the model, site of the test): mean over seeds}; empty for a method with one model for all."""
        collected: dict[tuple[str, str], list[float]] = {}
        for run in self._of(method):
            path = run.folder / "cross_site.csv"
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as stream:
                    for row in csv.DictReader(stream):
                        if row["metric"] == metric:
                            place = row["model_site"], row["test_site"]
                            collected.setdefault(place, []).append(float(row["value"]))
        return {place: statistics.fmean(values) for place, values in collected.items()}

    def _of(self, method: str) -> list[ComparedRun]:
        return [run for run in self.runs if run.method == method]


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _wilcoxon(differences: list[float]) -> float | None:
    if len(differences) < FEWEST_PAIRS:
        return None
    if not any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)
