# SPDX-License-Identifier: Apache-2.0
"""Picture files (PNG, JPEG, BMP, TIFF) as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedmonai.errors import ConfigError

__all__ = ["PICTURE_SUFFIXES", "open_picture", "picture_size", "read_picture"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_SIDE = 8192  # far above any fundus camera; stops a damaged header from asking for terabytes
_GRAY = ("I", "I;16", "F")  # modes of more than 8 bits, kept as they are


def open_picture(path: str) -> Image.Image:
    """Open a picture and read it to its end, so that a truncated file is found here.

    Raises:
        ConfigError: no file, not a picture, truncated, or larger than 8192 pixels a side.
    """
    try:
        picture = Image.open(path)
        if max(picture.size) > MAX_SIDE:
            raise ConfigError(f"{path} is {picture.size}; expected sides of at most {MAX_SIDE}.")
        picture.load()
        return picture
    except ConfigError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL raises on damage
        reason = "is not a readable picture" if Path(path).exists() else "does not exist"
        raise ConfigError(f"{path} {reason}; restore it or take it out of the list.") from error


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
