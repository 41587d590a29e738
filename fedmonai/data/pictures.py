# SPDX-License-Identifier: Apache-2.0
"""Picture files (PNG, JPEG, BMP, TIFF) as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedmonai.data.damage import InputError, damage_named

__all__ = ["PICTURE_SUFFIXES", "open_picture", "picture_size", "read_picture"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_SIDE = 8192  # far above any fundus camera; stops a damaged header from asking for terabytes
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # of the suffixes; PIL by itself goes by the content and knows forty
_GRAY = ("I", "I;16", "F")  # modes of more than 8 bits, kept as they are


def open_picture(path: str) -> Image.Image:
    """Open a picture and read it to its end, so that a truncated file is found here.

    Raises:
        ConfigError: no file, not a picture, truncated, or larger than 8192 pixels a side.
    """
    remedy = "; restore it or take it out of the list."
    if not Path(path).exists():
        raise InputError(f"{path} does not exist{remedy}")
    with damage_named(f"{path} is not a readable picture", remedy):
        picture = Image.open(path, formats=FORMATS)
        if max(picture.size) > MAX_SIDE:
            raise InputError(f"{path} is {picture.size}; expected sides of at most {MAX_SIDE}.")
        picture.load()
        return picture


def read_picture(path: str, image_channels: int | None = None) -> np.ndarray:
    """Picture file as ``(C, H, W)``; ``image_channels`` 1 or 3 converts, None keeps gray or color as it is.

    Raises:
        ConfigError: as :func:`open_picture`.
    """
    with open_picture(path) as picture:
        if image_channels is None:
            image_channels = 1 if picture.mode in ("1", "L", *_GRAY) else 3
        if image_channels == 3:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        return np.asarray(picture if picture.mode in _GRAY else picture.convert("L"))[None]


def picture_size(path: str) -> tuple[int, int]:
    """Rows and columns of a picture file.

    Raises:
        ConfigError: as :func:`open_picture`.
    """
    with open_picture(path) as picture:
        return picture.height, picture.width
