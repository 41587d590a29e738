# SPDX-License-Identifier: Apache-2.0
"""The figures of a comparison: scores by method and site, and latent features of all sites in two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.errors import ConfigError
from fedmonai.report.compared import ComparedRun, Comparison
from fedmonai.report.figures import COLORS, new_figure, save_figure
from fedmonai.report.page import UNITS

__all__ = ["PROJECTIONS", "check_projection", "draw_latents", "draw_scores", "project"]

PROJECTIONS = ("pca", "tsne", "none")


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
        axis.set_title(UNITS.get(metric, (metric, 4))[0])
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return save_figure(figure, path)


def check_projection(projection: str) -> None:
    """Refuse what is no projection; for callers that would otherwise hear of it after hours.

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
    run: ComparedRun = next(run for run in comparison.runs if run.method == method)
    found = {}
    for site in comparison.sites:
        path = run.folder / "sites" / site / "latents.npz"
        if path.is_file():
            with np.load(path) as stored:
                found[site] = stored["latents"]
    return found
