# SPDX-License-Identifier: Apache-2.0
"""A second pass over training inputs that leaves the first one's randomness alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["OwnBatches"]


class OwnBatches:
    """Training inputs of a trainer in an order and with masks of its own.

    Dataset, collation and preparation are those of ``trainer``, shuffling and the preparation's randomness come from
    ``seed``: whether these batches are read or not, the trainer's own training is the same to the bit.

    Args:
        trainer: a MONAI trainer with ``data_loader`` and ``prepare_batch``.
        seed: seed of order and masks.
        batch_size: inputs per batch; that of the trainer's loader by default.
    """

    def __init__(self, trainer: Any, seed: int, batch_size: int | None = None) -> None:
        loader = trainer.data_loader
        self.device = trainer.state.device
        self.non_blocking = trainer.non_blocking
        self.prepare_batch = copy.deepcopy(trainer.prepare_batch)
        if hasattr(self.prepare_batch, "set_random_state"):
            self.prepare_batch.set_random_state(seed=seed)
        # MONAI's loader would reseed the dataset's transforms when it is made
        self.loader: DataLoader = DataLoader(
            loader.dataset,
            batch_size=batch_size or loader.batch_size or 1,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
        )

    def once(self) -> Iterator[Tensor]:
        """Every input once, in batches."""
        for batch in self.loader:
            yield self.prepare_batch(batch, self.device, self.non_blocking)[0]

    def endless(self) -> Iterator[Tensor]:
        """All inputs again and again, in a new order each time."""
        while True:
            yield from self.once()
