# SPDX-License-Identifier: Apache-2.0
"""fastMRI HDF5 files, read slice by slice so that large multi-coil volumes never lie in memory whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from fedmonai.data.convert.volume import InputError, Volume
from fedmonai.data.kspace_file import damage_named, open_volume, read_header, subject_of
from fedmonai.errors import ConfigError

_CODE = re.compile(r"[A-Za-z0-9_]{1,32}")


@contextmanager
def read_fastmri(path: Path) -> Iterator[Volume]:
    """Open a fastMRI file as a volume; its ISMRMRD header, which may identify a person, is not taken over.

    Raises:
        InputError: not HDF5, or not of fastMRI's form.
    """
    try:
        header = read_header(path)
        with open_volume(path) as file:
            notes = ("the ISMRMRD header is left out",) if "ismrmrd_header" in file else ()
            yield Volume(
                file["kspace"],
                domain="kspace",
                affine=_affine(file),
                target=None if header.target_key is None else file[header.target_key],
                mask=np.asarray(file["mask"], np.float32) if header.has_mask else None,
                acquisition=_code(file.attrs.get("acquisition")),
                warnings=notes,
            )
    except ConfigError as error:
        raise InputError(str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")) from error


def raw_subject(path: Path) -> str | None:
    """The subject id of a fastMRI file (attribute ``patient_id``), None without one or in an unreadable file."""
    try:
        with damage_named(path), open_volume(path) as file:
            return subject_of(file)
    except ConfigError:
        return None  # reading the volume will say what is wrong with it


def _code(value: object) -> str | None:
    return str(value) if value is not None and _CODE.fullmatch(str(value)) else None


def _affine(file: h5py.File) -> np.ndarray | None:
    value = file.attrs.get("affine")
    return np.asarray(value, float) if value is not None and np.shape(value) == (4, 4) else None
