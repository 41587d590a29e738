# SPDX-License-Identifier: Apache-2.0
"""Memory of the updates of a round, used again by the next one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["UpdateBuffers"]


class UpdateBuffers:
    """Lends sets of tensors for one round; fresh memory of a network's size costs more than the copy into it.

    There are as many sets as sites take part in the largest round, which is what the updates of that round need anyway.
    """

    def __init__(self) -> None:
        self._free: list[dict[str, Tensor]] = []
        self._lent: list[dict[str, Tensor]] = []

    def take(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with the keys, shapes, types and devices of ``reference`` and unknown values, lent until the end."""
        for index, buffers in enumerate(self._free):
            if _fit(buffers, reference):
                self._lent.append(self._free.pop(index))
                break
        else:
            self._lent.append({key: torch.empty_like(tensor) for key, tensor in reference.items()})
        return dict(self._lent[-1])

    def end_round(self) -> None:
        """Everything that was lent may be written over from now on."""
        self._free += self._lent
        self._lent = []


def _fit(buffers: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    return buffers.keys() == reference.keys() and all(
        (b.shape, b.dtype, b.device) == (reference[k].shape, reference[k].dtype, reference[k].device)
        for k, b in buffers.items()
    )
