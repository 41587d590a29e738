# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a line per epoch or round, and a bar on a terminal."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from fedmonai.errors import ConfigError
from fedmonai.federated.costs import added
from fedmonai.io import FileName, OutputPath

__all__ = ["RoundProgress", "TrainingProgress"]

#: seconds between two readings of the loss for the bar: reading it waits for the device
_READ_EVERY = 1.0


class _Bar:
    """Bar of ``tqdm`` on a terminal; nothing where the output is no terminal, because lines suffice there."""

    def __init__(self, total: int | None, text: str, unit: str) -> None:
        self._bar = tqdm(total=total, desc=text, unit=unit, leave=False, disable=not sys.stderr.isatty())

    @property
    def visible(self) -> bool:
        return not self._bar.disable

    def step(self) -> None:
        self._bar.update(1)

    def show(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def end(self, line: str) -> None:
        self._bar.close()
        print(line, flush=True)


class TrainingProgress:
    """Progress of a training: a bar with the loss, a line per epoch, and at the end the paths of weights and curves.

    A training does not begin where the file of weights exists already: it would be overwritten.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of the results.
        filename: of the weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> trainer = Engine(lambda engine, batch: {"loss": batch})
        >>> with TemporaryDirectory() as folder:
        ...     TrainingProgress(f"{folder}/models", folder).attach(trainer)
        ...     _ = trainer.run([0.5, 1.5], max_epochs=1)  # doctest: +ELLIPSIS
        epoch 1/1: loss 1, ... s
        weights: none, no epoch was validated; curves: ...

    Raises:
        ConfigError: when the training starts and the weights are there already.
    """

    def __init__(self, ckpt_dir: OutputPath, output_dir: OutputPath, filename: FileName = "model.pt") -> None:
        self.weights, self.output_dir = Path(ckpt_dir, filename), Path(output_dir)
        self._bar: _Bar | None = None
        self._total: Any = 0.0
        self._count, self._read, self._began = 0, 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._refuse_overwriting)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _refuse_overwriting(self, engine: Engine) -> None:
        # an engine that continues (a client's next round, a resumed training) replaces its own file
        if engine.state.iteration == 0 and self.weights.exists():
            raise ConfigError(
                f"'{self.weights}' is there and would be overwritten; give another --ckpt_dir, or move the file."
            )

    def _begin(self, engine: Engine) -> None:
        text = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
        self._bar = _Bar(engine.state.epoch_length, text, "batch")
        self._total, self._count, self._began = 0.0, 0, time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output[0]["loss"] if isinstance(output, list) else output["loss"]
        # on the device: reading every loss would wait for every iteration; an invisible bar reads none
        self._total = self._total + (loss.detach() if isinstance(loss, Tensor) else loss)
        self._count += 1
        if self._bar is None:
            return
        if self._bar.visible and time.perf_counter() - self._read > _READ_EVERY:
            self._bar.show(f"loss {float(self._total) / self._count:.4g}")
            self._read = time.perf_counter()
        self._bar.step()

    def _end(self, engine: Engine) -> None:
        mean = float(self._total) / max(self._count, 1)
        seconds = time.perf_counter() - self._began
        if self._bar is not None:
            self._bar.end(f"epoch {engine.state.epoch}/{engine.state.max_epochs}: loss {mean:.4g}, {seconds:.1f} s")
        self._bar = None

    def _finish(self, engine: Engine) -> None:
        weights = str(self.weights) if self.weights.exists() else "none, no epoch was validated"
        print(f"weights: {weights}; curves: {self.output_dir / 'tensorboard'}", flush=True)


class RoundProgress:
    """Progress of a federation: a bar that counts finished sites, and a line per round.

    The line has the mean loss, the mean validation metrics with the best round, who failed, the bytes that left the
    sites, and the seconds.
    """

    def __init__(self) -> None:
        self._bar: _Bar | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        text = f"round {engine.state.epoch}/{engine.state.max_epochs}"
        self._bar = _Bar(engine.state.epoch_length, text, "site")

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.step()

    def _end(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.end(round_line(engine))
        self._bar = None


def round_line(engine: Any) -> str:
    """One line about the round that a federation has just ended."""
    record, state = engine.record, engine.state
    per_site = tuple(f"_{site}" for site in engine.sites.plan.names)
    means = {
        name: value
        for name, value in state.metrics.items()
        if name == "train_loss" or (name.startswith("val_") and not name.endswith(per_site))
    }
    parts = [f"{name.removeprefix('train_')} {value:.4g}" for name, value in means.items() if math.isfinite(value)]
    best = engine.checkpoint.best.round()
    if best is not None and any(name.startswith("val_") for name in means):
        parts.append(f"best round {best}")
    parts.append(f"{added(engine.round_costs['bytes_up']) / 1e6:.2f} MB from the sites")
    parts.append(f"{time.perf_counter() - record.started:.1f} s")
    failed = "".join(f"; {site} failed: {reason}" for site, reason in sorted(record.failed.items()))
    return f"round {state.epoch}/{state.max_epochs}: {', '.join(parts)}{failed}"
