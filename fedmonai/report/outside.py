# SPDX-License-Identifier: Apache-2.0
"""Page of outside sites: gain of the adaptation without labels over seeds, and the experts that a router uses."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.io import write_text
from fedmonai.report.comparison import FEWEST_PAIRS
from fedmonai.report.page import markdown_table

__all__ = ["write_outside_report"]

Folders = Mapping[str, Sequence[Path]]
REFERENCE = "global"


@dataclass
class _Outside:
    """Everything that was measured: dice by (model, site, seed, case), and the summaries by (model, site)."""

    dice: dict[tuple[str, str, int], dict[str, float]] = field(default_factory=dict)
    summaries: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model, _, _ in self.dice))

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(site for _, site, _ in self.dice))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, _, seed in self.dice})

    def means(self, model: str, site: str) -> list[float]:
        """One value per seed: the mean over the cases."""
        found = [self.dice[model, site, seed] for seed in self.seeds if (model, site, seed) in self.dice]
        return [statistics.fmean(cases.values()) for cases in found]

    def over_sites(self, model: str) -> list[float]:
        """One value per seed: the mean over the sites."""
        by_site = [self.means(model, site) for site in self.sites]
        return [statistics.fmean(values) for values in zip(*by_site, strict=False)]

    def differences(self, model: str) -> list[float]:
        """Model minus reference for every case, each a mean over the seeds in which the case is there for both."""
        found: dict[tuple[str, str], list[float]] = {}
        for (name, site, seed), cases in self.dice.items():
            other = self.dice.get((REFERENCE, site, seed), {}) if name == model else {}
            for case in cases.keys() & other.keys():
                found.setdefault((site, case), []).append(cases[case] - other[case])
        return [statistics.fmean(values) for values in found.values()]


def write_outside_report(results: Mapping[int, Folders], path: str | Path, about: str = "") -> str:
    """Write tables of outside sites as markdown to ``path`` and return the text.

    One row per model with Dice by site (mean over seeds of the mean over cases, ± the standard deviation over seeds),
    and its difference to the global model with the p of a Wilcoxon test over the cases; then the entropy of each
    adapted model, and of routed ones the shares of the experts. Adapted models are those before the first and after
    the last pass.

    Args:
        results: by seed, the folders of the adaptations of every site.
        path: the file.
        about: text at the top.

    Raises:
        ConfigError: a folder without a finished adaptation, or one that was not measured.
    """
    found = _Outside()
    for seed, folders in results.items():
        for site, ways in folders.items():
            for folder in ways:
                _read(found, seed, site, Path(folder))
    parts = [*([about] if about else []), _scores(found), _entropies(found), *_shares(found)]
    text = "\n\n".join(parts) + "\n"
    write_text(text, path)
    return text


def _read(found: _Outside, seed: int, site: str, folder: Path) -> None:
    try:
        summary = json.loads((folder / "adaptation.json").read_text(encoding="utf-8"))
        with (folder / "cases.csv").open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["metric"] == "dice"]
        passes = {model: [int(row["pass"]) for row in rows if row["model"] == model] for model in _models(rows)}
        adapted, last = summary["model"], summary["passes"]
        names = {(adapted, 0): f"{adapted} before", (adapted, last): f"{adapted} after"} if last else {}
        for model in passes:
            for number in sorted({min(passes[model]), max(passes[model])}):
                name = names.get((model, number), model)
                cases = {r["case"]: float(r["value"]) for r in rows if (r["model"], int(r["pass"])) == (model, number)}
                found.dice[name, site, seed] = cases
        if not rows:
            raise KeyError("dice")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no dice: the adaptation is unfinished or had no labels.") from error
    found.summaries.setdefault((summary["model"], site), []).append(summary)


def _models(rows: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.{digits}f}" + (
        f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def _scores(found: _Outside) -> str:
    rows = [["Dice", *found.sites, "mean", f"minus {REFERENCE}", "p"]]
    for model in found.models:
        differences = found.differences(model) if model != REFERENCE else []
        difference = f"{statistics.fmean(differences):+.3f} ({len(differences)})" if differences else "-"
        cells = [_spread(found.means(model, site)) for site in found.sites]
        rows.append(
            [model.replace("_", " "), *cells, _spread(found.over_sites(model)), difference, _wilcoxon(differences)]
        )
    seeds = ", ".join(map(str, found.seeds))
    return f"Seeds {seeds}. In brackets the number of paired cases.\n\n{markdown_table(rows)}"


def _entropies(found: _Outside) -> str:
    rows = [["mean entropy, share of the largest", *found.sites]]
    for model in dict.fromkeys(model for model, _ in found.summaries):
        for when in ("before", "after"):
            by_site = [[s["entropy"][when] for s in found.summaries.get((model, site), [])] for site in found.sites]
            rows.append([f"{model} {when}", *(_spread(values) for values in by_site)])
    return markdown_table(rows)


def _shares(found: _Outside) -> Iterable[str]:
    for (model, site), summaries in found.summaries.items():
        shares = [summary["shares"] for summary in summaries if "shares" in summary]
        if shares:
            experts = list(shares[0]["before"])
            rows = [[f"share of experts, {model} at {site}", *experts]]
            for when in ("before", "after"):
                rows.append([when, *(_spread([share[when][name] for share in shares]) for name in experts)])
            yield markdown_table(rows)


def _wilcoxon(differences: Sequence[float]) -> str:
    if len(differences) < FEWEST_PAIRS or not any(differences):
        return "-"
    from scipy.stats import wilcoxon

    return f"{float(wilcoxon(differences).pvalue):.2g}"
