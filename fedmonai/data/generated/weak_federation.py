# SPDX-License-Identifier: Apache-2.0
"""Five-site federations of generated fundus and angiography pictures in the file layout of FedICRA's release."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedmonai.data.atomic import write_json
from fedmonai.data.generated.fundus import FUNDUS_CLASSES, FUNDUS_SITES, draw_fundus
from fedmonai.data.generated.octa import OCTA_CLASSES, OCTA_SITES, draw_octa
from fedmonai.data.generated.streams import stream
from fedmonai.data.release_file import stored_recipe, write_release_file
from fedmonai.errors import ConfigError
from fedmonai.transforms.weak_labels import WEAK_FORMS, weak_labels

__all__ = ["generate_fundus_federation", "generate_octa_federation"]

MANIFEST = "generated.json"
VERSION = 1  # raise it whenever the same parameters give other pictures

Counts = int | Sequence[int]
Draw = Callable[[np.random.RandomState, Any, int], tuple[np.ndarray, np.ndarray]]


def generate_fundus_federation(
    dataset_dir: str | os.PathLike[str],
    num_train: Counts = (10, 20, 32, 32, 20),
    num_val: Counts = 6,
    num_test: Counts = 8,
    size: int = 384,
    seed: int = 0,
    progress: bool = True,
) -> str:
    """Write five sites of fundus-like pictures (3 channels; 0 background, 1 cup, 2 rim, 3 unlabeled), once.

    Layout: ``<dataset_dir>/Domain<1..5>/<train|val|test>/*.h5``, one picture per file. Training files hold image, mask
    and all weak labels, the others image and mask, as in the release (which has no ``val``). Sites differ in color,
    camera, size of the disc and cup, and in how many pictures they have.

    Every picture depends on seed, task, site, split and number only, so other counts or sites leave it as it is. Files
    appear atomically and ``generated.json`` comes last: a folder that has it with the same parameters is returned as
    it is; an interrupted run is completed.

    Args:
        dataset_dir: folder of the federation.
        num_train: training pictures, one number or one per site.
        num_val: validation pictures.
        num_test: test pictures.
        size: side of the pictures in pixels, at least 32.
        seed: of everything.
        progress: show a progress bar.

    Returns:
        ``dataset_dir`` as text, for use in configs.

    Raises:
        ConfigError: wrong numbers; the folder holds a federation with other parameters, or files of other origin.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    return _generate(
        Path(dataset_dir), "fundus", draw_fundus, FUNDUS_SITES, FUNDUS_CLASSES, counts, size, seed, progress
    )


def generate_octa_federation(
    dataset_dir: str | os.PathLike[str],
    num_train: Counts = (24, 15, 20, 40, 6),
    num_val: Counts = 6,
    num_test: Counts = 8,
    size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> str:
    """Write five sites of angiography-like pictures (1 channel; 0 background, 1 avascular zone, 2 unlabeled), once.

    Sites differ in field of view, device contrast, noise and motion. Everything else is as in
    :func:`generate_fundus_federation`.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    return _generate(Path(dataset_dir), "octa", draw_octa, OCTA_SITES, OCTA_CLASSES, counts, size, seed, progress)


def _generate(
    root: Path,
    task: str,
    draw: Draw,
    styles: Sequence[Any],
    num_classes: int,
    counts: dict[str, Counts],
    size: int,
    seed: int,
    progress: bool,
) -> str:
    if size < 32:
        raise ConfigError(f"size is {size}; generated pictures have at least 32 pixels per side.")
    numbers = {split: _per_site(split, count, len(styles)) for split, count in counts.items()}
    styles_hash = hashlib.sha256(json.dumps([asdict(style) for style in styles]).encode()).hexdigest()[:16]
    parameters = {"task": task, "version": VERSION, "styles": styles_hash, "size": size, "seed": seed, **numbers}
    if _is_complete(root, parameters):
        return str(root)
    recipe = json.dumps({key: value for key, value in parameters.items() if key not in counts}, sort_keys=True)
    plan = [
        (site, split, number)
        for site in range(len(styles))
        for split in numbers
        for number in range(numbers[split][site])
    ]
    paths = [root / f"Domain{site + 1}" / split / f"{task}_{split}_{number:04d}.h5" for site, split, number in plan]
    _remove_leftovers(root, set(paths))
    for path, (site, split, number) in tqdm(
        zip(paths, plan, strict=True), f"generating {root.name}", len(plan), disable=not progress, leave=False
    ):
        if stored_recipe(path) != recipe:
            image, mask = draw(stream(seed, task, site, split, number), styles[site], size)
            _write(path, image, mask, num_classes if split == "train" else None, recipe)
    write_json(root / MANIFEST, parameters)
    return str(root)


def _per_site(split: str, count: Counts, sites: int) -> list[int]:
    numbers = [count] * sites if isinstance(count, int) else [int(number) for number in count]
    if len(numbers) != sites or min(numbers) < 1:
        raise ConfigError(f"num_{split} is {count}; it needs one number >= 1, or one for each of the {sites} sites.")
    return numbers


def _is_complete(root: Path, parameters: dict[str, Any]) -> bool:
    manifest = root / MANIFEST
    if not manifest.exists():
        return False
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{manifest} is not valid JSON; delete it to complete the federation.") from error
    if found != parameters:
        keys = set(found) | set(parameters) if isinstance(found, dict) else set()
        other = ", ".join(f"{key} {found.get(key)} (asked: {parameters.get(key)})" for key in sorted(keys)
                          if found.get(key) != parameters.get(key))  # fmt: skip
        raise ConfigError(
            f"{root} holds a generated federation with {other or 'other parameters'}; choose another folder."
        )
    return True


def _remove_leftovers(root: Path, planned: set[Path]) -> None:
    """Files of an earlier, interrupted run with other numbers."""
    for path in sorted(root.glob("Domain*/*/*.h5")):
        if path not in planned and stored_recipe(path) is not None:
            path.unlink()


def _write(path: Path, image: np.ndarray, mask: np.ndarray, ignore_index: int | None, recipe: str) -> None:
    """One picture with 256 gray levels (like the PNG files of the release) and its labels."""
    labels = {"mask": mask}
    if ignore_index is not None:
        labels |= weak_labels(mask, WEAK_FORMS, ignore_index)
    write_release_file(path, np.round(255 * image), labels, recipe)
