# SPDX-License-Identifier: Apache-2.0
"""Weak labels made from full masks or converted from NIfTI files, and a report on those that HDF5 files hold."""

from __future__ import annotations

import sys

from fedmonai.data.weak.convert import convert_nifti
from fedmonai.data.weak.labels import Row, make_weak_labels, report_weak_labels
from fedmonai.data.weak.list import paired_files, volume_files
from fedmonai.errors import ConfigError
from fedmonai.names import as_list
from fedmonai.transforms.weak_labels import ANNOTATIONS


def make_labels(
    num_classes: int,
    images: str | None = None,
    masks: str | None = None,
    h5: str | None = None,
    output: str | None = None,
    annotations: tuple[str, ...] | None = None,
    label_map: dict[int, int] | None = None,
    threshold: int | None = None,
    size: int | None = None,
    image_channels: int | None = None,
    seed: int = 0,
    check: bool = False,
) -> str:
    """Make weak labels of pictures with masks, or of HDF5 files with a mask, and print how much they label.

    Examples:

        fedmonai prepare weak --images my/image --masks my/mask --output my_h5/Domain1/train --num_classes 3
            --label_map "{255: 0, 128: 2, 0: 1}" --size 384 --image_channels 3
        fedmonai prepare weak --h5 volumes --num_classes 4 --check

    Args:
        num_classes: of the masks, the background among them.
        images: folder of pictures.
        masks: folder of their masks.
        h5: folder of HDF5 files with a mask, instead of both.
        output: folder for the new files; not needed by --check.
        annotations: which labels to make; all of them if left out.
        label_map: class by gray level of the masks.
        threshold: gray level above which a mask is foreground, instead of label_map.
        size: rows and columns of the new files; those of the picture if left out.
        image_channels: 1 or 3; those of the picture if left out.
        seed: of the random strokes.
        check: read every input and print the table; write nothing.
    """
    if output is None and not check:
        raise ConfigError("output: name the folder for the new files, or add --check to write nothing.")
    names, skipped = ANNOTATIONS if annotations is None else tuple(as_list(annotations)), list[str]()
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


def convert_scribbles(
    images: str,
    num_classes: int,
    labels: dict[str, str],
    output: str | None = None,
    label_map: dict[int, int] | None = None,
    orientation: str = "PLS",
    check: bool = False,
) -> str:
    """Convert NIfTI images with NIfTI scribbles and masks to HDF5 volumes (layout volumes).

    Args:
        images: folder of the images, their scribbles and their masks, told apart by the ends of their names.
        num_classes: of the masks, the background among them.
        labels: ends of names, such as "{scribble: _scribble, mask: _manual}".
        output: folder of the volumes.
        label_map: class of every value of the files, such as "{255: 1}".
        orientation: axes of the arrays of a volume, as nibabel names them.
        check: read every input and print the table, and write nothing.
    """
    return table(convert_nifti(images, output, num_classes, labels, label_map, orientation, check))


def report_labels(h5: str, num_classes: int) -> str:
    """Report the share of labeled pixels in a folder of HDF5 files and how often the labels agree with the masks.

    Args:
        h5: the folder.
        num_classes: of the masks, the background among them.
    """
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
