# SPDX-License-Identifier: Apache-2.0
"""A random part of a site's training data in batches, drawn apart from the training itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from monai.data import list_data_collate

from fedmonai.errors import ConfigError

__all__ = ["MixingData"]


class MixingData:
    """Batches of a random share of a dataset, in random order; draws from its own generator only.

    Args:
        dataset: training samples as dictionaries, usually without random transforms.
        batch_size: samples per batch.
        share: share of the samples in a pass, in (0, 1]; at least one batch.

    Raises:
        ConfigError: when ``share`` is out of range.
    """

    def __init__(self, dataset: Any, batch_size: int, share: float) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"mixing_share is {share}; give the share of the training data, above 0 and at most 1.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.count = max(round(share * len(dataset)), min(batch_size, len(dataset)))

    def batches(self, generator: np.random.RandomState) -> Iterator[Any]:
        """One pass."""
        chosen = generator.permutation(len(self.dataset))[: self.count].tolist()
        for begin in range(0, len(chosen), self.batch_size):
            yield list_data_collate([self.dataset[index] for index in chosen[begin : begin + self.batch_size]])
