# SPDX-License-Identifier: Apache-2.0
"""Input files that cannot be used: the error that all readers raise, and the conversion of other errors to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fedmonai.errors import ConfigError, first_line

__all__ = ["InputError", "damage_named", "without_path"]


class InputError(ConfigError):
    """Error of one input file: damaged, of another form, or larger than any scanner makes; other files can be used."""


@contextmanager
def damage_named(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises in this block, which only reads a file, into an :class:`InputError`.

    h5py, nibabel, pydicom, scipy and PIL raise more than a dozen kinds on damaged files, by where the damage is:
    OSError, RuntimeError, KeyError, OverflowError, zlib.error, MemoryError, ... No list of them would be complete, so a
    reader puts the calls of its library, and nothing else, into one such block.

    Args:
        what: what is said of the file, before the reason in brackets.
        remedy: what is said behind it.

    Raises:
        InputError: for every exception but a :class:`ConfigError`, which says already what is wrong.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        named = isinstance(error, OSError) and error.filename is not None  # which file it is, ``what`` says
        reason = error.strerror if named else first_line(error, 120)  # type: ignore[attr-defined]
        raise InputError(f"{what} ({reason}){remedy}") from error


def without_path(error: ConfigError, path: str | os.PathLike[str]) -> str:
    """The text of an error without the path that it begins with, where the file is named by other means."""
    return str(error).removeprefix(str(path)).lstrip(": ")
