# SPDX-License-Identifier: Apache-2.0
"""Writing HDF5 files in the layout of FedICRA's release: image, mask and weak labels of one picture or volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from fedmonai.data.atomic import atomic_path
from fedmonai.data.kspace_file import open_volume
from fedmonai.errors import ConfigError

__all__ = ["stored_recipe", "write_release_file"]


def write_release_file(path: Path, image: np.ndarray, labels: Mapping[str, np.ndarray], recipe: str = "") -> None:
    """Write one file atomically.

    Args:
        path: of the file; folders are made.
        image: ``(1, H, W)`` is stored as ``(H, W)``; ``(3, H, W)`` and volumes ``(D, H, W)`` as they are; float32.
        labels: integer labels ``(H, W)``, or ``(D, H, W)`` for a volume, by key (``mask``, ``scribble``, ...).
        recipe: settings the file was made with, found again by :func:`stored_recipe`; left out if empty.
    """
    single = image.shape[0] == 1 and next(iter(labels.values())).ndim == 2
    pixels = np.ascontiguousarray(image[0] if single else image, dtype=np.float32)
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        if recipe:
            file.attrs["recipe"] = recipe
        file.create_dataset("image", data=pixels, compression="gzip", compression_opts=1, shuffle=True)
        for key, label in labels.items():
            file.create_dataset(key, data=label, compression="gzip", compression_opts=1)


def stored_recipe(path: Path) -> str | None:
    """The recipe a file was written with, None if there is no file.

    Raises:
        ConfigError: the file has no recipe; it is never overwritten.
    """
    if not path.exists():
        return None
    with open_volume(path) as file:
        recipe = file.attrs.get("recipe")
    if recipe is None:
        raise ConfigError(f"{path} was not made here and is not overwritten; choose an empty folder.")
    return str(recipe)
