# SPDX-License-Identifier: Apache-2.0
"""Draw one slice of every generated MR site and of every change, for docs/generated_sites.md.

python scripts/draw_mr_sites.py --output_dir docs/figures
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import fire
import h5py
import numpy as np
from matplotlib.figure import Figure

from fedmonai.data.generated.mr_sites import CHANGES, SITES
from fedmonai.data.generated.mri_federation import generated_mri_site
from fedmonai.io import writing


def draw(output_dir: str = "docs/figures", size: int = 80) -> None:
    """Write mr_sites.png (sites by sequence and shift) and mr_changes.png (site I with each change).

    Args:
        output_dir: folder of the figures.
        size: rows and columns of an image.
    """
    with tempfile.TemporaryDirectory() as root:
        shown = [
            [(f"{site} {sequence}, {shift}", _slice(root, site, sequence, shift, (), size)) for site in SITES]
            for sequence, shift in (("T1", "normal"), ("T2", "normal"), ("T1", "strong"))
        ]
        _write(shown, Path(output_dir) / "mr_sites.png")
        variants = [("T1", ()), ("T2", ()), *(("T1", (change,)) for change in CHANGES)]
        changed = [
            (" ".join((sequence, *changes)), _slice(root, "I", sequence, "normal", changes, size))
            for sequence, changes in variants
        ]
        _write([changed], Path(output_dir) / "mr_changes.png")


def _slice(root: str, site: str, sequence: str, shift: str, changes: Sequence[str], size: int) -> np.ndarray:
    folder = generated_mri_site(f"{root}/{shift}", site, [sequence], (1, 0, 0), 4, size, shift=shift, changes=changes)
    with h5py.File(next(Path(folder).glob(f"{sequence}/train/*.h5"))) as file:
        return np.asarray(file["reconstruction_esc"][2])


def _write(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path) -> None:
    figure = Figure(figsize=(1.3 * len(rows[0]), 1.6 * len(rows)))
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, line in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(row, line, strict=True):
            axis.imshow(image, cmap="gray", vmax=np.quantile(image, 0.998))
            axis.set_title(title, fontsize=7)
            axis.axis("off")
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        figure.savefig(path, dpi=72)


if __name__ == "__main__":
    fire.Fire(draw)
