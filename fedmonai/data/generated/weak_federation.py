# SPDX-License-Identifier: Apache-2.0
"""Five-site federations of generated fundus and angiography pictures in the file layout of FedICRA's release.

The pictures are for trying methods and for tests. A number reached on them says nothing about patients' images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedmonai.data.generated.folder import generated_folder
from fedmonai.data.generated.fundus import FUNDUS_CLASSES, FUNDUS_SITES, draw_fundus
from fedmonai.data.generated.octa import OCTA_CLASSES, OCTA_SITES, draw_octa
from fedmonai.data.weak.labels import write_release_file
from fedmonai.errors import ConfigError
from fedmonai.io import InputPath, OutputPath
from fedmonai.seeding import stream
from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_labels

__all__ = [
    "generated_fundus_site",
    "generated_octa_site",
]

#: Part of the manifest; a change of the pictures comes with a new number.
VERSION = 1
_SPLITS = ("train", "val", "test")
_SIZES = (32, 2048)

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Task:
    """What is drawn: ``images`` are the usual training, validation and test pictures of each site."""

    name: str
    draw: Callable[[np.random.RandomState, Any, int], tuple[np.ndarray, np.ndarray]]
    styles: Sequence[Any]
    num_classes: int
    images: Sequence[tuple[int, int, int]]


_FUNDUS = _Task(
    "fundus",
    draw_fundus,
    FUNDUS_SITES,
    FUNDUS_CLASSES,
    ((10, 6, 8), (20, 6, 8), (32, 6, 8), (32, 6, 8), (20, 6, 8)),
)
_OCTA = _Task("octa", draw_octa, OCTA_SITES, OCTA_CLASSES, ((24, 6, 8), (15, 6, 8), (20, 6, 8), (40, 6, 8), (6, 6, 8)))


def generated_fundus_site(
    root: OutputPath, domain: int, images: Sequence[int] | None = None, size: int = 384, seed: int = 0
) -> InputPath:
    """Return ``<root>/Domain<domain>``, a site of fundus-like pictures, which is generated if it is not there.

    Files are ``<train|val|test>/*.h5``, one picture each, with ``image`` float32 ``(3, size, size)`` of 256 levels and
    ``mask`` uint8 (0 background, 1 cup, 2 rim); training files also hold all weak labels, in which 3 is unlabeled, as
    in the release (which has no ``val``). Sites differ in color, camera, size of disc and cup, and number of pictures.

    A picture depends on (seed, task, site, split, its number, size), not on how many others there are.

    Args:
        root: folder of the federation.
        domain: 1 to 5.
        images: numbers for train, val and test; None takes the site's usual ones.
        size: rows and columns.
        seed: of everything.

    Raises:
        ConfigError: an argument out of range; the folder holds other data, or was generated with other arguments.
    """
    return _site(_FUNDUS, root, domain, images, size, seed)


def generated_octa_site(
    root: OutputPath, domain: int, images: Sequence[int] | None = None, size: int = 256, seed: int = 0
) -> InputPath:
    """Return ``<root>/Domain<domain>``, a site of angiography-like pictures, which is generated if it is not there.

    ``image`` is float32 ``(size, size)``, ``mask`` uint8 (0 background, 1 avascular zone), 2 is unlabeled. Sites differ
    in field of view, contrast, noise and motion of the device. All else is as in :func:`generated_fundus_site`.
    """
    return _site(_OCTA, root, domain, images, size, seed)


def _site(task: _Task, root: PathLike, domain: int, images: Sequence[int] | None, size: int, seed: int) -> str:
    if domain not in range(1, len(task.styles) + 1):
        raise ConfigError(f"domain: {domain} is unknown; generated sites are 1 to {len(task.styles)}.")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ConfigError(f"size: {size} is outside {_SIZES[0]} to {_SIZES[1]}, the sides of generated pictures.")
    counts = list(task.images[domain - 1] if images is None else images)
    if len(counts) != len(_SPLITS) or min(counts) < 1:
        raise ConfigError(f"images: {images} is not three numbers >= 1; give those of train, val and test.")
    parameters = {
        "generator": task.name,
        "version": VERSION,
        "domain": domain,
        "images": counts,
        "size": size,
        "seed": seed,
    }
    folder = Path(root) / f"Domain{domain}"
    return str(generated_folder(folder, parameters, partial(_write_site, task=task, parameters=parameters)))


def _write_site(folder: Path, task: _Task, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Write the pictures of one site; returns its style, for the reader of the manifest."""
    domain, size = parameters["domain"], parameters["size"]
    style = task.styles[domain - 1]
    plan = [
        (split, number) for split, count in zip(_SPLITS, parameters["images"], strict=True) for number in range(count)
    ]
    # disable=None: a bar on a terminal only
    for split, number in tqdm(plan, f"{task.name} site {domain}", disable=None, leave=False):
        image, mask = task.draw(stream(parameters["seed"], task.name, domain, split, number), style, size)
        labels = {"mask": mask}
        if split == "train":
            labels |= weak_labels(mask, ANNOTATIONS, task.num_classes)
        path = folder / split / f"{task.name}{domain}_{split}_{number:04d}.h5"
        # 256 levels, like the picture files the release was made from
        write_release_file(path, np.round(255 * image), labels)
    return {"style": asdict(style)}
