# SPDX-License-Identifier: Apache-2.0
"""Lists of prostate cases: the public six-site set, folders of NIfTI files, folders of slice pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmonai.data.cases.read import NIFTI_SUFFIXES
from fedmonai.data.partition import SPLITS, split_subjects
from fedmonai.data.pictures import PICTURE_SUFFIXES
from fedmonai.errors import ConfigError, first_line
from fedmonai.io import FileName, InputEntries, InputPath, write_text
from fedmonai.names import as_list

__all__ = [
    "PROSTATE_FRACTIONS",
    "PROSTATE_SITES",
    "prostate_cases",
    "prostate_pictures",
    "prostate_source",
    "write_case_lists",
]


PathLike = str | os.PathLike[str]
PROSTATE_SITES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")
#: train, val and test; the sites' 12, 12, 19, 30, 30 and 13 cases become the paper's 7/2/3, 12/3/4, 19/5/6 and 8/2/3
PROSTATE_FRACTIONS = (0.62, 0.17, 0.21)


def prostate_cases(
    dataset_dir: PathLike,
    site: str | Sequence[str],
    split: str = "train",
    case_list: PathLike | None = None,
    split_fractions: Sequence[float] = PROSTATE_FRACTIONS,
    seed: int = 0,
    labeled: bool = True,
    label_suffix: str = "_segmentation",
) -> list[dict[str, str]]:
    """List the cases ``<dataset_dir>/<site>/CaseXX.nii.gz`` with their masks ``CaseXX_segmentation.nii.gz``.

    A split comes from ``case_list``, else from ``<dataset_dir>/<site>/<split>.txt`` (one case per line, see
    :func:`write_case_lists`), else the cases are assigned at random with ``seed``. All slices of a case stay together.

    Args:
        dataset_dir: folder of the federation.
        site: folder of the site; several are pooled, and their volumes named ``<site>_<case>``.
        split: ``train``, ``val``, ``test``, or ``all``.
        case_list: text file of the split's cases; for a single site.
        split_fractions: of train, val and test, where there is no list.
        seed: of that choice.
        labeled: False does not look for masks at all, and no entry has one: the only form that test-time adaptation
            may be given.
        label_suffix: ending of a mask's name after the case's; upper and lower case do not matter.

    Returns:
        One dict per case, in name order: ``image`` (path), ``label`` (path, unless ``labeled`` is False), ``volume``.

    Raises:
        ConfigError: missing folder, list, case or mask, a case in two lists, an empty split.
    """
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"split: '{split}' is unknown; choose one of {', '.join(SPLITS)} or all.")
    sites = as_list(site)
    if case_list is not None and len(sites) != 1:
        raise ConfigError(f"case_list: one list cannot serve {len(sites)} sites; write <site>/<split>.txt files.")
    entries = []
    for name in sites:
        folder = Path(dataset_dir) / name
        images = case_images(folder)
        chosen = _chosen(folder, list(images), split, case_list, split_fractions, seed)
        masks = _masks(folder, chosen, label_suffix) if labeled else {}
        prefix = f"{name}_" if len(sites) > 1 else ""
        for case in chosen:
            entry = {"image": str(images[case]), "volume": prefix + case}
            entries.append(entry | ({"label": str(masks[case])} if labeled else {}))
    return entries


def prostate_pictures(
    dataset_dir: PathLike, site: str, split: str = "train", labeled: bool = True
) -> list[dict[str, str]]:
    """List slice pictures ``<dataset_dir>/<site>/<split>/image/*.png`` with ``.../mask/*.png`` of the same name.

    Every picture is a case of one slice, named ``<split>_<stem>``. Published pictures of the six sites have inverted
    masks (0 = prostate): read them with ``inverted=True`` of :class:`fedmonai.data.cases.dataset.CaseSliceDataset`.

    Args:
        dataset_dir: folder of the federation.
        site: folder of the site.
        split: folder within it, or ``all`` for every one there is.
        labeled: False does not look for masks at all.

    Raises:
        ConfigError: missing folder, no pictures, a picture without mask.
    """
    root = Path(dataset_dir) / site
    splits = [split] if split != "all" else [name for name in SPLITS if (root / name).is_dir()]
    entries = []
    for name in splits:
        folder = root / name / "image"
        pictures = _files(folder, PICTURE_SUFFIXES) if folder.is_dir() else []
        if not pictures:
            raise ConfigError(f"dataset_dir: no pictures in {folder}; expected <site>/<split>/image/*.png.")
        for picture in pictures:
            entry = {"image": str(picture), "volume": f"{name}_{picture.stem}"}
            if labeled:
                mask = root / name / "mask" / picture.name
                if not mask.is_file():
                    raise ConfigError(f"{picture} has no mask: expected {mask}.")
                entry["label"] = str(mask)
            entries.append(entry)
    if not entries:
        raise ConfigError(f"dataset_dir: {root} has none of the folders {', '.join(SPLITS)}.")
    return entries


def write_case_lists(
    dataset_dir: PathLike, site: str, split_fractions: Sequence[float] = PROSTATE_FRACTIONS, seed: int = 0
) -> dict[str, list[str]]:
    """Assign the cases of a site at random and write ``train.txt``, ``val.txt`` and ``test.txt`` into its folder.

    Returns:
        The cases of each split. Lists that exist are kept and returned as they are.

    Raises:
        ConfigError: missing folder, no cases, or fewer cases than splits.
    """
    folder = Path(dataset_dir) / site
    cases = list(case_images(folder))
    written = _written_lists(folder, cases)
    if written is None:
        assigned = split_subjects(cases, split_fractions, seed)
        written = {split: [case for case in cases if assigned[case] == split] for split in SPLITS}
        for split, chosen in written.items():
            write_text("".join(f"{case}\n" for case in chosen), folder / f"{split}.txt")
    return written


def case_images(folder: Path) -> dict[str, Path]:
    """Case name to image file. A file named after another one (``Case00_segmentation``) is not an image.

    Raises:
        ConfigError: missing folder or no NIfTI file in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"dataset_dir: {folder} is not a folder; expected one of CaseXX.nii.gz with their masks.")
    stems = {case_name(path): path for path in _files(folder, NIFTI_SUFFIXES)}
    if not stems:
        raise ConfigError(f"dataset_dir: {folder} holds no .nii.gz; expected CaseXX.nii.gz with their masks.")
    derived = {
        stem for stem in stems if any(stem[:end] in stems for end, letter in enumerate(stem) if end and letter == "_")
    }
    return {stem: path for stem, path in stems.items() if stem not in derived}


def mask_of(image: Path, label_suffix: str) -> Path | None:
    """The mask beside an image, None if there is none."""
    wanted = (case_name(image) + label_suffix).lower()
    return next((path for path in _files(image.parent, NIFTI_SUFFIXES) if case_name(path).lower() == wanted), None)


def case_name(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.iterdir() if path.name.lower().endswith(suffixes))
    return sorted(path for path in found if not path.name.startswith("."))


def _masks(folder: Path, cases: Sequence[str], label_suffix: str) -> Mapping[str, Path]:
    files = {case_name(path).lower(): path for path in _files(folder, NIFTI_SUFFIXES)}
    masks = {case: files.get((case + label_suffix).lower()) for case in cases}
    missing = [case for case, mask in masks.items() if mask is None]
    if missing:
        raise ConfigError(
            f"{folder}: no mask '{missing[0]}{label_suffix}.nii.gz' ({len(missing)} missing); "
            "fedmonai prepare prostate --check lists all problems of the dataset."
        )
    return {case: mask for case, mask in masks.items() if mask is not None}


def _chosen(
    folder: Path,
    cases: list[str],
    split: str,
    case_list: PathLike | None,
    split_fractions: Sequence[float],
    seed: int,
) -> list[str]:
    if case_list is not None:
        chosen = _read_list(Path(case_list), cases)
    elif split == "all":
        chosen = cases
    else:
        written = _written_lists(folder, cases)
        if written is not None:
            chosen = written[split]
        else:
            assigned = split_subjects(cases, split_fractions, seed)
            chosen = [case for case in cases if assigned[case] == split]
    if not chosen:
        raise ConfigError(f"split '{split}' of {folder} is empty; change the lists or split_fractions.")
    return chosen


def _written_lists(folder: Path, cases: Sequence[str]) -> dict[str, list[str]] | None:
    """The three ``<split>.txt`` of a site; None if it has none."""
    paths = {split: folder / f"{split}.txt" for split in SPLITS}
    if not any(path.is_file() for path in paths.values()):
        return None
    lists = {split: _read_list(path, cases) for split, path in paths.items()}
    named: dict[str, str] = {}
    for split, chosen in lists.items():
        for case in chosen:
            if named.setdefault(case, split) != split:
                raise ConfigError(f"{paths[split]}: {case} is in '{named[case]}' as well; a case has one split.")
    return lists


def _read_list(path: Path, cases: Sequence[str]) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"case list {path} cannot be read ({first_line(error, 100)}).") from error
    named = {case_name(Path(line.strip())) for line in lines if line.strip() and not line.lstrip().startswith("#")}
    unknown = sorted(named - set(cases))
    if unknown:
        raise ConfigError(f"{path}: no image of case '{unknown[0]}' ({len(unknown)} missing); it has {cases[:3]} ...")
    return [case for case in cases if case in named]


LAYOUTS = ("nifti", "pictures")


def prostate_source(
    dataset_dir: InputPath,
    folder: FileName | Sequence[FileName],
    split: FileName = "train",
    layout: str = "nifti",
    case_lists: InputPath | None = None,
    split_fractions: Sequence[float] = PROSTATE_FRACTIONS,
    seed: int = 0,
    labeled: bool = True,
    label_suffix: FileName = "_segmentation",
) -> InputEntries:
    """List the cases of a split: :func:`prostate_cases` or :func:`prostate_pictures`.

    Args:
        dataset_dir: folder of the federation.
        folder: the site's folder in it (``.`` for ``dataset_dir`` itself); several are pooled.
        split: ``train``, ``val``, ``test`` or ``all``; for pictures any folder of the site.
        layout: ``nifti`` (``CaseXX.nii.gz`` with a mask beside it) or ``pictures`` (``<split>/image/*.png``).
        case_lists: folder with ``<split>.txt`` in place of the site's own lists; for one site of NIfTI cases.
        split_fractions: of train, val and test, where no list is written.
        seed: of that choice.
        labeled: False does not look for masks at all.
        label_suffix: ending of a mask's name after the case's (NIfTI).

    Raises:
        ConfigError: an unknown layout, and what the two functions raise.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: '{layout}' is unknown; choose one of {', '.join(LAYOUTS)}.")
    if layout == "nifti":
        lists = None if case_lists is None or split == "all" else Path(case_lists) / f"{split}.txt"
        return prostate_cases(dataset_dir, folder, split, lists, split_fractions, seed, labeled, label_suffix)
    if case_lists is not None:
        raise ConfigError("case_lists: pictures are split by folders; set case_lists to null.")
    folders = as_list(folder)
    entries = []
    for name in folders:
        prefix = f"{name}_" if len(folders) > 1 else ""
        for entry in prostate_pictures(dataset_dir, name, split, labeled):
            entries.append({**entry, "volume": prefix + entry["volume"]})
    return entries
