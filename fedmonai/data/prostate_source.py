# SPDX-License-Identifier: Apache-2.0
"""One entry for every form in which prostate cases lie on disk, so that a config chooses by a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedmonai.data.prostate import PROSTATE_SHARES, prostate_cases, prostate_pictures
from fedmonai.errors import ConfigError

__all__ = ["prostate_source"]

LAYOUTS = ("nifti", "pictures")


def prostate_source(
    dataset_dir: str | os.PathLike[str],
    folder: str | Sequence[str],
    split: str = "train",
    layout: str = "nifti",
    case_lists: str | os.PathLike[str] | None = None,
    shares: Sequence[float] = PROSTATE_SHARES,
    seed: int = 0,
    labeled: bool = True,
    label_suffix: str = "_segmentation",
) -> list[dict[str, str]]:
    """List the cases of a split: :func:`fedmonai.data.prostate.prostate_cases` or :func:`fedmonai.data.prostate.prostate_pictures`.

    Args:
        dataset_dir: folder of the federation.
        folder: the site's folder in it (``.`` for ``dataset_dir`` itself); several are pooled.
        split: ``train``, ``val``, ``test`` or ``all``; for pictures any folder of the site.
        layout: ``nifti`` (``CaseXX.nii.gz`` with a mask beside it) or ``pictures`` (``<split>/image/*.png``).
        case_lists: folder with ``<split>.txt`` in place of the site's own lists; for one site of NIfTI cases.
        shares: of train, val and test, where no list is written.
        seed: of that choice.
        labeled: False does not look for masks at all.
        label_suffix: what a mask's name has behind the case's (NIfTI).

    Raises:
        ConfigError: an unknown layout, and what the two functions raise.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: '{layout}' is unknown; choose one of {', '.join(LAYOUTS)}.")
    if layout == "nifti":
        lists = None if case_lists is None or split == "all" else Path(case_lists) / f"{split}.txt"
        return prostate_cases(dataset_dir, folder, split, lists, shares, seed, labeled, label_suffix)
    if case_lists is not None:
        raise ConfigError("case_lists: pictures are split by folders; set case_lists to null.")
    folders = [folder] if isinstance(folder, str) else list(folder)
    entries = []
    for name in folders:
        prefix = f"{name}_" if len(folders) > 1 else ""
        for entry in prostate_pictures(dataset_dir, name, split, labeled):
            entries.append({**entry, "volume": prefix + entry["volume"]})
    return entries
