# SPDX-License-Identifier: Apache-2.0
"""Shared tensors: memory that two processes map, so that weights pass between them with one copy."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["SharedTensors"]

#: alignment of a tensor's first byte: enough for every type and a cache line
_ALIGNMENT = 64
Place = list[Any]


class SharedTensors:
    """Tensors in anonymous shared memory: one process places them, others view them by where they lie.

    The memory has no name in any folder (a ``memfd``, or a file without one): it is gone with the last process that has
    its descriptor, however that process ends, and the limit of ``/dev/shm`` in a container does not count. Whoever has
    the descriptor may read and write.

    A place is ``[first byte, type, shape, stamp]``, plain values; every write has a new stamp.

    Args:
        descriptor: of memory that another process has made; ``None`` makes new memory.

    Example:
        >>> memory = SharedTensors()
        >>> (places,) = memory.place([{"weight": torch.arange(3)}])
        >>> places
        {'weight': [0, 'int64', [3], 1]}
        >>> other = SharedTensors(os.dup(memory.descriptor))
        >>> other.view(places)["weight"]
        tensor([0, 1, 2])
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _anonymous() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        self._stamp = self._end = 0
        #: what the last replace has placed; the tensors are held, so that no other one can have their memory
        self._held: dict[tuple[Any, ...], tuple[Tensor, int, Place]] = {}

    def clear(self) -> None:
        """Begin anew: tensors placed from now on may overwrite all that were placed before."""
        self._end, self._held = 0, {}

    def place(self, contents: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Place]]:
        """Copy tensors to the end of those already placed; one that is in several dicts is copied once.

        Returns:
            the place of each tensor.
        """
        contents = list(contents)
        places = {}
        for key, tensor in _different(contents).items():
            places[key] = self._copied(tensor, self._end)
            self._end += _size(tensor)
        return [{name: places[_key(tensor)] for name, tensor in tensors.items()} for tensors in contents]

    def replace(self, contents: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Place]]:
        """Replace all placed tensors by these; one that is placed already and has not changed is not copied again.

        Returns:
            the place of each tensor; one that stays keeps its stamp.
        """
        contents = list(contents)
        wanted = _different(contents)
        held = {key: self._held[key] for key, tensor in wanted.items() if self._is_there(key, tensor)}
        gaps = _gaps([(place[0], place[0] + _size(tensor)) for tensor, _, place in held.values()])
        for key, tensor in wanted.items():
            if key not in held:
                size = _size(tensor)
                gap = next(gap for gap in gaps if gap[1] - gap[0] >= size)
                held[key] = (tensor, _version(tensor), self._copied(tensor, int(gap[0])))
                gap[0] += size
        self._held = held
        return [{name: held[_key(tensor)][2] for name, tensor in tensors.items()} for tensors in contents]

    def _is_there(self, key: tuple[Any, ...], tensor: Tensor) -> bool:
        """Whether a tensor was not written to since it was copied, by its version counter and by its bytes."""
        if key not in self._held:
            return False
        _, version, place = self._held[key]
        return version == _version(tensor) and torch.equal(_bytes(self._seen(place)), _bytes(tensor.detach().cpu()))

    @torch.no_grad()
    def _copied(self, tensor: Tensor, first: int) -> Place:
        self._stamp += 1
        place = [first, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), self._stamp]
        if first + _size(tensor) > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, first + _size(tensor))
        self._seen(place).copy_(tensor)
        return place

    def view(self, places: Mapping[str, Place]) -> dict[str, Tensor]:
        """The tensors at places, without a copy: they change when something else is placed there."""
        return {name: self._seen(place) for name, place in places.items()}

    def _seen(self, place: Place) -> Tensor:
        first, kind, shape, _ = place
        dtype: torch.dtype = getattr(torch, kind)
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._map is None or first + count * dtype.itemsize > len(self._map):
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=first).reshape(shape)

    def close(self) -> None:
        """Close the descriptor; memory that is viewed stays until the last view is gone."""
        self._map = None
        self._held = {}
        os.close(self.descriptor)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedmonai")
    with tempfile.TemporaryFile() as file:  # where there is no such memory, as on macOS
        return os.dup(file.fileno())


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """Identity of a tensor by its memory, for which a message may hold other objects."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _different(contents: Sequence[Mapping[str, Tensor]]) -> dict[tuple[Any, ...], Tensor]:
    return {_key(tensor): tensor for tensors in contents for tensor in tensors.values()}


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _size(tensor: Tensor) -> int:
    """Bytes that a tensor takes, up to where the next one may begin."""
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def _gaps(taken: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Free ranges between places, and all after the last one: [first byte, end]."""
    gaps: list[list[float]] = []
    end = 0
    for first, last in sorted(taken):
        gaps.append([end, first])
        end = max(end, last)
    return [*gaps, [end, inf]]
