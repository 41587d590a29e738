# SPDX-License-Identifier: Apache-2.0
"""Page of a comparison: tables as markdown and CSV, scores by method and site, latent features in two dimensions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.errors import ConfigError
from fedmonai.io import write_table, write_text
from fedmonai.report.comparison import ComparedRun, Comparison, Difference, Score
from fedmonai.report.figures import COLORS, new_figure, save_figure
from fedmonai.report.page import UNITS, markdown_table

__all__ = ["check_projection", "draw_curves", "draw_latents", "draw_scores", "project", "write_comparison"]

SCORE_COLUMNS = ("mean", "sd_over_seeds", "sd_over_volumes", "seeds", "volumes", "difference", "pairs", "p")
LOWER_IS_BETTER = ("nmse", "hd95", "assd")
COLUMNS = ("method", "site", "metric", *SCORE_COLUMNS)
PROJECTIONS = ("pca", "tsne", "none")


def write_comparison(
    runs: Iterable[ComparedRun], reference: str, output_dir: str | Path, projection: str = "pca", about: str = ""
) -> str:
    """Write ``comparison.md``, ``comparison.csv`` and the figures of finished runs; return the path of the first.

    Args:
        runs: the runs that have ended.
        reference: the method that the others are tested against.
        output_dir: folder to write in.
        projection: of the latent features to two dimensions: ``pca``, ``tsne``, or ``none`` for no such figure.
        about: text at the top of the page: what is compared, and why.

    Raises:
        ConfigError: see :class:`Comparison`; also when scikit-learn is needed and not installed.
    """
    comparison, folder = Comparison(runs, reference), Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures = [draw_scores(comparison, folder / "scores.png")]
    curves = draw_curves(comparison, folder / "curves.png")
    figures += [curves] if curves else []
    latents = draw_latents(comparison, folder / "latents.png", projection)
    figures += [latents] if latents else []
    _write_csv(comparison, folder / "comparison.csv")
    parts = [_heading(comparison, about), _provenance(comparison)]
    for metric in comparison.metrics:
        parts += [_scores(comparison, metric), _differences(comparison, metric)]
    parts += [_costs(comparison), _matrices(comparison)]
    parts += [f"![{path.stem}]({path.name})" for path in figures]
    path = folder / "comparison.md"
    write_text("\n\n".join(part for part in parts if part) + "\n", path)
    return str(path)


def _label(metric: str) -> tuple[str, int]:
    return UNITS.get(metric, (metric, 4))


def _heading(comparison: Comparison, about: str) -> str:
    wanted = sorted({run.seed for run in comparison.runs})
    found = {method: len(comparison.seeds(method)) for method in comparison.methods}
    missing = [f"{method} has {count} of {len(wanted)} seeds" for method, count in found.items() if count < len(wanted)]
    lines = [
        "# Comparison",
        "",
        *([about, ""] if about else []),
        f"Seeds {', '.join(map(str, wanted))}. A cell is the mean over seeds of the mean over test volumes, ± the "
        "standard deviation over seeds, and in brackets the standard deviation over test volumes of their means over "
        "seeds (in the last column over the volumes of all sites). Every model is that of its best validated round; a "
        "site that has its own model is tested with that.",
        *_about_differences(comparison),
        *(f"Note: {note}." for note in missing),
    ]
    return "\n".join(lines)


def _provenance(comparison: Comparison) -> str:
    """What the runs were made with; more than one value where they differ."""
    found: dict[str, set[str]] = {}
    for run, tables in comparison.tables.items():
        facts = {
            **tables.run.get("versions", {}),
            "threads": tables.run.get("threads"),
            "on": tables.run.get("machine"),
        }
        source = run.folder / "source.json"
        if source.is_file():
            state = json.loads(source.read_text(encoding="utf-8"))
            facts["commit"] = f"{state['commit']}{' with changes' if state['changed'] else ''}"
        for name, value in facts.items():
            found.setdefault(name, set()).add(str(value))
    parts = [f"{name} {' and '.join(sorted(values))}" for name, values in found.items()]
    return f"Made with {', '.join(parts)}."


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
    heading = f"## {label}, every site's model at every site\n\nMethods with one model for all sites are left out."
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


def draw_scores(comparison: Comparison, path: Path) -> Path:
    """One panel per metric: a point per method and site, its bar the standard deviation over seeds."""
    metrics, sites = comparison.metrics, [*comparison.sites, None]
    figure = new_figure(1.1 * len(sites) * len(metrics) + 2, 3.4)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    step = 0.7 / len(comparison.methods)
    for axis, metric in zip(axes, metrics, strict=True):
        for index, method in enumerate(comparison.methods):
            found = [(n, s) for n, site in enumerate(sites) if (s := comparison.score(method, metric, site))]
            axis.errorbar(
                [n + (index - (len(comparison.methods) - 1) / 2) * step for n, _ in found],
                [score.mean for _, score in found],
                [score.over_seeds for _, score in found],
                fmt="o",
                markersize=4,
                color=COLORS[index % len(COLORS)],
                label=method,
            )
        axis.set_xticks(range(len(sites)), [site or "mean" for site in sites])
        axis.set_title(_label(metric)[0])
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return save_figure(figure, path)


def draw_curves(comparison: Comparison, path: Path) -> Path | None:
    """One panel per validation metric: the mean over sites and seeds by round, its band the range of the seeds."""
    metrics = list(dict.fromkeys(m for tables in comparison.tables.values() for m in tables.metric_names("val")))
    if not metrics:
        return None
    figure = new_figure(4.2 * len(metrics), 3.4)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for index, method in enumerate(comparison.methods):
            found = comparison.curve(method, metric)
            color = COLORS[index % len(COLORS)]
            rounds = sorted(found)
            axis.plot(rounds, [statistics.fmean(found[n]) for n in rounds], color=color, marker=".", label=method)
            axis.fill_between(
                rounds, [min(found[n]) for n in rounds], [max(found[n]) for n in rounds], color=color, alpha=0.15, lw=0
            )
        axis.set_xlabel("round")
        axis.set_title(f"validation {_label(metric)[0]}")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return save_figure(figure, path)


def check_projection(projection: str) -> None:
    """Refuse an unknown projection before a long computation.

    Raises:
        ConfigError: on an unknown projection.
    """
    if projection not in PROJECTIONS:
        raise ConfigError(f"latents is '{projection}'; choose one of {', '.join(PROJECTIONS)}.")


def draw_latents(comparison: Comparison, path: Path, projection: str = "pca") -> Path | None:
    """One panel per method, first seed: a point per test slice, its color the site; ``None`` without saved latents.

    The title holds the mean silhouette of the sites in the full latent space: near 1 where sites lie apart, near 0
    where they mix.

    Raises:
        ConfigError: on an unknown projection, or without scikit-learn.
    """
    check_projection(projection)
    found = {method: _latents(comparison, method) for method in comparison.methods}
    found = {method: latents for method, latents in found.items() if len(latents) > 1}
    if projection == "none" or not found:
        return None
    figure = new_figure(3.2 * len(found), 3.6)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (method, latents) in zip(axes, found.items(), strict=True):
        labels = np.repeat(np.arange(len(latents)), [len(vectors) for vectors in latents.values()])
        points, silhouette = project(np.concatenate(list(latents.values())), labels, projection)
        for index, site in enumerate(latents):
            chosen = points[labels == index]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=9, color=COLORS[index % len(COLORS)], label=site)
        axis.set_title(f"{method}\nsilhouette of sites {silhouette:.2f}", fontsize="small")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLORS), title="site")
    return save_figure(figure, path)


def project(vectors: np.ndarray, labels: np.ndarray, projection: str) -> tuple[np.ndarray, float]:
    """Two-dimensional points (slices, 2) of standardized vectors (slices, values), and the silhouette of the labels.

    Raises:
        ConfigError: when scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ConfigError(
            "the figure of latent features needs scikit-learn: pip install 'fedmonai[compare]', or give --latents none."
        ) from error
    spread = vectors.std(axis=0)
    standardized = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
    method: Any = PCA(2, random_state=0)
    if projection == "tsne":
        method = TSNE(2, random_state=0, perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca")
    return method.fit_transform(standardized), float(silhouette_score(standardized, labels))


def _latents(comparison: Comparison, method: str) -> dict[str, np.ndarray]:
    run = next(run for run in comparison.runs if run.method == method)
    found = {}
    for site in comparison.sites:
        path = run.folder / "sites" / site / "latents.npz"
        if path.is_file():
            with np.load(path) as stored:
                found[site] = stored["latents"]
    return found
