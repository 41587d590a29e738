# SPDX-License-Identifier: Apache-2.0
"""Make weak labels from full masks, convert NIfTI images with scribbles of one's own, or report on what files hold.

    python scripts/make_weak_labels.py make --images my/image --masks my/mask --output my_h5/Domain1/train \
        --num_classes 3 --label_map "{255: 0, 128: 2, 0: 1}" --size 384 --image_channels 3
    python scripts/make_weak_labels.py make --h5 volumes --output labeled --num_classes 4 --check
    python scripts/make_weak_labels.py convert --images raw/mscmr --output mscmr_h5 --num_classes 4 \
        --labels "{scribble: _scribble, mask: _manual}"
    python scripts/make_weak_labels.py report --h5 data/ODOC_h5/Domain1/train --num_classes 3

With ``--check`` every input is read and the table is printed, and nothing is written.
"""

from __future__ import annotations

import sys

import fire

from fedmonai.data.weak.convert import convert_nifti
from fedmonai.data.weak.labels import Row, make_weak_labels, report_weak_labels
from fedmonai.data.weak.list import paired_files, volume_files
from fedmonai.errors import ConfigError
from fedmonai.names import as_list
from fedmonai.transforms.weak_labels import ANNOTATIONS


def make(
    num_classes: int,
    images: str | None = None,
    masks: str | None = None,
    h5: str | None = None,
    output: str | None = None,
    annotations: tuple[str, ...] = ANNOTATIONS,
    label_map: dict[int, int] | None = None,
    threshold: int | None = None,
    size: int | None = None,
    image_channels: int | None = None,
    seed: int = 0,
    check: bool = False,
) -> str:
    """Make weak labels of pictures (images, masks) or of HDF5 files with a mask (h5) and write them to output."""
    if output is None and not check:
        raise ConfigError("output: name the folder for the new files, or add --check to write nothing.")
    names, skipped = tuple(as_list(annotations)), list[str]()
    rows = make_weak_labels(
        _files(images, masks, h5),
        None if check else output,
        num_classes,
        names,
        label_map,
        threshold,
        size,
        image_channels,
        seed,
        sys.stderr.isatty(),
        skipped,
    )
    if skipped:
        print(table(rows))
        raise ConfigError("\n".join(f"skipped: {reason}" for reason in skipped))
    return table(rows)


def convert(
    images: str,
    num_classes: int,
    labels: dict[str, str],
    output: str | None = None,
    label_map: dict[int, int] | None = None,
    orientation: str = "PLS",
    check: bool = False,
) -> str:
    """Convert NIfTI images with NIfTI scribbles and masks, told apart by suffixes, to HDF5 volumes (layout volumes)."""
    return table(convert_nifti(images, output, num_classes, labels, label_map, orientation, check))


def report(h5: str, num_classes: int) -> str:
    """Report how much the labels stored in a folder of HDF5 files say and how often they agree with the masks."""
    return table(report_weak_labels(_files(None, None, h5), num_classes, progress=sys.stderr.isatty()))


def table(rows: list[Row]) -> str:
    """Rows as a markdown table; a dash where an annotation has no such number."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "-") for column in columns]
        lines.append(
            "| " + " | ".join(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def _files(images: str | None, masks: str | None, h5: str | None) -> list[dict[str, str]]:
    """All files of a folder, without a split."""
    if h5 is not None and images is None and masks is None:
        return volume_files(h5, "train", val_fraction=0.0, test_fraction=0.0)
    if images is not None and masks is not None and h5 is None:
        return paired_files(images, masks, "train", val_fraction=0.0, test_fraction=0.0)
    raise ConfigError("name either --images and --masks, two folders of pictures, or --h5, a folder of HDF5 files.")


if __name__ == "__main__":
    try:
        fire.Fire({"convert": convert, "make": make, "report": report})
    except ConfigError as error:
        raise SystemExit(str(error)) from error
