# SPDX-License-Identifier: Apache-2.0
"""What the name of an image file says: contrast, label map, and the subject that several files share."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

__all__ = ["contrast_of", "is_label_name", "shared_beginnings", "subject_part"]

#: how the contrasts of MR images are written in names of files and series (BIDS, BraTS, IXI, fastMRI, scanners)
_CONTRASTS = {
    "T1": "t1|t1w|t1n|t1pre|mprage|mp2rage",
    "T1ce": "t1ce|t1c|t1gd|t1post|t1km",
    "T2": "t2|t2w",
    "FLAIR": "flair|t2f|t2flair|t2wflair",
    "PD": "pd|pdw",
    "T2star": "t2star|t2starw|t2s|swi",
    "DWI": "dwi|dti|trace",
    "ADC": "adc",
    "MRA": "mra|tof|angio",
    "BOLD": "bold|fmri",
}
_OF_WORD = {word: contrast for contrast, words in _CONTRASTS.items() for word in words.split("|")}
_AGENT = {"post", "gd", "gad", "km", "ce"}  # words that make T1 a T1 with contrast agent
_LABELS = {
    *(
        "seg",
        "dseg",
        "segmentation",
        "segmentations",
        "lab",
        "label",
        "labels",
        "labelmap",
        "mask",
        "masks",
        "roi",
        "rois",
    ),
    *("manual", "scribble", "scribbles", "gt", "groundtruth", "annotation", "lesion", "aseg", "aparc", "parcellation"),
}
_APART = re.compile(r"[_\-.\s+]+")
_PLANE = re.compile(r"^(?:ax|cor|sag)(?=t[12]|pd|flair)")  # AXT2, CORPD of fastMRI


def contrast_of(path: str) -> str | None:
    """The contrast that a name states: of the file, else of the nearest folder; None where they state none.

    >>> contrast_of("BraTS19_1/BraTS19_1_t1ce.nii.gz"), contrast_of("T2/IXI012.nii"), contrast_of("brain.nii")
    ('T1ce', 'T2', None)

    Args:
        path: relative path, or the description of a DICOM series.
    """
    for part in reversed(PurePosixPath(path).parts):
        words = _words(part)
        found = [_OF_WORD[word] for word in words if word in _OF_WORD]
        if not found:
            continue
        if part.startswith("sub-"):  # BIDS: only the suffix is the contrast, ``space-T1w`` is not
            return found[-1]
        if "T1" in found and _AGENT & set(words):
            return "T1ce"
        return "FLAIR" if "FLAIR" in found else found[-1]
    return None


def is_label_name(name: str) -> bool:
    """Whether a file's name says that it holds labels: ``..._seg.nii.gz``, ``..._scribble.nii``."""
    return bool(_LABELS & set(_words(name)))


def subject_part(stem: str) -> str:
    """A file's name without the words for contrast and labels; empty where it holds nothing else.

    >>> subject_part("BraTS19_CBICA_BHQ_1_t1"), subject_part("IXI012-Guys-T1"), subject_part("t1")
    ('BraTS19_CBICA_BHQ_1', 'IXI012-Guys', '')
    """
    kept, pieces = "", re.split(r"([_\-.\s+]+)", stem)
    for separator, word in zip(["", *pieces[1::2]], pieces[0::2], strict=True):
        if _PLANE.sub("", word.lower()) not in _OF_WORD and word.lower() not in _LABELS:
            kept += separator + word if kept else word
    return kept


def shared_beginnings(subjects: Iterable[str]) -> dict[str, list[str]]:
    """Subjects whose names differ in the last word only, after one that has a digit, by the part that they share.

    ``patient001_frame01`` and ``patient001_frame12`` may be one person, ``scan_01`` and ``scan_02`` are probably not: a
    part that all subjects share identifies none of them, unless their last words are more than numbers.

    >>> shared_beginnings(["p1_pre", "p1_post", "p2_pre", "p2_post"])
    {'p1': ['p1_post', 'p1_pre'], 'p2': ['p2_post', 'p2_pre']}
    """
    groups: dict[str, list[str]] = defaultdict(list)
    names = sorted(set(subjects))
    for name in names:
        begin = re.match(r"(.*)[_\-.\s+/]", name)
        if begin and begin.group(1):
            groups[begin.group(1)].append(name)
    common = _common_words(names)
    found: dict[str, list[str]] = {}
    for shared, group in groups.items():
        words = re.split(r"[_\-.\s+/]+", shared)
        last = [name[len(shared) + 1 :] for name in group]
        numbered = any(re.search(r"\d", word) for word in words[common:])
        alone = len(group) == len(names) and re.search(r"\d", shared) and not all(word.isdigit() for word in last)
        if len(group) > 1 and (numbered or alone):
            found[shared] = group
    return found


def _common_words(names: list[str]) -> int:
    split = [re.split(r"[_\-.\s+/]+", name) for name in names]
    count = 0
    for words in zip(*split, strict=False):
        if len(set(words)) > 1:
            break
        count += 1
    return count


def _words(name: str) -> list[str]:
    return [_PLANE.sub("", word.lower()) for word in _APART.split(name) if word]
