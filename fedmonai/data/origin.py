# SPDX-License-Identifier: Apache-2.0
"""Where the volumes of a dataset come from: what tells whether two splits share image data or a subject."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.data.case_files import read_case_file
from fedmonai.data.kspace_file import BLOCK, damage_named, open_volume, subject_of
from fedmonai.data.manifest import kspace_digest
from fedmonai.data.weak_sources import IMAGE_KEY, read_dataset, read_picture

__all__ = ["Origin", "case_origin", "kspace_origin", "weak_origin"]


@dataclass(frozen=True)
class Origin:
    """One volume of a dataset; every dataset of ours lists its own with ``origins()``.

    Attributes:
        volume: its name in the dataset.
        content: SHA-256 of the image data alone, the same under every file name, header and compression.
        subject: whose it is, None where the file does not say.
        whole: False for a block of a volume's slices; two blocks of one subject may be in different splits.
    """

    volume: str
    content: str
    subject: str | None = None
    whole: bool = True


def kspace_origin(volume: Mapping[str, Any]) -> Origin:
    """Origin of an entry of :func:`fedmonai.data.volume_list.kspace_volumes`; the subject is the attribute ``patient_id``.

    Pooled folders number their subjects by themselves, so the folder's part of the name is part of the subject.

    Raises:
        ConfigError: a file that cannot be read.
    """
    path, name = volume["kspace"], volume["volume"]
    with damage_named(path), open_volume(path) as file:
        subject, whole = subject_of(file), BLOCK not in file.attrs
    folder = name.removesuffix(Path(path).stem)
    return Origin(name, kspace_digest(path), None if subject is None else folder + subject, whole)


def case_origin(case: Mapping[str, str]) -> Origin:
    """Origin of an entry of :func:`fedmonai.data.prostate.prostate_cases`: the image's voxels, on the grid of the file.

    Raises:
        ConfigError: a file that cannot be read.
    """
    return Origin(case["volume"], _digest(read_case_file(case["image"], orientation=None).values))


def weak_origin(entry: Mapping[str, str]) -> Origin:
    """Origin of an entry of :func:`fedmonai.data.weak_files.weak_files`: the pixels of the image, whatever labels it has.

    Raises:
        ConfigError: a file that cannot be read.
    """
    path, name = entry["image"], entry["volume"]
    if not path.lower().endswith(".h5"):
        return Origin(name, _digest(read_picture(path)))
    with damage_named(path), open_volume(path) as file:
        image = read_dataset(file, IMAGE_KEY)
        return Origin(name, _digest(image[()].reshape(-1, *image.shape[-2:])), subject_of(file))


def _digest(values: np.ndarray) -> str:
    """SHA-256 of shape and values, whatever type they are stored in."""
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()
