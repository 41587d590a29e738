# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: convergence per site, and one test example per site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmonai.errors import ConfigError
from fedmonai.io import atomic_path
from fedmonai.report.run_tables import RunTables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "draw_figures", "new_figure", "save_figure"]

#: Okabe and Ito's palette, distinguishable with every common color vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def draw_figures(tables: RunTables) -> list[Path]:
    """Draw all figures that the run has data for into ``figures/`` and return their paths."""
    drawn = []
    if tables.metrics:
        drawn.append(save_figure(_convergence(tables), tables.folder / "figures" / "convergence.png"))
    for path in sorted(tables.folder.glob("sites/*/examples/*.npz")):
        site = path.parent.parent.name
        drawn.append(save_figure(_example(path, site), tables.folder / "figures" / f"example_{site}.png"))
    return drawn


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG in one step: ``path`` is never incomplete."""
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight")
    return path


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches; needs no display."""
    from matplotlib.figure import Figure  # heavy, and no display is needed for it

    return Figure(figsize=(width, height), layout="constrained")


def _convergence(tables: RunTables) -> Figure:
    panels = [("train", "loss"), *(("val", name) for name in tables.metric_names("val"))]
    figure = new_figure(4 * len(panels), 3.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (split, metric) in zip(axes, panels, strict=True):
        for index, site in enumerate(tables.sites):
            points = tables.series(site, metric, split)
            if points:
                axis.plot(*zip(*points, strict=True), color=COLORS[index % len(COLORS)], marker=".", label=site)
        axis.set_xlabel("round")
        axis.set_title(
            f"{'training' if split == 'train' else 'validation'} {metric.upper() if metric != 'loss' else metric}"
        )
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if axes[-1].get_legend_handles_labels()[0]:  # nothing is drawn of a run that only evaluates
        axes[-1].legend(title="site", fontsize="small")
    return figure


def _example(path: Path, site: str) -> Figure:
    try:
        with np.load(path) as stored:
            images = {name: stored[name] for name in stored.files if stored[name].ndim == 2}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it and test again.") from error
    if {"image", "label", "pred"} <= set(images):
        return _segmentation_example(images, site)
    names = list(images)
    error_map = (
        abs(images["reconstruction"] - images["target"]) * 5 if {"reconstruction", "target"} <= set(names) else None
    )
    figure = new_figure(2.6 * (len(names) + (error_map is not None)), 2.9)
    axes = figure.subplots(1, len(names) + (error_map is not None), squeeze=False)[0]
    window = float(np.percentile(images.get("target", images[names[-1]]), 99.5)) or 1.0
    for axis, name in zip(axes, names, strict=False):
        _show(axis, images[name], name.replace("_", "-"), window, "gray")
    if error_map is not None:
        shown = _show(axes[-1], error_map, "error x5", window, "magma")
        figure.colorbar(shown, ax=axes[-1], fraction=0.046)
    figure.suptitle(f"site {site}")
    return figure


def _segmentation_example(images: dict[str, np.ndarray], site: str) -> Figure:
    """The image alone, then with the outlines of label and prediction, one color per class."""
    figure = new_figure(7.8, 2.9)
    axes = figure.subplots(1, 3, squeeze=False)[0]
    low, high = np.percentile(images["image"], (0.5, 99.5))
    for axis, name in zip(axes, ("image", "label", "pred"), strict=True):
        title = {"image": "image", "label": "label", "pred": "prediction"}[name]
        _show(axis, images["image"], title, max(float(high), float(low) + 1e-6), "gray", float(low))
        if name != "image":
            for number in range(1, int(images[name].max()) + 1):
                region = images[name] == number
                if region.any() and not region.all():
                    axis.contour(region, levels=[0.5], colors=[COLORS[number % len(COLORS)]], linewidths=1.2)
    figure.suptitle(f"site {site}")
    return figure


def _show(axis: Any, image: np.ndarray, title: str, window: float, colors: str, low: float = 0.0) -> Any:
    shown = axis.imshow(image, cmap=colors, vmin=low, vmax=window, interpolation="nearest")
    axis.set_title(title, fontsize="medium")
    axis.set_axis_off()
    return shown
