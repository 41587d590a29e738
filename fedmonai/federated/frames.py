# SPDX-License-Identifier: Apache-2.0
"""Frames: tensors and plain values as bytes of a stream, without pickle and without a copy besides the stream's own."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fedmonai.errors import ConfigError, first_line

__all__ = ["digest_of", "read_frame", "write_frame"]

_LENGTH = struct.Struct("<Q")
#: far above the names of every network, far below what fills a memory
_LONGEST_HEAD, _MOST_BYTES = 1 << 28, 1 << 40
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a set of tensors: over the name, type, shape and bytes of each, in the order of the names.

    Example:
        >>> one, other = digest_of({"a": torch.zeros(2), "b": torch.ones(())}), digest_of({"a": torch.zeros(1, 2)})
        >>> len(one), one == other, one == digest_of({"b": torch.ones(()), "a": torch.zeros(2)})
        (64, False, True)
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        head = json.dumps(_described(name, tensor)).encode()
        found.update(_LENGTH.pack(len(head)))
        found.update(head)
        found.update(_content(tensor))
    return found.hexdigest()


def write_frame(stream: BinaryIO, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write one frame: the length of its head, the head as JSON (plain values; names, types, shapes), the tensors."""
    described = [_described(name, tensor) for name, tensor in tensors.items()]
    head = json.dumps({"plain": plain, "tensors": described}).encode()
    stream.write(_LENGTH.pack(len(head)))
    stream.write(head)
    for tensor in tensors.values():
        stream.write(_content(tensor))
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The next frame, ``None`` at the end of the stream or inside a frame that was cut off.

    Raises:
        ConfigError: when it is no frame.
    """
    start = stream.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    if length > _LONGEST_HEAD:
        raise ConfigError(f"a frame says that its head has {length} bytes; it is damaged.")
    text = stream.read(length)
    if len(text) < length:
        return None
    try:
        head = json.loads(text)
        plain, empty = dict(head["plain"]), {name: _empty(kind, shape) for name, kind, shape in head["tensors"]}
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(f"a frame cannot be read ({type(error).__name__}: {first_line(error)}).") from error
    for tensor in empty.values():
        content = _content(tensor)  # the memory of the tensor itself
        if content.nbytes and not _filled(stream, content):
            return None
    return empty, plain


def _described(name: str, tensor: Tensor) -> list[Any]:
    return [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy if it is in the CPU's memory."""
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _empty(kind: str, shape: list[int]) -> Tensor:
    if not all(isinstance(length, int) and length >= 0 for length in shape) or math.prod(shape) > _MOST_BYTES:
        raise ValueError(f"a tensor has the shape {str(shape)[:100]}")
    return torch.empty(shape, dtype=_DTYPES[kind])


def _filled(stream: Any, content: memoryview) -> bool:
    """Read until ``content`` is full; false when the stream ends before."""
    done = 0
    while done < content.nbytes:
        count = stream.readinto(content[done:])
        if not count:
            return False
        done += count
    return True
