# SPDX-License-Identifier: Apache-2.0
"""Local training of one site: its loss, its time limit, recovery after a failure, the memory of its update."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from fedmonai.federated.protocol import SiteHandler

__all__ = ["LocalTrainingMonitor", "UpdateBuffers", "draws_from_all", "load_stateful", "reset_engine", "stateful_parts"]


class LocalTrainingMonitor:
    """Ignite handler that sums the loss on the device, counts iterations and keeps the time limit of a local training.

    Args:
        timeout: seconds a local training may take, or ``None``. The limit is checked after every iteration: a site that
            hangs inside one iteration is not interrupted.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self.begin()

    def begin(self) -> None:
        """Start anew; called before every local training."""
        self.started = time.monotonic()
        self.iterations = 0
        self._loss: Any = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.iterations += 1
        output = engine.state.output
        first = output[0] if isinstance(output, list) else output
        if isinstance(first, dict) and "loss" in first:
            self._loss = self._loss + first["loss"].detach()
        if self.timeout is not None and time.monotonic() - self.started > self.timeout:
            raise TimeoutError(
                f"local training took longer than local_timeout = {self.timeout:g} s, "
                f"stopped after {self.iterations} iterations"
            )

    def mean_loss(self) -> float:
        """Mean training loss; the only read-back from the device.

        Raises:
            FloatingPointError: when it is not finite.
        """
        loss = float(self._loss) / max(self.iterations, 1)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} after {self.iterations} iterations")
        return loss


def reset_engine(engine: Engine, epoch: int, iteration: int) -> None:
    """Reset an ignite engine after an exception.

    The engine keeps its finished generator and would silently do nothing on the next ``run()``.
    """
    engine._internal_run_generator = None
    engine._dataloader_iter = None
    engine.state.epoch = epoch
    engine.state.iteration = iteration


def stateful_parts(handlers: Sequence[Any]) -> dict[str, Any]:
    """The parts of a handler list that have a state, by a name that is stable while the list is.

    That is the handler itself, or else the learning-rate scheduler or the ignite handler that it wraps.
    """
    parts = {}
    for index, handler in enumerate(handlers):
        wrapped = (handler, getattr(handler, "lr_scheduler", None), getattr(handler, "_handler", None))
        found = next((part for part in wrapped if _has_state(part)), None)
        if found is not None:
            parts[f"{index}_{type(found).__name__}"] = found
    return parts


def _has_state(part: Any) -> bool:
    if isinstance(part, SiteHandler):
        return part.has_state
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def load_stateful(parts: dict[str, Any], states: dict[str, Any]) -> list[str]:
    """Load states by name; return the names that are on one side only."""
    for name, part in parts.items():
        if name in states:
            part.load_state_dict(copy.deepcopy(states[name]))
    return sorted(set(parts) ^ set(states))


class UpdateBuffers:
    """Sets of tensors for the updates of a round, borrowed until the next round and then used again.

    Fresh memory of a network's size costs more than the copy into it. There are as many sets as sites take part in the
    largest round, which is what the updates of that round need anyway.

    Example:
        >>> buffers, reference = UpdateBuffers(), {"weight": torch.zeros(2)}
        >>> first = buffers.take(reference)
        >>> buffers.end_round()
        >>> buffers.take(reference)["weight"] is first["weight"]
        True
    """

    def __init__(self) -> None:
        self._free: list[dict[str, Tensor]] = []
        self._borrowed: list[dict[str, Tensor]] = []

    def take(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with the keys, shapes, types and devices of ``reference`` and unknown values."""
        for index, buffers in enumerate(self._free):
            if _fit(buffers, reference):
                self._borrowed.append(self._free.pop(index))
                break
        else:
            self._borrowed.append({key: torch.empty_like(tensor) for key, tensor in reference.items()})
        return dict(self._borrowed[-1])

    def end_round(self) -> None:
        """Allow everything that was borrowed to be overwritten."""
        self._free += self._borrowed
        self._borrowed = []


def _fit(buffers: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    return buffers.keys() == reference.keys() and all(
        (b.shape, b.dtype, b.device) == (reference[k].shape, reference[k].dtype, reference[k].device)
        for k, b in buffers.items()
    )


def draws_from_all(loader: Any) -> bool:
    """Whether a loader draws from the whole of its dataset, as far as its sampler says.

    A list of indices instead of a sampler could repeat one case any number of times.
    """
    batches = getattr(loader, "batch_sampler", None)
    if batches is None:
        return True
    sampler = getattr(batches, "sampler", batches)
    return getattr(sampler, "data_source", getattr(sampler, "dataset", None)) is loader.dataset
