# SPDX-License-Identifier: Apache-2.0
"""Batch sampler that begins a round where the round before ended, and the handler that keeps its position."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from ignite.engine import Engine, Events
from torch.utils.data import Sampler

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import SiteHandler
from fedmonai.seeding import stream

__all__ = ["ResumableBatchSampler", "ResumablePosition"]


class ResumableBatchSampler(Sampler[list[int]]):
    """Batch sampler whose order depends on (seed, site, pass over the data) and on how many iterations were made.

    With ``continue_epoch`` a round takes up where the round before it ended, and the data are shuffled anew when all
    have been seen, as in FedICRA's program. Without, every round shuffles anew: a round of fewer iterations than a pass
    then misses some data and may repeat others in the next. The last batch of a pass may be smaller.

    The place is computed from the number of iterations made before (:meth:`begin`), not remembered: data that workers
    have fetched in advance do not count, and a restarted or repeated round sees the same batches.

    Args:
        data_source: the dataset; its length counts.
        batch_size: samples per batch.
        seed: base seed.
        site: name of the site; other sites' orders do not depend on it.
        continue_epoch: whether a round continues in the data.

    Example:
        >>> sampler = ResumableBatchSampler(range(5), batch_size=2)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4]
        >>> sampler.begin(1)
        >>> [len(batch) for batch in sampler]
        [2, 1]

    Raises:
        ConfigError: on an empty dataset or a batch size below 1.
    """

    def __init__(
        self, data_source: Sized, batch_size: int, seed: int = 0, site: str = "site", continue_epoch: bool = True
    ) -> None:
        if batch_size < 1 or len(data_source) < 1:
            raise ConfigError(f"batch_size is {batch_size} for {len(data_source)} samples; both must be at least 1.")
        self.data_source, self.size = data_source, len(data_source)
        self.batch_size = batch_size
        self.key = (seed, site, "order")
        self.continue_epoch = continue_epoch
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Begin a round after ``iteration`` iterations of earlier rounds."""
        self._round = 0 if self.continue_epoch else iteration
        self._pass, self._skip = divmod(iteration, len(self)) if self.continue_epoch else (0, 0)

    def __len__(self) -> int:
        """Batches of one pass."""
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """What is left of the pass; the next call begins the next pass."""
        # lazy on purpose: a loader with workers asks for two iterators and draws from the second only
        order = stream(*self.key, self._round, self._pass).permutation(self.size).tolist()
        begins = range(self._skip * self.batch_size, self.size, self.batch_size)
        self._pass, self._skip = self._pass + 1, 0
        for begin in begins:
            yield order[begin : begin + self.batch_size]


class ResumablePosition(SiteHandler):
    """Handler that tells the sampler at the start of a round how many iterations the site has made before.

    A site keeps that number over rounds, restarts and failures, so the sampler needs no state of its own.

    Args:
        sampler: the trainer's.
    """

    def __init__(self, sampler: ResumableBatchSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.begin(engine.state.iteration)
