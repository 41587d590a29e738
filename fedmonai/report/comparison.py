# SPDX-License-Identifier: Apache-2.0
"""A comparison of methods as markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedmonai.io import write_table, write_text
from fedmonai.report.compared import ComparedRun, Comparison, Difference, Score
from fedmonai.report.comparison_figures import draw_latents, draw_scores
from fedmonai.report.page import UNITS, markdown_table

__all__ = ["write_comparison"]

SCORE_COLUMNS = ("mean", "sd_over_seeds", "sd_over_volumes", "seeds", "volumes", "difference", "pairs", "p")
LOWER_IS_BETTER = ("nmse", "hd95", "assd")
COLUMNS = ("method", "site", "metric", *SCORE_COLUMNS)


def write_comparison(
    runs: Iterable[ComparedRun], reference: str, output_dir: str | Path, projection: str = "pca"
) -> str:
    """Write ``comparison.md``, ``comparison.csv`` and the figures of finished runs; return the path of the first.

    Args:
        runs: the runs that have ended.
        reference: the method that the others are tested against.
        output_dir: folder to write in.
        projection: of the latent features to two dimensions: ``pca``, ``tsne``, or ``none`` for no such figure.

    Raises:
        ConfigError: see :class:`Comparison`; also when scikit-learn is needed and not installed.
    """
    comparison, folder = Comparison(runs, reference), Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures = [draw_scores(comparison, folder / "scores.png")]
    latents = draw_latents(comparison, folder / "latents.png", projection)
    figures += [latents] if latents else []
    _write_csv(comparison, folder / "comparison.csv")
    parts = [_heading(comparison)]
    for metric in comparison.metrics:
        parts += [_scores(comparison, metric), _differences(comparison, metric)]
    parts += [_costs(comparison), _matrices(comparison)]
    parts += [f"![{path.stem}]({path.name})" for path in figures]
    path = folder / "comparison.md"
    write_text("\n\n".join(part for part in parts if part) + "\n", path)
    return str(path)


def _label(metric: str) -> tuple[str, int]:
    return UNITS.get(metric, (metric, 4))


def _heading(comparison: Comparison) -> str:
    wanted = sorted({run.seed for run in comparison.runs})
    found = {method: len(comparison.seeds(method)) for method in comparison.methods}
    missing = [f"{method} has {count} of {len(wanted)} seeds" for method, count in found.items() if count < len(wanted)]
    lines = [
        "# Comparison",
        "",
        f"Seeds {', '.join(map(str, wanted))}. A cell is the mean over seeds of the mean over test volumes, ± the "
        "standard deviation over seeds, and in brackets the standard deviation over test volumes of their means over "
        "seeds (in the last column over the volumes of all sites). Every model is that of its best validated round; a "
        "site that has its own model is tested with that.",
        *_about_differences(comparison),
        *(f"Note: {note}." for note in missing),
    ]
    return "\n".join(lines)


def _about_differences(comparison: Comparison) -> list[str]:
    if len(comparison.methods) < 2:
        return []
    lower = [_label(metric)[0].partition(" ")[0] for metric in comparison.metrics if metric in LOWER_IS_BETTER]
    return [
        "",
        f"Differences to {comparison.reference} are paired by test volume after the mean over the seeds of both; p of "
        "Wilcoxon's signed-rank test, two-sided, not corrected for the number of tests."
        + (f" Lower is better for {', '.join(lower)}: there a negative difference is a gain." if lower else ""),
    ]


def _scores(comparison: Comparison, metric: str) -> str:
    label, digits = _label(metric)
    places: list[str | None] = [*comparison.sites, None]
    rows = [["method", *comparison.sites, "mean"]]
    for model in comparison.untrained:
        found = [comparison.score(comparison.reference, metric, site, model) for site in places]
        rows.append([model.replace("_", "-"), *(_score_text(score, digits, False) for score in found)])
    for method in comparison.methods:
        found = [comparison.score(method, metric, site) for site in places]
        rows.append([method, *(_score_text(score, digits) for score in found)])
    return f"## {label}\n\n{markdown_table(rows)}"


def _score_text(score: Score | None, digits: int, spread: bool = True) -> str:
    if score is None:
        return "-"
    text = f"{score.mean:.{digits}f}"
    if spread and score.seeds > 1:
        text += f" ± {score.over_seeds:.{digits}f}"
    return f"{text} ({score.over_volumes:.{digits}f})" if score.volumes > 1 else text


def _differences(comparison: Comparison, metric: str) -> str:
    others = [method for method in comparison.methods if method != comparison.reference]
    if not others:
        return ""
    label, digits = _label(metric)
    rows = [["method", *comparison.sites, "all volumes"]]
    for method in others:
        found = [comparison.difference(method, metric, site) for site in [*comparison.sites, None]]
        rows.append([method, *(_difference_text(one, digits) for one in found)])
    return f"## {label}, difference to {comparison.reference}\n\n{markdown_table(rows)}"


def _difference_text(difference: Difference | None, digits: int) -> str:
    if difference is None:
        return "-"
    tail = f"p {difference.p:.3g}" if difference.p is not None else f"{difference.pairs} pairs, too few to test"
    return f"{difference.mean:+.{digits}f} ({tail})"


def _costs(comparison: Comparison) -> str:
    rows = [["method", "MB up per round", "MB down per round", "s per round"]]
    for method in comparison.methods:
        up, down, seconds = comparison.cost(method)
        rows.append([method, f"{up / 1e6:.3f}", f"{down / 1e6:.3f}", f"{seconds:.2f}"])
    return f"## Cost\n\nAll sites together; seconds are the median, with validation.\n\n{markdown_table(rows)}"


def _matrices(comparison: Comparison) -> str:
    metric = comparison.metrics[0]
    label, digits = _label(metric)
    parts = []
    for method in comparison.methods:
        found = comparison.cross_site(method, metric)
        if found:
            owners = sorted({owner for owner, _ in found})
            rows = [["model of", *(f"tested at {site}" for site in comparison.sites)]]
            rows += [
                [owner, *(f"{found[owner, s]:.{digits}f}" if (owner, s) in found else "-" for s in comparison.sites)]
                for owner in owners
            ]
            parts.append(f"### {method}\n\n{markdown_table(rows)}")
    if not parts:
        return ""
    heading = f"## {label}, every site's model at every site\n\nMethods with one model for all have none."
    return "\n\n".join([heading, *parts])


def _write_csv(comparison: Comparison, path: Path) -> None:
    lines = []
    for method in comparison.methods:
        for metric in comparison.metrics:
            for site in [*comparison.sites, None]:
                score, difference = comparison.score(method, metric, site), comparison.difference(method, metric, site)
                if score is not None:
                    row = [method, site or "all", metric, score.mean, score.over_seeds, score.over_volumes]
                    row += [score.seeds, score.volumes]
                    row += [difference.mean, difference.pairs, difference.p] if difference else [None] * 3
                    lines.append(row)
        for name, value in zip(("bytes_up", "bytes_down", "seconds_per_round"), comparison.cost(method), strict=True):
            lines.append([method, "all", name, value])
    write_table(COLUMNS, ([*line, *[None] * (len(COLUMNS) - len(line))] for line in lines), path)
