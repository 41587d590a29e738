# SPDX-License-Identifier: Apache-2.0
"""MATLAB files of version 5 to 7: their numeric arrays, read without native code.

SciPy's reader is compiled and trusts the sizes that a file declares: mutated files of a few hundred bytes end the
process (SIGBUS in ``loadmat``; ``tests/reader_fuzz.py`` found one among 500). Version 7.3 is HDF5 and not read here;
version 4 is refused.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MatArray", "is_mat5", "mat_arrays"]

_HEADER, _MATRIX, _COMPRESSED = 128, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x08  # flag of an array
_MAX_COMPRESSION = 1100  # deflate reaches about 1030:1 on constant data
_HEAD = 4096  # bytes in which flags, dimensions and name of an array lie


@dataclass(frozen=True)
class MatArray:
    """A numeric array of a file, not read yet.

    Attributes:
        name, shape: as MATLAB shows them.
        read: gives the values, in the type of the array's class, complex where it is.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def is_mat5(head: bytes) -> bool:
    """Whether the first 128 bytes of a file are a header of version 5 to 7."""
    return len(head) >= _HEADER and head[126:128] in (b"IM", b"MI") and head[124:126] in (b"\x00\x01", b"\x01\x00")


def mat_arrays(path: str | os.PathLike[str]) -> list[MatArray]:
    """List the numeric arrays of a file; texts, cells, structures, sparse and empty arrays are left out.

    Raises:
        Exception: not a file of version 5 to 7, or damaged: ValueError, KeyError, RuntimeError, struct.error,
            zlib.error, OSError, here or in ``read``.
    """
    content = Path(path).read_bytes()
    if not is_mat5(content):
        raise ValueError("no MATLAB file of version 5 to 7; save it again with -v7, or as .npy")
    order = "<" if content[126:128] == b"IM" else ">"
    found = (_array(kind, payload, order) for kind, payload in _elements(memoryview(content)[_HEADER:], order))
    return [array for array in found if array is not None]


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Kind and payload of each element; one that declares more than the file holds is cut."""
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        if kind >> 16:  # up to four bytes lie in the tag itself
            yield kind & 0xFFFF, content[position + 4 : position + 4 + min(4, kind >> 16)]
            position += 8
            continue
        yield kind, content[position + 8 : position + 8 + size]
        position += 8 + size + (0 if kind == _COMPRESSED else -size % 8)


def _array(kind: int, payload: memoryview, order: str) -> MatArray | None:
    if kind == _COMPRESSED:
        head = memoryview(zlib.decompressobj().decompress(payload, _HEAD))
        inner, size = struct.unpack_from(f"{order}II", head)

        def whole(limit: int) -> memoryview:
            if limit > _HEAD + len(payload) * _MAX_COMPRESSION:
                raise ValueError(f"an array declares {limit:,} bytes but stores {len(payload):,}")
            return memoryview(zlib.decompressobj().decompress(payload, limit + _HEAD))[8 : 8 + size]

        return _described(head[8:], whole, order) if inner == _MATRIX else None
    return _described(payload, lambda limit: payload, order) if kind == _MATRIX else None


def _described(head: memoryview, whole: Callable[[int], memoryview], order: str) -> MatArray | None:
    """An array by its first elements: flags, dimensions, name."""
    parts = _elements(head, order)
    flags = np.frombuffer(next(parts)[1], f"{order}u4")
    form = _CLASSES.get(int(flags[0]) & 0xFF)
    if form is None:
        return None
    shape = tuple(int(side) for side in np.frombuffer(next(parts)[1], f"{order}i4"))
    name = bytes(next(parts)[1]).decode("ascii")
    if len(shape) < 2 or min(shape) < 1 or not name.isidentifier():
        return None
    is_complex = bool(int(flags[0]) >> 8 & _COMPLEX)

    def read() -> np.ndarray:
        count = math.prod(shape)
        values = list(_elements(whole((1 + is_complex) * (8 * count + 16)), order))[3:]
        real, *imaginary = (_numbers(*part, count, order).astype(form) for part in values[: 1 + is_complex])
        data = real + 1j * imaginary[0] if is_complex else real
        return data.reshape(shape, order="F")

    return MatArray(name, shape, read)


def _numbers(kind: int, payload: memoryview, count: int, order: str) -> np.ndarray:
    """The numbers of an element, whose stored type may be narrower than the array's class."""
    numbers = np.frombuffer(payload, f"{order}{_STORED[kind]}")
    if numbers.size != count:
        raise ValueError(f"an array of {count} values holds {numbers.size}")
    return numbers
