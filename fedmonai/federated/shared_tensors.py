# SPDX-License-Identifier: Apache-2.0
"""Shared tensors: memory of which two processes see the same bytes, so that weights pass between them by one copy."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["SharedTensors"]

#: of a tensor's first byte: enough for every type and a cache line
_ALIGNMENT = 64


class SharedTensors:
    """Tensors in anonymous shared memory: one process places them, others view them by where they lie.

    The memory has no name in any folder (a ``memfd``, or a file without one): it is gone with the last process that has
    its descriptor, however that process ends, and the limit of ``/dev/shm`` in a container does not count. Whoever has
    the descriptor may read and write.

    Args:
        descriptor: of memory that another process has made; ``None`` makes some.

    Example:
        >>> memory = SharedTensors()
        >>> (places,) = memory.place([{"weight": torch.arange(3)}])
        >>> places
        {'weight': [0, 'int64', [3]]}
        >>> other = SharedTensors(os.dup(memory.descriptor))
        >>> other.view(places)["weight"]
        tensor([0, 1, 2])
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _anonymous() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        self._end = 0

    def clear(self) -> None:
        """Begin anew: what is placed from now on is written over what was placed before."""
        self._end = 0

    @torch.no_grad()
    def place(self, contents: Iterable[Mapping[str, Tensor]]) -> list[dict[str, list[Any]]]:
        """Copy tensors behind those that are there; one that stands in several dicts is copied once.

        Returns:
            for each dict where its tensors lie: ``{name: [first byte, type, shape]}``, plain values.
        """
        known: dict[tuple, list[Any]] = {}
        fresh: list[tuple[Tensor, list[Any]]] = []
        places: list[dict[str, list[Any]]] = []
        for tensors in contents:
            places.append({})
            for name, tensor in tensors.items():
                # by what it stands for: a message holds other objects for the same memory
                key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
                if key not in known or not tensor.numel():
                    known[key] = [self._end, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                    fresh.append((tensor, known[key]))
                    self._end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
                places[-1][name] = known[key]
        if self._end > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, self._end)
        for tensor, place in fresh:
            self._seen(place).copy_(tensor)
        return places

    def view(self, places: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """The tensors at places, without a copy: they change when something else is placed there."""
        return {name: self._seen(place) for name, place in places.items()}

    def _seen(self, place: list[Any]) -> Tensor:
        first, kind, shape = place
        dtype: torch.dtype = getattr(torch, kind)
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._map is None or first + count * dtype.itemsize > len(self._map):
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=first).reshape(shape)

    def close(self) -> None:
        """Give the descriptor back; what is viewed stays until nobody views it any more."""
        self._map = None
        os.close(self.descriptor)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedmonai")
    with tempfile.TemporaryFile() as file:  # where there is no such memory, as on macOS
        return os.dup(file.fileno())
