# SPDX-License-Identifier: Apache-2.0
"""Metrics of whole volumes over engines that work slice by slice: the base that collects the slices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["VolumeMetric"]

_NO_VOLUME = "\x1f"
Batch = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class VolumeMetric(Metric):
    """Base of the metrics of whole volumes: scores a volume once all its slices have passed, then takes the mean.

    Reads ``pred`` and ``label`` (batch first) of ``engine.state.output`` and ``volume``, ``num_slices`` and, where
    present, ``slice`` of ``engine.state.batch``, collated or decollated. Slices may come in any order and a batch may
    mix volumes; with ``slice`` they are sorted by it before scoring. A finished volume keeps its number only, so
    memory holds the volumes under way. Writes ``{volume: score}`` to ``engine.state.metric_details[name]`` and the
    mean over the volumes to ``engine.state.metrics[name]``.

    A subclass implements :meth:`score` and may shrink what is kept of a slice in :meth:`prepare`. In a multi-process
    evaluation each process must hold whole volumes; the scores are then gathered from all of them.

    >>> class LargestError(VolumeMetric):
    ...     def score(self, pred, label, info):
    ...         return float((pred - label).abs().max())
    >>> metric, batch = LargestError(), {"volume": ["a", "a"], "num_slices": [2, 2], "slice": [1, 0]}
    >>> metric.update(({"pred": torch.ones(2, 1, 4, 4), "label": torch.zeros(2, 1, 4, 4)}, batch))
    >>> metric.compute()
    1.0

    Raises:
        ConfigError: a label is missing, or the batch does not say which volume a slice belongs to.
    """

    batch_keys: tuple[str, ...] = ()
    """Further keys of the batch that :meth:`score` needs (taken from the volume's first slice)."""

    def __init__(self) -> None:
        self._slices: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._values: dict[str, float] = {}
        super().__init__()

    def score(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        """Return the number for one volume; ``pred`` and ``label`` are (slices, channels, H, W).

        ``info`` holds ``volume`` and the :attr:`batch_keys` of the volume, None for a key that the batch lacks.
        """
        raise NotImplementedError

    def prepare(self, pred: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn one slice's (channels, H, W) tensors into what is kept until the volume is complete."""
        return pred, label

    def reset(self) -> None:
        self._slices = {}
        self._info = {}
        self._values = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Collect the slices of ``engine.state`` after an iteration (called by ignite)."""
        self.update((engine.state.output, engine.state.batch))  # type: ignore[arg-type]

    @torch.no_grad()
    def update(self, output: tuple[Batch, Batch]) -> None:
        """Take one (output, batch) pair of an engine."""
        result, batch = output
        size = len(result) if isinstance(result, Sequence) else len(result["pred"])
        for index in range(size):
            label = _item(result, "label", index)
            if label is None:
                raise ConfigError(
                    f"{type(self).__name__} needs labels, but the evaluated data have none: "
                    "evaluate labeled data or leave the metric out"
                )
            self._collect(_item(result, "pred", index), label, batch, index)

    def _collect(self, pred: Tensor, label: Tensor, batch: Batch, index: int) -> None:
        volume = _item(batch, "volume", index)
        total = _item(batch, "num_slices", index)
        if volume is None or total is None:
            raise ConfigError(
                f"{type(self).__name__} needs the keys 'volume' and 'num_slices' in every batch: "
                "use a slice dataset of fedmonai.data or add the two keys in preprocessing"
            )
        slices = self._slices.get(volume, {})
        position = _item(batch, "slice", index)
        position = len(slices) if position is None else int(position)
        if volume in self._values or position in slices:
            warnings.warn(f"slice {position} of volume {volume} was evaluated twice; the first one counts")
            return
        self._slices[volume] = slices
        if volume not in self._info:
            self._info[volume] = {key: _item(batch, key, index) for key in ("volume", *self.batch_keys)}
        slices[position] = self.prepare(pred.detach(), label.detach())
        if len(slices) == int(total):
            self._finish(volume)

    def _finish(self, volume: str) -> None:
        slices = self._slices.pop(volume)
        ordered = [slices[position] for position in sorted(slices)]
        pred = torch.stack([pair[0] for pair in ordered])
        label = torch.stack([pair[1] for pair in ordered])
        self._values[volume] = float(self.score(pred, label, self._info.pop(volume)))

    def compute(self) -> float:
        """Return the mean over the volumes; incomplete ones are scored on the slices seen, with a warning."""
        with torch.no_grad():
            for volume in list(self._slices):
                seen = len(self._slices[volume])
                warnings.warn(f"{type(self).__name__}: only {seen} slices of volume {volume} were evaluated")
                self._finish(volume)
        self._values = _gather(self._values)
        if not self._values:
            raise NotComputableError(f"{type(self).__name__} saw no volume")
        return sum(self._values.values()) / len(self._values)

    def completed(self, engine: Engine, name: str) -> None:
        """Write the mean and the value of every volume to ``engine.state`` (called by ignite)."""
        super().completed(engine, name)
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}  # type: ignore[attr-defined]
        engine.state.metric_details[name] = dict(self._values)  # type: ignore[attr-defined]


def _item(data: Batch, key: str, index: int) -> Any:
    """Entry ``index`` of ``key`` in a collated mapping or in a list of per-example mappings; None if absent."""
    if isinstance(data, Mapping):
        values = data.get(key)
        return None if values is None else values[index]
    return data[index].get(key)


def _gather(values: dict[str, float]) -> dict[str, float]:
    """The values of all processes, in volume order of rank; the dictionary itself outside a distributed run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    # a process without a volume has to take part as well, with an entry that is dropped again
    names = string_list_all_gather([_NO_VOLUME, *values])
    numbers = torch.tensor([0.0, *values.values()], dtype=torch.float64, device=device)
    gathered = evenly_divisible_all_gather(numbers, concat=True)
    pairs = zip(names, gathered.tolist(), strict=True)
    return {name: number for name, number in pairs if name != _NO_VOLUME}
